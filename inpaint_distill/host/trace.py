"""One dry forward of the host, written down: which module put out which tensors, in which order (ours)."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.errors import PlanError
from inpaint_distill.host.guard import uncompiled, untouched
from inpaint_distill.host.taps import Hook
from inpaint_distill.host.tree import Path, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from inpaint_distill.host.call import HostCall

__all__ = ["RESERVED", "Event", "Trace", "trace_call", "trace_forward", "trace_sizes"]

RESERVED = "inpaint_distill"
"""Name of the sub-module that holds what is injected into a host."""


@dataclass
class Event:
    """One call of one module.

    Attributes:
        name: The module, as in ``named_modules()``.
        call: Which call of it within the forward, from 0.
        start: Position of its beginning in the forward; ``end`` of its end. Events are sorted by ``end``.
        inputs: Shapes of the tensors among its arguments.
        outputs: Path, shape and identity of each tensor it put out.
        overwritten: The outputs that a later operation changed in place, by path.
        leaf: It has no child modules.
        kind: Its class name.
    """

    name: str
    call: int
    start: int
    end: int
    inputs: list[tuple[int, ...]]
    outputs: list[tuple[Path, tuple[int, ...], int]]
    overwritten: set[Path]
    leaf: bool
    kind: str


@dataclass
class Trace:
    """All events of one forward, by completion.

    Attributes:
        events: One for each call of each module.
        image_size: Height and width of the image that it ran on.
        used_size: Those of the images that the host is used with.
        run: Runs the same forward again.
    """

    events: list[Event]
    image_size: tuple[int, int]
    used_size: tuple[int, int]
    run: Callable[[], Any] | None = None


class _Recorder(Hook):
    """Write down begin and end of every module's calls."""

    def __init__(self, host: nn.Module) -> None:
        # A parametrization is a module that puts out weights.
        hidden = {RESERVED, "parametrizations"}
        self.names = {module: name for name, module in host.named_modules() if hidden.isdisjoint(name.split("."))}
        self.clock = 0
        self.calls: Counter[str] = Counter()
        self.open: list[tuple[str, int, int, list[tuple[int, ...]]]] = []
        self.closed: list[tuple[Event, list[tuple[Path, Tensor, int]]]] = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self.names[module]
        shapes = [tuple(tensor.shape) for _, tensor in tensors((*args, *kwargs.values()))]
        self.open.append((name, self.calls[name], self._tick(), shapes))
        self.calls[name] += 1

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name, call, start, inputs = self.open.pop()
        # The tensors are held until the forward is over, so that an identity cannot be given to another tensor.
        held = [(path, tensor, tensor._version) for path, tensor in tensors(output)]
        outputs = [(path, tuple(tensor.shape), id(tensor)) for path, tensor, _ in held]
        leaf = next(module.children(), None) is None
        event = Event(name, call, start, self._tick(), inputs, outputs, set(), leaf, type(module).__name__)
        self.closed.append((event, held))

    def finish(self) -> list[Event]:
        for event, held in self.closed:
            event.overwritten = {path for path, tensor, version in held if tensor._version != version}
        return [event for event, _ in self.closed]

    def _tick(self) -> int:
        self.clock += 1
        return self.clock


def trace_forward(host: nn.Module, run: Callable[[], Any]) -> list[Event]:
    """Run the host once without gradients and without a trace left in it; return its events.

    Args:
        host: The model; its hooks, buffers, caches, flags and the random state are as before afterwards.
        run: Calls the host.
    """
    recorder = _Recorder(host)
    handles = []
    try:
        for module in recorder.names:
            handles.append(module.register_forward_pre_hook(recorder.begin, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.end))
        with untouched(host), torch.no_grad(), uncompiled():
            run()
    finally:
        for handle in handles:
            handle.remove()
    return recorder.finish()


def trace_call(host: nn.Module, call: HostCall) -> Trace:
    """Trace the host on the user's own arguments, stretched to a non-square image where it accepts one.

    Raises:
        PlanError: The host cannot be run again on its own arguments.
    """
    size = _image_size(call)
    return trace_sizes(host, lambda wide: _stretch(call, size, wide).run(host), size)


def trace_sizes(host: nn.Module, run: Callable[[tuple[int, int]], Any], size: tuple[int, int]) -> Trace:
    """Trace the host on the first image size that it accepts: wider than high, twice as wide, as given.

    A non-square map cannot be confused with an attention matrix, and shows its layout. Hosts that refuse
    (positional tables, fixed windows) are traced on the size given.

    Args:
        host: The model.
        run: Calls it on an image of a (height, width).
        size: The (height, width) that it is used with.

    Raises:
        PlanError: The host does not run on ``size`` either.
    """
    height, width = size
    for wide in ((height, width * 3 // 2), (height, width * 2)) if height == width else ():
        # Whatever a foreign forward raises on this size means "not this size".
        with suppress(Exception):
            return Trace(trace_forward(host, partial(run, wide)), wide, size, partial(run, wide))
    try:
        return Trace(trace_forward(host, partial(run, size)), size, size, partial(run, size))
    except Exception as error:
        raise PlanError(
            f"a dry run of the host on an image of {height} x {width}",
            f"{type(error).__name__}: {error}",
            "check that the host runs on these arguments",
        ) from error


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
            return tensor
        target = (tensor.shape[-2] * wide[0] // size[0], tensor.shape[-1] * wide[1] // size[1])
        return F.interpolate(tensor.float(), target, mode="nearest").to(tensor.dtype)

    return call.rebuild(resize)
