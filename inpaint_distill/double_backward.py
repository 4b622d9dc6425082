"""Whether the pass at hand will be differentiated twice (ours)."""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["double_backward", "needs_double_backward"]

_needed: ContextVar[bool] = ContextVar("double_backward", default=False)


@contextmanager
def double_backward() -> Iterator[None]:
    """Make what is computed inside differentiable twice; faster paths without a second derivative are not taken.

    >>> with double_backward():
    ...     needs_double_backward()
    True
    """
    token = _needed.set(True)
    try:
        yield
    finally:
        _needed.reset(token)


def needs_double_backward() -> bool:
    """Tell whether the caller is inside :func:`double_backward`."""
    return _needed.get()
