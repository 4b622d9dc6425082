"""Random hosts, masks and settings: the plan is right, the loss is sound, nothing stays; or the refusal is right."""

import re
import warnings

import torch
from hosts import footprint, make_optimizer, reconstruct, same
from hosts.recipes import STEPS, Recipe
from hosts.strategies import recipes
from hypothesis import example, given, note

import inpaint_distill
from inpaint_distill.errors import InpaintDistillError, LookaheadWarning, TeacherWarning

_FEATURE = {"tuple": 0, "dict": "feature"}


def finite(tensors):
    return all(bool(tensor.isfinite().all()) for tensor in tensors if tensor is not None)


def train(recipe, host, distiller, optimizer):
    """Train as a user does; return the error that stops it, and the step."""
    for step in range(STEPS):
        image, mask = recipe.data(step)
        try:
            loss = reconstruct(recipe, host, image, mask)
            added = distiller.loss(image, mask[:1] if recipe.one_mask else mask)
        except InpaintDistillError as error:
            return error, step
        assert finite([added])
        assert added >= 0
        if not recipe.active(step):
            assert added == 0
        optimizer.zero_grad()
        (loss + added).backward()
        assert finite([parameter.grad for parameter in host.parameters()])
        # What is not finite there would count as nothing, as in a step that GradScaler skips, and never be seen again.
        assert finite([parameter.grad for parameter in distiller._terms.trained()])
        optimizer.step()
        parts = distiller._parts.values() if distiller.plan is not None else ()
        kept = [tensor for part in parts for tensor in part.state()[0].values()]
        assert finite([*host.state_dict().values(), *kept])
    return None, STEPS


def watch(recipe, host, stages):
    """Run the host and return what its levels put out and what the stages read, both as they were at once."""
    levels = host.networks[-1].levels
    out, read, handles = {}, {}, []

    def keep_level(number):
        def hook(module, args, output):
            out[number] = output.clone() if recipe.form == "tensor" else output[_FEATURE[recipe.form]].clone()

        return hook

    def keep_stage(stage, calls):
        def hook(module, args, output):
            if len(calls) == stage.call:
                read[stage] = stage.as_map(stage.read(output), recipe.size).clone()
            calls.append(1)

        return hook

    handles += [level.register_forward_hook(keep_level(number)) for number, level in enumerate(levels)]
    handles += [host.get_submodule(stage.name).register_forward_hook(keep_stage(stage, [])) for stage in stages]
    with torch.no_grad():
        recipe.call(host, *recipe.data(0))
    for handle in handles:
        handle.remove()
    return out, [read[stage] for stage in stages]


def check_plan(recipe, host, plan):
    expected = recipe.stages()
    assert [stage.stride for stage in plan.stages] == list(expected)
    levels, features = watch(recipe, host, plan.stages)
    for number, feature, stage in zip(expected.values(), features, plan.stages, strict=True):
        assert feature.shape[1] == stage.channels
        assert number is None or torch.equal(levels[number], feature)
    kinds = [(site.kind, site.heads) for site in plan.attention]
    expected = [(recipe.attention, recipe.heads)] if recipe.taps_attention else []
    if "attention" in recipe.terms() and recipe.settings.fusion:
        expected.append(("sdpa", 1))
    assert kinds == expected
    assert bool(plan.injected) == recipe.injects()


def check_same_as_never_attached(recipe, host):
    other = recipe.build()
    other.load_state_dict(host.state_dict())
    for mode in (True, False):
        with torch.no_grad():
            first, second = (recipe.call(each.train(mode), *recipe.data(STEPS)) for each in (host, other))
        assert same(*(vars(each) if recipe.output == "dataclass" else each for each in (first, second)))


_OFF = {"cross": {"weight": 0}, "self": {"weight": 0}}
_NOTHING = {**_OFF, "attention": {"weight": 0}}


# Each of these once went wrong: sizes that halve unevenly; the tail of one network's decoder before the next network's
# encoder; a narrow map that could be one of another layout; a loss or a block that silently never came.
@example(recipe=Recipe(strides=(2, 2, 2), widths=(8, 8, 8), size=(17, 17)))
@example(recipe=Recipe(strides=(2, 2), tail=True, two_stage=True))
@example(recipe=Recipe(strides=(2, 2), tail=True, passes=2))
@example(recipe=Recipe(strides=(2, 1), widths=(4, 24), down="max", size=(15, 29)))
@example(recipe=Recipe(strides=(1, 4), down="max", size=(18, 20), config={"fusion": True}))
@example(recipe=Recipe(strides=(4, 4), down="max", size=(47, 47), config={"completion": True}))
@example(recipe=Recipe(config=_OFF))
@example(recipe=Recipe(config=_NOTHING))
@example(recipe=Recipe(config={**_NOTHING, "fusion": True}))
@example(recipe=Recipe(masks=("empty",), config={**_NOTHING, "completion": True}))
@given(recipe=recipes())
def test_a_random_host_is_read_right_trained_and_left_as_it_was_or_rightly_refused(recipe):
    host = recipe.build()
    optimizer = make_optimizer(host)
    before, keys = footprint(host), list(host.state_dict())
    trained = [len(group["params"]) for group in optimizer.param_groups]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        distiller = inpaint_distill.attach(host, optimizer, teacher=recipe.make_teacher(), config=recipe.config)
        error, step = train(recipe, host, distiller, optimizer)
    assert distiller.detach(keep_completion=False) is host
    optimizer.zero_grad()

    expected = recipe.refusal()
    note(f"expected: {expected}; found: {error}")
    if expected is None:
        assert error is None, error
        assert (distiller.plan is not None) == (recipe.weighs() or recipe.injects())
        if distiller.plan is not None:
            check_plan(recipe, host, distiller.plan)
    else:
        assert (type(error), step) == (expected.error, expected.step)
        assert re.search(expected.text, str(error))
    kinds = {each.category for each in told}
    assert (LookaheadWarning in kinds) == (expected is None and recipe.gives_up_looking_ahead())
    assert kinds <= {LookaheadWarning} | ({TeacherWarning} if recipe.teacher == "frozen" else set())

    assert footprint(host) == before
    assert list(host.state_dict()) == keys
    assert [len(group["params"]) for group in optimizer.param_groups] == trained
    check_same_as_never_attached(recipe, host)
