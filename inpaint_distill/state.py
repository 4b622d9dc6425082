"""Save and load: one safetensors file, with the settings and a checksum in its header, and what goes into it."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import save as serialize

from inpaint_distill.errors import StateError
from inpaint_distill.files import replacing

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import Tensor

__all__ = [
    "Stateful",
    "from_plain",
    "is_ours",
    "optimizer_state",
    "pack",
    "read_state",
    "set_optimizer_state",
    "to_plain",
    "under",
    "unpack",
    "write_state",
]

_T = TypeVar("_T")

_FORMAT = "inpaint_distill/2"
_UNCHECKED = "inpaint_distill/1"  # as the first version wrote it, without a checksum
_DIGITS = 2 * hashlib.sha256().digest_size


def write_state(path: str | Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write tensors and JSON values to one file; a reader sees the old file or the new one, never a part.

    Raises:
        StateError: The folder does not exist, is full or cannot be written, or a value is no tensor.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):  # such as the extra state of a module
            found = f"{name}, a {type(tensor).__name__}"
            raise StateError(f"to save tensors to {path}", found, "keep in buffers what has to be saved")
    plain = {name: tensor.detach().contiguous().cpu().clone() for name, tensor in tensors.items()}
    text = json.dumps(values, sort_keys=True)
    data = serialize(plain, {"format": _FORMAT, "values": text, "sha256": _checksum(plain, text)})
    try:
        with replacing(path) as file:
            file.write(data)
    except OSError as error:
        fix = "give a path in an existing, writable folder that has room"
        raise StateError(f"to save {path}", f"{error}", fix) from None


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """Hash all that is read back: names, types, shapes and bits of the tensors, and the values."""
    found = hashlib.sha256(text.encode())
    for name, tensor in sorted(tensors.items()):
        found.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def to_plain(value: Any, tensors: dict[str, Tensor], name: str = "state") -> Any:
    """Write nested dicts, lists and tuples as JSON values that :func:`from_plain` reads back with their types.

    Args:
        value: The state of an optimizer, a scheduler or a module.
        tensors: Its tensors are added here, and named in their place.
        name: What their names begin with.

    >>> to_plain({0: (1, 2)}, {})
    {'dict': [[0, {'tuple': [1, 2]}]]}
    """
    if isinstance(value, torch.Tensor):
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, dict):
        return {"dict": [[key, to_plain(member, tensors, f"{name}/{key}")] for key, member in value.items()]}
    if isinstance(value, (list, tuple)):
        members = [to_plain(member, tensors, f"{name}/{index}") for index, member in enumerate(value)]
        return {"tuple": members} if isinstance(value, tuple) else members
    return value


def from_plain(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what :func:`to_plain` wrote."""
    if isinstance(value, list):
        return [from_plain(member, tensors) for member in value]
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "tuple":
        return tuple(from_plain(member, tensors) for member in content)
    return {key: from_plain(member, tensors) for key, member in content}


def under(prefix: str, values: Mapping[str, _T]) -> dict[str, _T]:
    """Return those whose names begin with a prefix, without it.

    >>> under("enc.", {"enc.weight": 1, "dec.weight": 2})
    {'weight': 1}
    """
    return {name[len(prefix) :]: value for name, value in values.items() if name.startswith(prefix)}


class Stateful(Protocol):
    """Something whose state is saved: as tensors, and as JSON values."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return it."""

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take it back, in place of whatever there is."""


def pack(parts: Mapping[str, Stateful]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Gather the state of several parts, the names of each part's tensors beginning with its own."""
    states = {name: part.state() for name, part in parts.items()}
    tensors = {f"{name}/{key}": tensor for name, (own, _) in states.items() for key, tensor in own.items()}
    return tensors, {name: own for name, (_, own) in states.items()}


