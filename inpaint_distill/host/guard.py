"""Run somebody else's module and leave it, and the random numbers, as they were (ours)."""

from __future__ import annotations

import copy
import itertools
import random
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from inpaint_distill.errors import PlanError
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = [
    "RandomState",
    "copy_module",
    "forked_rng",
    "lending",
    "module_device",
    "module_place",
    "runs_again",
    "untouched",
]


@contextmanager
def forked_rng(device: torch.device | None = None, *, others: bool = False) -> Iterator[None]:
    """Give the random state of the CPU and a device back afterwards, and, if asked, that of Python and numpy.

    The latter may be in use meanwhile by threads that prepare batches, which would then see the same numbers again.
    """
    state = RandomState.now(device or torch.device("cpu"), others=others)
    try:
        yield
    finally:
        state.restore()


@dataclass(frozen=True)
class RandomState:
    """Where the random numbers of the CPU and of one device stand; costs no wait for the device.

    Attributes:
        states: State of the CPU's generator, then of the device's if it is an accelerator.
        device: The device.
        others: States of the generators of Python and numpy, or nothing where they were not asked for.
    """

    states: tuple[torch.Tensor, ...]
    device: torch.device
    others: tuple[Any, ...] = ()

    @staticmethod
    def now(device: torch.device, *, others: bool = False) -> RandomState:
        """Return the present state."""
        states = [torch.get_rng_state()]
        if device.type == "cuda":
            states.append(torch.cuda.get_rng_state(device))
        return RandomState(tuple(states), device, (random.getstate(), np.random.get_state()) if others else ())

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self.states[0])
        if len(self.states) > 1:
            torch.cuda.set_rng_state(self.states[1], self.device)
        if self.others:
            random.setstate(self.others[0])
            np.random.set_state(self.others[1])

    @contextmanager
    def again(self) -> Iterator[None]:
        """Go back to it, and afterwards to where the random numbers stood."""
        with forked_rng(self.device, others=bool(self.others)):
            self.restore()
            yield

    def same_others(self, other: RandomState) -> bool:
        """Tell whether the generators of Python and numpy stand where they do in another state."""
        (python, numpy), (other_python, other_numpy) = self.others, other.others
        return bool(python == other_python and all(map(np.array_equal, numpy, other_numpy)))

    def __eq__(self, other: object) -> bool:
        """Compare the states of torch's generators."""
        return isinstance(other, RandomState) and all(map(torch.equal, self.states, other.states))

    __hash__ = None  # type: ignore[assignment]


def runs_again() -> bool:
    """Tell whether a backward is under way here: a forward within one is a checkpoint's second."""
    return not torch.compiler.is_dynamo_compiling() and torch._C._current_graph_task_id() != -1


