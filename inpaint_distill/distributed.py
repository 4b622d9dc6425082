"""What several processes that train one host average, so that they do as one process with all their images would."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed
from torch.nn.parallel import DistributedDataParallel

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from contextlib import AbstractContextManager

    from torch import nn

__all__ = ["Processes", "average_", "broadcast_", "joint", "mean", "moments"]

_group: ContextVar[Any] = ContextVar("joint", default=None)


class Processes:
    """The processes that train one host together, found when it runs.

    They are those whose gradients DDP averages. That a process group exists says nothing: processes may as well train
    apart.
    """

    def __init__(self) -> None:
        self.group: Any = None
        self.alike = False

    def meet(self, called: nn.Module) -> bool:
        """Look for DDP in a module, and around it: in whose forward this is called. Tell whether there is news."""
        if self.group is not None or not (distributed.is_available() and distributed.is_initialized()):
            return False
        # What is around a module cannot be asked of it. Torch keeps this for its own compiler.
        found = getattr(DistributedDataParallel, "_active_ddp_module", None)
        if found is None:
            found = next((part for part in called.modules() if isinstance(part, DistributedDataParallel)), None)
        if found is None or found.process_group.size() == 1:
            return False
        self.group = found.process_group
        return True

    def joint(self) -> AbstractContextManager[None]:
        """Average over these processes, inside."""
        return joint(self.group)

    def begin_alike(self, *modules: nn.Module | None) -> None:
        """Give what the first process has in these modules to the others, once."""
        if self.group is not None and not self.alike:
            self.alike = True
            for module in modules:
                if module is not None:
                    broadcast_([*module.parameters(), *module.buffers()])


@contextmanager
def joint(group: Any) -> Iterator[None]:
    """Average, inside, over a group of processes; over nothing where it is ``None``.

    Every process of the group has to come by here as often as the others, in the same order.

    >>> with joint(None):
    ...     mean([torch.ones(2)])
    [tensor([1., 1.])]
    """
    token = _group.set(group)
    try:
        yield
    finally:
        _group.reset(token)


def mean(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the mean of each tensor over the processes of :func:`joint`; the tensors themselves outside of it.

    It can be differentiated, any number of times: each process gets the mean of the gradients that arrive at all. One
    message for each type of number.
    """
    group = _group.get()
    if group is None:
        return list(tensors)
    found: dict[int, Tensor] = {}
    for indices in _alike(tensors):
        whole = torch.cat([tensors[index].reshape(-1) for index in indices])
        average: Tensor = _Mean.apply(whole, group)
        parts = torch.split(average, [tensors[index].numel() for index in indices])
        found |= {index: part.view(tensors[index].shape) for index, part in zip(indices, parts, strict=True)}
    return [found[index] for index in range(len(tensors))]


def moments(variance: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean of what all processes have, from those of what each has, as many numbers in each."""
    if _group.get() is None:
        return variance, average
    wide = average.double()  # the square of a mean may be far larger than the variance
    both, square = mean([wide, variance.double() + wide.square()])
    return (square - both.square()).clamp_min(0).to(variance.dtype), both.to(average.dtype)


@torch.no_grad()
def average_(tensors: Iterable[Tensor]) -> None:
    """Replace each tensor by its mean over the processes of :func:`joint`, in place; outside of it do nothing."""
    if _group.get() is not None:
        tensors = list(tensors)
        for tensor, found in zip(tensors, mean(tensors), strict=True):
            tensor.copy_(found)


@torch.no_grad()
def broadcast_(tensors: Iterable[Tensor]) -> None:
    """Give the tensors of the first process of :func:`joint` to the others, in place; outside of it do nothing."""
    group = _group.get()
    if group is None:
        return
    tensors = list(tensors)
    first = distributed.get_global_rank(group, 0)
    for indices in _alike(tensors):
        whole = torch.cat([tensors[index].reshape(-1) for index in indices])
        distributed.broadcast(whole, first, group)
        for index, part in zip(indices, torch.split(whole, [tensors[index].numel() for index in indices]), strict=True):
            tensors[index].copy_(part.view(tensors[index].shape))


def _alike(tensors: Sequence[Tensor]) -> Iterable[list[int]]:
    """Return the indices of tensors of one type on one device each."""
    found: dict[Any, list[int]] = {}
    for index, tensor in enumerate(tensors):
        found.setdefault((tensor.dtype, tensor.device), []).append(index)
    return found.values()


class _Mean(torch.autograd.Function):
    """Mean over processes; so is its derivative, as the loss is a mean over them."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        found = tensor.contiguous().clone()
        distributed.all_reduce(found, group=group)
        return found.div_(group.size())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Mean.apply(gradient, ctx.group), None
