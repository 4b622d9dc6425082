"""One dry forward of the host, written down: which module put out which tensors, in which order (ours)."""

from __future__ import annotations

import dataclasses
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.errors import PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import RandomState, module_device, untouched
from inpaint_distill.host.taps import Hook
from inpaint_distill.host.tree import Path, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "RESERVED",
    "Event",
    "Trace",
    "trace_call",
    "trace_forward",
    "trace_sizes",
    "watched_calls",
    "without_training_only",
]

RESERVED = "inpaint_distill"
"""Name of the sub-module that holds what is injected into a host."""


@dataclass
class Event:
    """One call of one module.

    Attributes:
        name: The module, as in ``named_modules()``.
        path: The same, of a module that hangs in several places (one activation for all layers) inside the one that
            called it.
        call: Which call of it within the forward, from 0.
        start: Position of its beginning in the forward; ``end`` of its end. Events are sorted by ``end``.
        inputs: Shapes of the tensors among its arguments.
        pairs: Identities of the two tensors of each argument that is a pair of them.
        outputs: Path, shape and identity of each tensor it put out.
        overwritten: The outputs that a later operation changed in place, by path.
        binary: The outputs that hold nothing but 0 and 1, where there are several: masks.
        leaf: It has no child modules.
        kind: Its class name.
    """

    name: str
    path: str
    call: int
    start: int
    end: int
    inputs: list[tuple[int, ...]]
    pairs: set[tuple[int, int]]
    outputs: list[tuple[Path, tuple[int, ...], int]]
    overwritten: set[Path]
    binary: set[Path]
    leaf: bool
    kind: str


@dataclass
class Trace:
    """All events of one forward, by completion.

    Attributes:
        events: One for each call of each module.
        image_size: Height and width of the image that it ran on.
        used_size: Those of the images that the host is used with.
        modules: Every module by the name that its events have.
        paths: Every module by each of its names.
        batch: Number of images.
        draws: The forward drew random numbers of torch,
        draws_others: or of Python or numpy.
        overwrites: It wrote into the tensors that the host was given.
        run: Runs the same forward again.
    """

    events: list[Event]
    image_size: tuple[int, int]
    used_size: tuple[int, int]
    modules: dict[str, nn.Module]
    paths: dict[str, nn.Module]
    batch: int
    draws: bool
    draws_others: bool
    overwrites: bool
    run: Callable[[], Any]


class _Recorder(Hook):
    """Write down begin and end of every module's calls."""

    def __init__(self, host: nn.Module) -> None:
        # A parametrization is a module that puts out weights.
        hidden = {RESERVED, "parametrizations"}
        self.names = {module: name for name, module in host.named_modules() if hidden.isdisjoint(name.split("."))}
        self.paths: dict[nn.Module, list[str]] = {}
        for path, module in host.named_modules(remove_duplicate=False):
            self.paths.setdefault(module, []).append(path)
        self.clock = 0
        self.calls: Counter[str] = Counter()
        self.open: list[tuple[str, str, int, int, list[tuple[int, ...]], set[tuple[int, int]]]] = []
        self.given: list[tuple[Tensor, int]] = []
        self.closed: list[tuple[Event, list[tuple[Path, Tensor, int]]]] = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name, path = self.names[module], self._path(module)
        shapes = [tuple(tensor.shape) for _, tensor in tensors((*args, *kwargs.values()))]
        pairs = {(id(arg[0]), id(arg[1])) for arg in (*args, *kwargs.values()) if _is_pair(arg)}
        if not name:
            self.given += [(tensor, tensor._version) for _, tensor in tensors((*args, *kwargs.values()))]
        self.open.append((name, path, self.calls[name], self._tick(), shapes, pairs))
        self.calls[name] += 1

    def end(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        name, path, call, start, inputs, pairs = self.open.pop()
        # The tensors are held until the forward is over, so that an identity cannot be given to another tensor.
        held = [(where, tensor, tensor._version) for where, tensor in tensors(output)]
        outputs = [(where, tuple(tensor.shape), id(tensor)) for where, tensor, _ in held]
        leaf = next(module.children(), None) is None
        binary = {where for where, tensor, _ in held if _is_binary(tensor)} if len(held) > 1 else set()
        end, kind = self._tick(), type(module).__name__
        event = Event(name, path, call, start, end, inputs, pairs, outputs, set(), binary, leaf, kind)
        self.closed.append((event, held))

    def finish(self) -> list[Event]:
        for event, held in self.closed:
            event.overwritten = {where for where, tensor, version in held if tensor._version != version}
        return [event for event, _ in self.closed]

    def overwrites(self) -> bool:
        return any(tensor._version != version for tensor, version in self.given)

    def _path(self, module: nn.Module) -> str:
        around = self.open[-1][1] if self.open else ""
        paths = self.paths[module]
        return next((path for path in paths if around and path.startswith(f"{around}.")), paths[0])

    def _tick(self) -> int:
        self.clock += 1
        return self.clock


def _is_pair(value: Any) -> bool:
    return isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(each, Tensor) for each in value)


def _is_binary(tensor: Tensor) -> bool:
    return tensor.ndim == 4 and not tensor.is_complex() and bool(((tensor == 0) | (tensor == 1)).all())


def trace_forward(
    host: nn.Module,
    run: Callable[[], Any],
    image_size: tuple[int, int],
    used_size: tuple[int, int] | None = None,
) -> Trace:
    """Run the host once without gradients and without a trace left in it.

    Args:
        host: The model; its hooks, buffers, caches, flags and the random state are as before afterwards.
        run: Calls the host.
        image_size: Height and width of the image that it is called on.
        used_size: Those of the images that it is used with; the same by default.
    """
    recorder = _Recorder(host)
    handles = []
    try:
        for module in recorder.names:
            handles.append(module.register_forward_pre_hook(recorder.begin, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.end))
        with untouched(host), torch.no_grad(), uncompiled():
            before = RandomState.now(module_device(host), others=True)
            run()
            after = RandomState.now(module_device(host), others=True)
    finally:
        for handle in handles:
            handle.remove()
    modules = {name: module for module, name in recorder.names.items()}
    events = recorder.finish()
    batch = next((shape[0] for shape in events[-1].inputs if len(shape) == 4), 0)
    paths = {path: module for module, found in recorder.paths.items() for path in found}
    return Trace(
        events,
        image_size,
        used_size or image_size,
        modules,
        paths,
        batch,
        draws=before != after,
        draws_others=not before.same_others(after),
        overwrites=recorder.overwrites(),
        run=run,
    )


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
