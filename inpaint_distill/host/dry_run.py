"""How a host is run once to be looked at: on which arguments, and in what size it accepts (ours)."""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from inpaint_distill.errors import PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.trace import trace_forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from inpaint_distill.host.trace import Trace
    from inpaint_distill.host.tree import Path

__all__ = ["trace_call", "trace_sizes", "watched_calls", "without_training_only"]


def trace_call(host: nn.Module, call: HostCall) -> Trace:
    """Trace the host on the user's own arguments, stretched to a non-square image where it accepts one.

    Raises:
        PlanError: The host cannot be run again on its own arguments.
    """
    size = _image_size(call)
    return trace_sizes(host, lambda wide: _stretch(call, size, wide).run(host), size)


def trace_sizes(host: nn.Module, run: Callable[[tuple[int, int]], Any], size: tuple[int, int]) -> Trace:
    """Trace the host on the first image size that it accepts: narrower or wider than high, twice as wide, as given.

    A non-square map cannot be confused with an attention matrix, and shows its layout. The sides are as 4 to 3 or
    2 to 3, so that no map of a power of two of channels looks alike in two layouts; the narrower one is cheaper, and
    wide enough down to stride 64. Hosts that refuse (positional tables, fixed windows) are traced on the size given.

    Args:
        host: The model.
        run: Calls it on an image of a (height, width).
        size: The (height, width) that it is used with.

    Raises:
        PlanError: The host does not run on ``size`` either.
    """
    height, width = size
    widths = ([width * 3 // 4] if width % 256 == 0 else []) + [width * 3 // 2, width * 2]
    for other in [(height, each) for each in widths] if height == width else ():
        # Whatever a foreign forward raises on this size means "not this size".
        with suppress(Exception):
            trace = trace_forward(host, partial(run, other), other, size)
            return _without_growing(trace, lambda: trace_forward(host, partial(run, size), size))
    try:
        return trace_forward(host, partial(run, size), size)
    except Exception as error:
        raise PlanError(
            f"a dry run of the host on an image of {height} x {width}",
            f"{type(error).__name__}: {error}",
            "check that the host runs on these arguments",
        ) from error


def _without_growing(trace: Trace, trace_again: Callable[[], Trace]) -> Trace:
    """Leave out what has more channels on a larger image: an attention map put out as one, a channel for each key.

    Args:
        trace: A forward.
        trace_again: Traces one on another image size; where nothing looks like such a map it is not called.
    """
    if not any(_is_square(shape) for event in trace.events for _, shape, _ in event.outputs):
        return trace
    with suppress(Exception):  # not this size: what is fixed cannot grow
        others = {(event.name, event.call): event.outputs for event in trace_again().events}
        for event in trace.events:
            channels = {where: _channels(shape) for where, shape, _ in others.get((event.name, event.call), ())}
            event.outputs = [
                (where, shape, identity)
                for where, shape, identity in event.outputs
                if not _is_square(shape) or channels.get(where) == _channels(shape)
            ]
    return trace


def _is_square(shape: tuple[int, ...]) -> bool:
    """Tell whether a map (B, C, H, W), or tokens (B, N, C), have as many channels as places."""
    return len(shape) in (3, 4) and _channels(shape) == (shape[1] if len(shape) == 3 else shape[2] * shape[3]) > 1


def _channels(shape: tuple[int, ...]) -> int:
    return shape[2] if len(shape) == 3 else shape[1]


def without_training_only(host: nn.Module, trace: Trace) -> Trace:
    """Leave out the calls that are made in training mode alone: a teacher, in eval mode, would not show them.

    The host is run again for that where a module that holds others asks for its mode, and is left as it is.
    """
    holders = (part for part in host.modules() if part.training and next(part.children(), None) is not None)
    if not any(map(_asks_mode, {type(part) for part in holders})):
        return trace

    def run() -> Any:
        host.eval()
        return trace.run()

    with suppress(Exception):  # a host that does not run in it has another error to tell
        made = {(each.name, each.call) for each in trace_forward(host, run, trace.image_size).events}
        return dataclasses.replace(trace, events=[each for each in trace.events if (each.name, each.call) in made])
    return trace


def _asks_mode(kind: type) -> bool:
    """Tell whether a class of modules, in code that is not torch's, reads ``self.training``."""
    own = (base for base in kind.__mro__ if not base.__module__.startswith("torch."))
    functions = (each for base in own for each in vars(base).values() if isinstance(each, FunctionType))
    return any("training" in each.__code__.co_names for each in functions)


def watched_calls(host: nn.Module, run: Callable[[], Any]) -> list[HostCall]:
    """Return the arguments that a host is given in ``run``, call by call; none where it is not called as a module."""
    calls: list[HostCall] = []

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(HostCall.of(args, kwargs))

    handle = host.register_forward_pre_hook(note, prepend=True, with_kwargs=True)
    try:
        with untouched(host), torch.no_grad(), uncompiled():
            run()
    finally:
        handle.remove()
    return calls


def _image_size(call: HostCall) -> tuple[int, int]:
    """Return the largest (height, width) among the arguments."""
    size = call.image_size()
    if size is None:
        raise PlanError(
            "an image among the arguments of the host's call",
            "no tensor (B, C, H, W)",
            "write an Adapter with `outputs` and `replayable = False`, and give attach() it and an image and a mask",
        )
    return size


def _stretch(call: HostCall, size: tuple[int, int], wide: tuple[int, int]) -> HostCall:
    """Resize every map among the arguments in the proportion of ``size`` to ``wide``."""

    def resize(_: Path, tensor: Tensor) -> Tensor:
        if tensor.ndim != 4 or tensor.shape[-2] * size[1] != tensor.shape[-1] * size[0]:
            return tensor.clone()  # hosts write into what they are given
        target = (tensor.shape[-2] * wide[0] // size[0], tensor.shape[-1] * wide[1] // size[1])
        return F.interpolate(tensor.float(), target, mode="nearest").to(tensor.dtype)

    return call.rebuild(resize)