def unpack(parts: Mapping[str, Stateful], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Give each part its state back; all of them, or none.

    Raises:
        StateError: A part does not fit what was saved; every part is as it was.
    """
    present, present_values = pack(parts)
    before = {name: tensor.detach().clone() for name, tensor in present.items()}
    try:
        _give(parts, tensors, values)
    except BaseException as error:
        _give(parts, before, present_values)
        if not isinstance(error, (RuntimeError, LookupError, TypeError, ValueError, AttributeError)):
            raise
        raise StateError("a saved distiller", f"{error}", "load it into the host it was saved from") from None


def _give(parts: Mapping[str, Stateful], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    for name, part in parts.items():
        part.load(under(f"{name}/", tensors), values[name])


def optimizer_state(
    optimizer: torch.optim.Optimizer | None, parameters: Mapping[str, Tensor], separator: str = "."
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return what an optimizer keeps of named parameters, as tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        for key, value in (optimizer.state.get(parameter, {}) if optimizer is not None else {}).items():
            (tensors if isinstance(value, torch.Tensor) else values)[f"{name}{separator}{key}"] = value
    return tensors, values


def set_optimizer_state(
    optimizer: torch.optim.Optimizer | None,
    parameters: Mapping[str, Tensor],
    kept: Mapping[str, Any],
    separator: str = ".",
) -> None:
    """Take what :func:`optimizer_state` returned back, in place of whatever the optimizer keeps.

    Raises:
        KeyError: It is of a parameter that is not there.
    """
    if optimizer is None:
        return
    # Steps are counted beside the parameters for a fused or captured step, else on the CPU.
    counts_on_device = any(group.get(key) for group in optimizer.param_groups for key in ("capturable", "fused"))
    optimizer.state.clear()
    for name, value in kept.items():
        owner, _, key = name.rpartition(separator)
        parameter = parameters[owner]
        if isinstance(value, torch.Tensor) and key != "step":  # as torch's own load_state_dict() does
            value = value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        elif isinstance(value, torch.Tensor) and counts_on_device:
            value = value.to(parameter.device)
        optimizer.state[parameter][key] = value


def is_ours(path: str | Path) -> bool:
    """Tell whether a file is one that :func:`write_state` wrote, by its header."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("format") in (_FORMAT, _UNCHECKED)
    except Exception:  # whatever the decoder raises for what is not theirs
        return False


def read_state(
    path: str | Path,
    what: str = "a distiller",
    fix: str = "give a file written by Distiller.save()",
    *,
    plain: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`write_state` wrote; nothing in the file is executed.

    A file of the first version, ``inpaint_distill/1``, has no checksum: it is read, and only what breaks its form is
    noticed. A header that does not fit the file's size, or lacks the checksum, is refused before any tensor is read.

    Args:
        path: The file.
        what: What it should hold, for error texts.
        fix: What to do where it does not.
        plain: If given, a safetensors file without any header of its own will do, too, unchecked, and these are its
            values: earlier versions wrote such files of their studies.

    Raises:
        StateError: The file is missing, damaged in a single bit, or not one of ours.
    """
    asked = f"{what} saved in {path}"
    try:
        with safe_open(path, framework="pt") as file:  # which compares the header with the size of the file
            header = file.metadata()
            if header is None and plain is not None:
                header = {"format": _UNCHECKED, "values": json.dumps(plain)}
            header = header or {}
            form = header.get("format")
            if form not in (_FORMAT, _UNCHECKED):
                raise StateError(asked, f"a safetensors file of format {form!r}", fix)
            text, checksum = header["values"], header.get("sha256", "")
            if form == _FORMAT and len(checksum) != _DIGITS:
                raise StateError(asked, f"a damaged file, whose checksum is {checksum[:_DIGITS]!r}", fix)
            # Copies: what safetensors returns may be the file itself, mapped, and change with it after the check.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no mapping
        intact = form == _UNCHECKED or checksum == _checksum(tensors, text)
        values = json.loads(text) if intact else {}
    except StateError:
        raise
    except Exception as error:  # whatever the decoders raise for what is not theirs
        raise StateError(asked, f"{type(error).__name__}: {error}", fix) from None
    if not intact:
        raise StateError(asked, "a damaged file, whose content does not fit its checksum", fix)
    if not isinstance(values, dict):
        raise StateError(asked, f"a {type(values).__name__} instead of an object of values", fix)
    return tensors, values
