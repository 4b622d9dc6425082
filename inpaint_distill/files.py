"""Files that are written whole or not at all, and JSON that is read back with a clear error."""

from __future__ import annotations

import glob
import json
import os
import secrets
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from inpaint_distill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["read_json", "replacing", "write_json", "write_text"]

_ABANDONED = 3600.0  # seconds without a write, after which nobody is writing a temporary file any more


@contextmanager
def replacing(path: str | Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes the place of ``path`` once all of it is on the disk.

    A reader sees the old file or the new one, at every moment: also after an error in the block, a killed process or a
    power cut. A killed process leaves a hidden ``.name.*.partial`` beside it, which goes with the first write of the
    same file an hour later or more: before, it could be that of another process at work. A link stays one, what it
    points to is replaced.

    Raises:
        OSError: The folder does not exist, cannot be written or is full; the old file is as it was.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    with ExitStack() as stack:
        with temporary.open("xb") as file:
            stack.callback(temporary.unlink, missing_ok=True)
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    with suppress(OSError):  # Windows and some network file systems cannot
        _sync(target.parent)
    _clean(target)


def _sync(folder: Path) -> None:
    """Bring a folder's entries to the disk: without it a power cut may undo a rename that was reported as done."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _clean(target: Path) -> None:
    """Delete what killed processes have left of the same file; by the file system's own clock."""
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.partial"):
        with suppress(OSError):
            if target.stat().st_mtime - left.stat().st_mtime > _ABANDONED:
                left.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole or not at all, as UTF-8."""
    with replacing(path) as file:
        file.write(text.encode())


def write_json(path: str | Path, values: Any) -> None:
    """Write a JSON file whole or not at all."""
    write_text(path, json.dumps(values, indent=1) + "\n")


def read_json(path: str | Path, what: str, fix: str) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Args:
        path: The file.
        what: What it should hold, for the error's text.
        fix: What to do where it does not.

    Raises:
        StateError: It cannot be read, is damaged, or holds something else.
    """
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StateError(f"{what} in {path}", f"{type(error).__name__}: {error}", fix) from None
    if not isinstance(values, dict):
        raise StateError(f"{what} in {path}", f"a {type(values).__name__} instead of an object", fix)
    return values
