"""Every choice of a distillation as one dataclass that round-trips with YAML and JSON."""

from __future__ import annotations

import dataclasses
import reprlib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from inpaint_distill.errors import ConfigError, near_names

__all__ = ["AttentionConfig", "Config", "LookaheadConfig", "TermConfig", "from_dict", "load_yaml", "to_dict"]

T = TypeVar("T")

_SHORT = reprlib.Repr()  # of values of any size: a YAML file of a few lines can hold 10**20 of them
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother = 2, 100, 100


@dataclass(frozen=True, kw_only=True)
class TermConfig:
    """One distillation term.

    Attributes:
        weight: With ``balance="gradient_norm"`` the share of the host's own gradient norm that the term may have at
            each tapped feature; otherwise a plain factor. 0 switches the term off.
        normalize: Compare features as they are (``none``), per channel with the target's statistics over batch and
            space (``channel``), or per pixel over the channels (``layer``).
        region: Compare inside the hole (the method) or everywhere.
    """

    weight: float = 0.1
    normalize: Literal["channel", "layer", "none"] = "channel"
    region: Literal["hole", "all"] = "hole"

    def __post_init__(self) -> None:
        _check(self)
        if not self.weight >= 0:
            raise ConfigError("a term's weight", f"{self.weight}", "use a number >= 0; 0 switches the term off")


@dataclass(frozen=True, kw_only=True)
class AttentionConfig:
    """Attention transfer, where the host has attention.

    Attributes:
        weight: As that of the other terms; the gradient norms are compared at what is tapped of the attention.
        distance: Between two rows: squared L2, L1, or the divergence KL(teacher || host).
    """

    weight: float = 0.1
    distance: Literal["l2", "l1", "kl"] = "l2"

    def __post_init__(self) -> None:
        _check(self)
        if not self.weight >= 0:
            raise ConfigError("the attention term's weight", f"{self.weight}", "use a number >= 0; 0 switches it off")


