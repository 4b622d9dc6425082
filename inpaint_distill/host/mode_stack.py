"""torch's stack of function modes, where a mode goes on and comes off in hooks instead of a ``with`` (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import overrides

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.overrides import TorchFunctionMode

__all__ = ["OpenedMode", "current_modes", "take_off_modes"]

# torch types none of these, and has no public way to take a mode off from below another.
current_modes: Callable[[], list[TorchFunctionMode]] = overrides._get_current_function_mode_stack
"""Returns a copy of the stack, the topmost mode last."""
_push: Callable[[TorchFunctionMode], None] = overrides._push_mode
_pop: Callable[[], TorchFunctionMode] = overrides._pop_mode


class OpenedMode:
    """A mode that is pushed when a module's forward begins and popped when it ends, however it ends."""

    def __init__(self, mode: TorchFunctionMode) -> None:
        self.mode = mode
        self.below = current_modes()
        _push(mode)

    def close(self, outside: Sequence[TorchFunctionMode] = ()) -> None:
        """Take the mode off the stack, wherever it is.

        What is not an ``Exception`` (Ctrl-C, the end of a teacher's forward) passes a module without calling its
        hooks. Where it also passes a ``with`` of somebody's mode, that one pops the topmost, which is ours, and stays
        itself: then it goes instead.

        Args:
            outside: Modes that are not left yet, while the exception is still on its way.
        """
        stack = current_modes()
        if _among(self.mode, stack):
            _take_off(self.mode)
        else:
            left = [mode for mode in stack if _among(mode, self.below) and not _among(mode, outside)]
            if left:
                _take_off(left[-1])


def _among(mode: TorchFunctionMode, modes: Sequence[TorchFunctionMode]) -> bool:
    return any(mode is other for other in modes)


def _take_off(mode: TorchFunctionMode) -> None:
    """Take a mode off the stack from below others."""
    above = []
    while (other := _pop()) is not mode:
        above.append(other)
    for other in reversed(above):
        _push(other)


def take_off_modes(which: Callable[[TorchFunctionMode], bool]) -> None:
    """Take modes off that have come back: torch pops a mode for its own call, and Ctrl-C there puts it off.

    The generator that is to push it again is then held by the traceback, and does so when that is gone.
    """
    for mode in current_modes():
        if which(mode):
            _take_off(mode)
