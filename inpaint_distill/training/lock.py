"""One process at a time in the folder of a study: a second would train the same runs and spoil what steps cost."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from inpaint_distill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["locked"]

_LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a folder and keep it to this process within the block; the system frees it when the process ends, or dies.

    On a file system without locks nothing is kept, and nothing is said.

    Raises:
        StateError: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / _LOCK, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        fix = f"wait for it, or give another folder: --out {folder}-2"
        raise StateError(f"to train the study in {folder}", "another process that trains it now", fix) from None
    except NotImplementedError:
        pass
    try:
        yield
    finally:
        lock.release()
