"""Which of the host's last forwards a loss is asked for (ours)."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch.autograd.graph import Node

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.watch import Watch
    from inpaint_distill.losses.balance import Observation

__all__ = ["Forward", "Forwards"]

_KEPT = 2  # a generator's own forward, and one for its discriminator


class _Mark:
    """A hook on a node of the graph that does nothing: it is there as long as the node is."""

    def __call__(self, gradients: tuple[Any, ...]) -> None:
        """Leave the gradients as they are."""


class Forward:
    """One watched forward of the host.

    Args:
        call: Its arguments.
        autocast: The type that it was cast to; ``None`` for none.
        observation: The watcher of its backward, where one is due.

    Attributes:
        ended: It was not interrupted.
        kept: What its taps kept, once a later forward needs them.
    """

    def __init__(self, call: HostCall, autocast: torch.dtype | None, observation: Observation | None) -> None:
        self.call = call
        self.autocast = autocast
        self.observation = observation
        self.ended = False
        self.kept: Any = None
        self._marks: list[weakref.ref[_Mark]] | None = None  # not known

    def end(self, output: Any) -> None:
        """Note what it returned, to know later whether anything still depends on it."""
        self.ended = True
        found = [] if torch.compiler.is_compiling() else [tensor.grad_fn for _, tensor in tensors(output)]
        if not found:
            return
        self._marks = []
        for node in _ends([node for node in found if node is not None]):
            mark = _Mark()
            node.register_prehook(mark)
            self._marks.append(weakref.ref(mark))

    @property
    def alive(self) -> bool:
        """Whether a loss can still be made from what it returned: not of a detached output, nor a frozen host's."""
        return self._marks is None or any(mark() is not None for mark in self._marks)


def _ends(nodes: Sequence[Node]) -> set[Node]:
    """Return those that none of the others depends on, such as a coarse image: the features kept depend on it too."""
    ends = set(nodes)
    if len(ends) > 1:
        first = min(node._sequence_nr() for node in ends)  # numbers rise from the arguments to the output
        seen: set[Node] = set()
        near = set(nodes)
        while near:
            before = {each for node in near for each, _ in node.next_functions if each is not None}
            ends -= before
            near = {node for node in before - seen if node._sequence_nr() >= first}
            seen |= near
    return ends


class Forwards:
    """The forwards since the last loss or optimizer step, at most two: each keeps its graph."""

    def __init__(self) -> None:
        self._each: list[Forward] = []

    @property
    def last(self) -> Forward | None:
        """The last one."""
        return self._each[-1] if self._each else None

    def add(self, forward: Forward, watch: Watch | None) -> None:
        """Add one that begins now, and forget what it makes superfluous.

        Args:
            forward: The new one.
            watch: What saw the last one and is about to see this; what it kept is put aside.
        """
        if watch is not None and self.last is not None:
            self.last.kept = self.last.kept or watch.put_aside()
        former = [each for each in self._each if each.ended and each.alive]
        self._each = [*former, forward][-_KEPT:]

    def candidates(self) -> list[Forward]:
        """Return those that a loss may be about, newest first: all whose graph is used, else the last."""
        used = [each for each in reversed(self._each) if each.ended and each.alive]
        return used or self._each[-1:]

    def take(self, forward: Forward, watch: Watch) -> None:
        """Let ``watch`` have kept what one showed, and forget it and those before it."""
        if self.last is not None and self.last.kept is None:
            self.last.kept = watch.put_aside()
        watch.put_back(forward.kept)
        self._each = self._each[self._each.index(forward) + 1 :]

    def clear(self) -> None:
        """Forget all."""
        self._each = []
