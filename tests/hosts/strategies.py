"""Hypothesis strategies for recipes."""

import math

from hypothesis import strategies as st

from hosts import conventions
from hosts.recipes import MASKS, Recipe

__all__ = ["recipes"]


def _some(**choices):
    """Draw a dict with any of the keys; a value is one of those listed."""
    return st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in choices.items()})


@st.composite
def _configs(draw):
    term = _some(weight=[1.0, 0], normalize=["layer", "none"], region=["all"])
    engine = draw(st.sampled_from(["finite_difference", "unroll", "off"]))
    config = draw(
        _some(
            warmup=[0, 2],
            balance=["none"],
            balance_every=[1],
            predictor=[False],
            completion=[True],
            fusion=[True],
            decay=[(1, 3), (0, 1), (0, 2)],
            ema_decay=[0.0],
            seed=[1],
        )
    )
    if config.get("completion") and draw(st.booleans()):
        config["completion_adaptive"] = True
    if config.get("completion") and draw(st.booleans()):
        config["completion_start"] = "interpolation"
    for name, values in (
        ("cross", draw(term)),
        ("self", draw(term)),
        ("attention", draw(_some(weight=[1.0, 0], distance=["l1", "kl"]))),
    ):
        if values:
            config[name] = values
    lookahead = draw(_some(every=[1, 2], lr=[1e-3]))
    if engine != "finite_difference":
        lookahead["engine"] = engine
    if engine == "unroll" and draw(st.booleans()):
        lookahead["steps"] = 2
    if lookahead:
        config["lookahead"] = lookahead
    if engine != "off" and draw(st.integers(0, 4)) == 4:
        config["meta"] = draw(st.sampled_from([(), ("gamma",), ("rho", "phi"), ("t",), ("gamma", "rho", "phi", "t")]))
    return config


@st.composite
def recipes(draw):
    """Draw a :class:`Recipe`; the simplest is ``Recipe()``."""

    def one_of(*values):
        return draw(st.sampled_from(values))

    strides = tuple(draw(st.lists(st.sampled_from([2, 1, 2, 4, 2]), min_size=2, max_size=5)))
    down = one_of("conv", "max", "average", "late")
    while math.prod(strides) > 16:
        strides = strides[:-1]
    if down == "late":  # what it holds at the levels in between is tapped too: tried in the discovery's own tests
        strides = tuple(min(stride, 2) for stride in strides)
    convention = one_of(*conventions.CALLS)
    least = max(12, 3 * math.prod(strides))  # of fewer than three pixels, the size does not tell the stride
    size = tuple(draw(st.integers(least, least + 16)) for _ in range(2))
    if draw(st.booleans()):
        size = (size[0], size[0])
    if convention == "half_mask":  # a mask at half the resolution of an odd size could be any of several
        size = tuple(side + side % 2 for side in size)
    widths = tuple(one_of(8, 12, 16, 8, 12, 16, 24, 4) for _ in strides)
    attention = one_of("none", "softmax", "sdpa", "mha")
    drawn = {
        "strides": strides,
        "widths": widths,
        "depth": one_of(1, 2),
        "down": down,
        "normalisation": one_of("none", "batch", "group", "instance"),
        "activation": one_of("module", "in_place", "function"),
        "form": one_of("tensor", "tuple", "dict"),
        "skips": one_of("none", "cat", "add"),
        "tail": one_of(False, True),
        "repeats": one_of(0, 2),
        "passes": one_of(1, 1, 1, 2),
        "two_stage": one_of(False, False, True),
        "attention": attention,
        "heads": one_of(1, 2) if attention != "none" else 1,
        "output": one_of("tensor", "tuple", "dict", "dataclass"),
        "convention": convention,
        "size": size,
        "batch": one_of(1, 2, 3),
        "masks": tuple(draw(st.lists(st.sampled_from([*MASKS, "rectangle", "noise"]), min_size=1, max_size=4))),
        "one_mask": one_of(False, False, True),
        "teacher": one_of("ema", "online", "frozen", "module"),
        "config": draw(_configs()),
    }
    plain = Recipe()
    return Recipe(**{name: value for name, value in drawn.items() if value != getattr(plain, name)})  # prints short
