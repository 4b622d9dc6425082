"""One dry forward of the host, written down: which module put out which tensors, in which order (ours)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import RandomState, module_device, untouched
from inpaint_distill.host.taps import Hook
from inpaint_distill.host.tree import Path, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["RESERVED", "Event", "Trace", "trace_forward"]

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