@dataclass(frozen=True, kw_only=True)
class LookaheadConfig:
    """How the meta-networks are trained.

    Attributes:
        engine: ``finite_difference``; ``unroll``, which differentiates through the look-ahead; ``off`` leaves them at
            their start: gamma the identity, rho and phi uniform, t one half.
        every: Optimizer steps from one look-ahead to the next, ``k``; a look-ahead follows a distilled step, so that
            there is one after each of these where ``Config.every`` is larger.
        steps: SGD steps of one look-ahead, ``T`` (``unroll``; the other engine does one).
        lr: Their learning rate, ``eta``.
        meta_lr: Learning rate of the meta-networks' Adam.
    """

    engine: Literal["finite_difference", "unroll", "off"] = "finite_difference"
    every: int = 64
    steps: int = 1
    lr: float = 0.1
    meta_lr: float = 1e-3

    def __post_init__(self) -> None:
        _check(self)
        if self.every < 1:
            raise ConfigError(f"a look-ahead every k = {self.every} steps", "k < 1", "use an integer k >= 1")
        if self.steps < 1:
            raise ConfigError(f"a look-ahead of T = {self.steps} steps", "T < 1", "use an integer T >= 1")
        if self.steps > 1 and self.engine == "finite_difference":
            found = "finite differences, which look one step ahead"
            raise ConfigError(f"a look-ahead of T = {self.steps} steps", found, "use engine='unroll', or steps=1")
        for name in ("lr", "meta_lr"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"lookahead.{name}", f"{getattr(self, name)}", "use a number > 0")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A distillation.

    Attributes:
        teacher: Kind of teacher: ``ema``, ``frozen`` or ``online``. A module of your own goes to ``attach(teacher=)``.
        ema_decay: Decay of the moving average, reached after a warm-up (``ema``).
        teacher_steps: Steps of reconstruction training before the teacher is fixed (``frozen``).
        teacher_lr: Learning rate of that training (``frozen``, ``online``).
        cross: Cross-distillation, teacher's encoder to host's encoder.
        self_: Self-distillation, deep level to shallow level of the host; ``self`` in files.
        attention: Attention transfer, teacher's attention to host's attention.
        predictor: Compare the teacher with a trained 1x1 convolution of the student's feature instead of the feature.
        meta: Which meta-networks there are, of ``gamma``, ``rho``, ``phi`` and ``t``; ``None`` for all that apply.
        lookahead: How they are trained.
        completion: Inject completion blocks, which stay in the host.
        completion_levels: Where they are. ``input``: one, in the emptied image that the host is given, if it reads what
            stands in its holes; otherwise after its first stage (ours). Or the stages after which there is one, counted
            from 0; ``None`` for those below image resolution and above a single pixel.
        completion_adaptive: Give the blocks a kernel and offsets per pixel (DGI) instead of two convolutions that see
            the hole interpolated, which cost less; which gain more depends on the host (docs/rounds.md).
        completion_start: What a block at the input does before it is trained: nothing (``identity``), or fill the hole
            in from around it (``interpolation``). One after a stage starts as the identity.
        fusion: Inject an attention module with global-local fusion after the deepest stage; it stays in the host.
        balance: Scale each term to its share of the host's gradient norm, or leave the weights as they are.
        every: Distil at every n-th optimizer step alone, n times as strongly, which costs an n-th (ours).
        balance_every: Distilled steps between two measurements of the gradient norms; the first are all measured.
        warmup: Steps over which the weights rise linearly to their value.
        decay: Steps (first, last) between which the weights fall to zero along a cosine; ``None`` for never.
        nonfinite: What to do about NaN or inf in what a term looks at: ``raise`` an error that names the place, or
            ``skip`` the term in that step, with one warning per place and a count in the log. The term is exactly 0
            either way. The CPU is asked every step, an accelerator every 100.
        seed: Seed of everything random that the distiller adds.
    """

    teacher: Literal["ema", "frozen", "online"] = "ema"
    ema_decay: float = 0.999
    teacher_steps: int = 500
    teacher_lr: float = 1e-3
    cross: TermConfig = field(default_factory=TermConfig)
    self_: TermConfig = field(default_factory=lambda: TermConfig(weight=0.0125))
    attention: AttentionConfig = field(default_factory=AttentionConfig)
    predictor: bool = True
    meta: tuple[Literal["gamma", "rho", "phi", "t"], ...] | None = None
    lookahead: LookaheadConfig = field(default_factory=LookaheadConfig)
    completion: bool = False
    completion_levels: Literal["input"] | tuple[int, ...] | None = "input"
    completion_adaptive: bool = False
    completion_start: Literal["identity", "interpolation"] = "identity"
    fusion: bool = False
    balance: Literal["gradient_norm", "none"] = "gradient_norm"
    every: int = 1
    balance_every: int = 16
    warmup: int = 100
    decay: tuple[int, int] | None = None
    nonfinite: Literal["raise", "skip"] = "raise"
    seed: int = 0

    def __post_init__(self) -> None:
        _check(self)
        if not 0 <= self.ema_decay < 1:
            raise ConfigError("ema_decay", f"{self.ema_decay}", "use a number in [0, 1), such as 0.999")
        for name in ("teacher_steps", "every", "balance_every"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)}", "use an integer >= 1")
        if not self.teacher_lr > 0:
            raise ConfigError("teacher_lr", f"{self.teacher_lr}", "use a number > 0, such as 1e-3")
        if self.warmup < 0:
            raise ConfigError("warmup", f"{self.warmup}", "use a number of steps >= 0")
        if self.meta is not None and self.lookahead.engine == "off" and self.meta:
            raise ConfigError(
                f"the meta-networks {', '.join(self.meta)}",
                "lookahead.engine = 'off'",
                "choose an engine that trains them",
            )
        if self.completion_levels not in (None, "input") and not self.completion:
            raise ConfigError("completion_levels", "completion is off", "set completion=True")
        if self.completion_adaptive and not self.completion:
            raise ConfigError("completion_adaptive", "completion is off", "set completion=True")
        if self.completion_start != "identity" and not (self.completion and self.completion_levels == "input"):
            found = "blocks after stages, which start as the identity" if self.completion else "completion is off"
            fix = "leave completion_levels at 'input'" if self.completion else "set completion=True"
            raise ConfigError(f"completion_start = {self.completion_start!r}", found, fix)
        if self.decay is not None and not 0 <= self.decay[0] < self.decay[1]:
            raise ConfigError("decay", f"{self.decay}", "use (first, last) steps with 0 <= first < last")


def to_dict(config: Any) -> dict[str, Any]:
    """Convert a dataclass of settings into plain dicts, lists and numbers.

    >>> to_dict(Config())["self"]["weight"]
    0.0125
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name.rstrip("_"): plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (tuple, list)):
            return [plain(each) for each in value]
        if isinstance(value, Mapping):
            return {str(key): plain(each) for key, each in value.items()}
        return str(value) if isinstance(value, Path) else value

    return typing.cast("dict[str, Any]", plain(config))


