"""Save and load: one safetensors file, with the settings as JSON in its header."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize

from inpaint_distill.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["Stateful", "pack", "read_state", "unpack", "write_state"]

_FORMAT = "inpaint_distill/1"


def write_state(path: str | Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write tensors and JSON values to one file; a reader sees the old file or the new one, never a part.

    Raises:
        StateError: The folder does not exist or cannot be written.
    """
    path = Path(path)
    header = {"format": _FORMAT, "values": json.dumps(values, sort_keys=True)}
    data = serialize({name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}, header)
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise StateError(f"to save {path}", f"{error}", "give a path in an existing, writable folder") from None
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


class Stateful(Protocol):
    """Something whose state is saved: as tensors, and as JSON values."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return it."""

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take it back."""


def pack(parts: Mapping[str, Stateful]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gather the state of several parts, the names of each part's tensors beginning with its own."""
    states = {name: part.state() for name, part in parts.items()}
    tensors = {f"{name}/{key}": tensor for name, (own, _) in states.items() for key, tensor in own.items()}
    return tensors, {name: own for name, (_, own) in states.items()}


def unpack(parts: Mapping[str, Stateful], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Give each part its state back.

    Raises:
        StateError: A part does not fit what was saved.
    """
    try:
        for name, part in parts.items():
            own = {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}
            part.load(own, values[name])
    except (RuntimeError, KeyError, ValueError, IndexError) as error:
        raise StateError("a saved distiller", f"{error}", "load it into the host it was saved from") from None


def read_state(
    path: str | Path, what: str = "a distiller", writer: str = "Distiller.save()"
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_state` wrote; nothing in the file is executed.

    Args:
        path: The file.
        what: What it should hold, for error texts.
        writer: What writes such files.

    Raises:
        StateError: The file is missing, damaged, or not one of ours.
    """
    asked = f"{what} saved in {path}"
    fix = f"give a file written by {writer}"
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            if header.get("format") != _FORMAT:
                raise StateError(asked, f"a safetensors file of format {header.get('format')!r}", fix)
            return {name: file.get_tensor(name) for name in file.keys()}, json.loads(header["values"])  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise StateError(asked, f"{type(error).__name__}: {error}", fix) from None