def module_place(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Return the device and the type of a module's first parameter or buffer; the CPU's default without any."""
    tensor = next(itertools.chain(module.parameters(), module.buffers()), None)
    return (torch.device("cpu"), torch.get_default_dtype()) if tensor is None else (tensor.device, tensor.dtype)


def module_device(module: nn.Module) -> torch.device:
    """Return where a module's first parameter or buffer lies; the CPU for a module without any."""
    return module_place(module)[0]


_OWN = frozenset(vars(nn.Module()))  # what nn.Module itself keeps; "training" is restored with the rest


def _plain_attributes(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key == "training" or key not in _OWN}


_CONTAINERS = (list, dict, set, deque)


def _content(container: Any) -> Any:
    """Copy what a list, dict, set or deque holds, in that very type; their subclasses may refuse to be copied."""
    return next(kind(container) for kind in _CONTAINERS if isinstance(container, kind))


def _members(content: Any) -> Iterable[Any]:
    return content.values() if isinstance(content, dict) else content


def _same(container: Any, content: Any) -> bool:
    """Tell whether a container still holds the very objects of a former content."""
    if isinstance(container, dict):
        held, former = (*container, *container.values()), (*content, *content.values())
    else:
        held, former = tuple(container), tuple(content)
    return len(held) == len(former) and all(one is other for one, other in zip(held, former, strict=True))


def _refill(container: Any, content: Any) -> None:
    """Bring a container back to a former content, in place; read-only ones have not changed."""
    if _same(container, content):
        return
    container.clear()
    fill = container.update if isinstance(container, (dict, set)) else container.extend
    fill(content)


def _expanded(tensor: torch.Tensor) -> bool:
    """Tell whether a tensor shows one place of its memory several times: torch refuses to write into such a one."""
    return tensor.layout is torch.strided and 0 in tensor.stride()


def _rewrite(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Bring a tensor back to a former value, in place."""
    if _expanded(tensor):
        once = tuple(slice(1 if stride == 0 else None) for stride in tensor.stride())
        tensor, value = tensor.data[once], value[once]
    tensor.data.copy_(value)  # through .data: a graph that is still open may have saved the tensor


@contextmanager
def untouched(module: nn.Module) -> Iterator[None]:
    """Restore buffers, frozen parameters, plain attributes, training flags and random state on exit, bit for bit.

    Plain attributes are themselves, what lists, dicts, sets and deques among them hold, and the tensors of both.
    A forward may move batch statistics, power-iteration vectors or caches kept as attributes; 18 of 45 public
    hosts do in training mode and some in eval mode. Trainable parameters are left alone: a forward does not move them.
    """
    modules = list(module.modules())
    registered = [dict(part._buffers) for part in modules]
    attributes = [_plain_attributes(part) for part in modules]
    contents = {
        id(part): [(value, _content(value)) for value in plain.values() if isinstance(value, _CONTAINERS)]
        for part, plain in zip(modules, attributes, strict=True)
    }
    holders = [*attributes, *(content for pairs in contents.values() for _, content in pairs)]
    loose = [each for held in holders for each in _members(held) if isinstance(each, torch.Tensor)]
    tensors = [*module.buffers(), *(each for each in (*module.parameters(), *loose) if not each.requires_grad)]
    # The version counter says nothing here: batch_norm does not raise it, nor does whatever goes through `.data`.
    saved = [(tensor, tensor.detach().clone()) for tensor in tensors]
    try:
        with forked_rng(module_device(module), others=True):
            yield
    finally:
        # torch 2.4 takes a weight that was cast without gradients again where they are wanted.
        torch.clear_autocast_cache()
        with torch.no_grad():
            for tensor, value in saved:
                _rewrite(tensor, value)
        for part, buffers, plain in zip(modules, registered, attributes, strict=True):
            part._buffers.update(buffers)
            for key in _plain_attributes(part).keys() - plain.keys():
                delattr(part, key)
            vars(part).update(plain)
            for container, content in contents[id(part)]:
                _refill(container, content)


@contextmanager
def lending(module: nn.Module) -> Iterator[None]:
    """Put a module's parameters back in their places on exit, where ``functional_call`` has put others.

    It does so itself, except after Ctrl-C while it swaps them: some of the others would stay for good.
    """
    own = [(part, dict(part._parameters)) for part in module.modules()]
    try:
        yield
    finally:
        for part, parameters in own:
            part._parameters.update(parameters)


def copy_module(module: nn.Module) -> nn.Module:
    """Deep-copy a module, also after a forward with gradients.

    Cached non-leaf tensors in plain attributes make ``copy.deepcopy`` fail; they are copied as detached values. Copies
    of expanded tensors have memory of their own for every element: an average moves them, and a state is loaded.
    """
    memo: dict[int, Any] = {}
    for part in module.modules():
        for _, value in tensors(vars(part)):  # buffers, and lists and dicts of tensors, among them
            if not value.is_leaf or (_expanded(value) and not isinstance(value, nn.Parameter)):
                memo[id(value)] = value.detach().clone()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:
        raise PlanError(
            "to copy the host, for a teacher",
            f"{type(error).__name__}: {error}",
            "take what copy.deepcopy(host) cannot copy out of the host, such as a generator or an open file, or a "
            "configuration whose __getattr__ answers every name",
        ) from error