def from_dict(kind: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a dataclass of settings from :func:`to_dict`'s output; missing keys take their defaults.

    Raises:
        ConfigError: An unknown key, or a value of the wrong type.

    >>> from_dict(Config, {"teacher": "online"}).teacher
    'online'
    """
    title = where or kind.__name__
    if not isinstance(values, Mapping):
        raise ConfigError(f"settings of {title}", _SHORT.repr(values), "give a mapping of names to values")
    hints = typing.get_type_hints(kind)
    fields = {f.name.rstrip("_"): f.name for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    arguments = {}
    for key, value in values.items():
        if key not in fields:
            raise ConfigError(
                f"setting {_SHORT.repr(key)} of {title}", "no such setting", f"use {near_names(str(key), fields)}"
            )
        arguments[fields[key]] = _convert(hints[fields[key]], value, f"{where}.{key}" if where else key)
    return kind(**arguments)


def _check(settings: Any) -> None:
    """Check every value of a dataclass of settings that was built directly."""
    hints = typing.get_type_hints(type(settings))
    for each in dataclasses.fields(settings):
        value = getattr(settings, each.name)
        if not dataclasses.is_dataclass(hints[each.name]):
            _convert(hints[each.name], value, each.name.rstrip("_"))


def load_yaml(path: str | Path) -> dict[str, Any]:
    """Read a YAML (or JSON) file of settings.

    Raises:
        ConfigError: The file is missing, is not YAML, or does not hold a mapping.
    """
    import yaml  # a tenth of what this package adds to `import torch`, and few runs read a file

    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # a date that is none is a ValueError
        raise ConfigError(
            f"settings in {path}", f"{type(error).__name__}: {error}", "give a readable YAML file"
        ) from None
    if not isinstance(values, dict):
        raise ConfigError(f"settings in {path}", f"a {type(values).__name__}", "give a mapping of names to values")
    return values


def _convert(hint: Any, value: Any, where: str) -> Any:
    """Check one value against its annotation; integers pass as floats, lists as tuples."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in options:
            return None
        others = [option for option in options if option is not type(None)]
        words = [option for option in others if typing.get_origin(option) is Literal]
        return _convert(words[0] if words and isinstance(value, str) else others[-1], value, where)
    if origin is Literal:
        if value in options:
            return value
        raise ConfigError(
            f"{where} = {_SHORT.repr(value)}", "no such choice", f"use one of {', '.join(map(str, options))}"
        )
    if dataclasses.is_dataclass(hint):
        return from_dict(typing.cast("type[Any]", hint), value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = [options[0]] * len(value) if options[-1] is Ellipsis else list(options)
        if len(inner) == len(value):
            return tuple(_convert(each, member, where) for each, member in zip(inner, value, strict=True))
    elif origin is dict and isinstance(value, Mapping):
        return dict(value)
    elif hint is float and type(value) in (int, float):
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint:
        return value
    raise ConfigError(
        f"{where} = {_SHORT.repr(value)}", f"a {type(value).__name__}", f"give {getattr(hint, '__name__', hint)}"
    )
