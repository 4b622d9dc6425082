"""Walk and rebuild the nested arguments and outputs of somebody else's forward (ours)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["Path", "copied", "format_path", "rebuild", "select", "tensors"]

Path: TypeAlias = tuple[int | str, ...]


def _children(value: Any) -> list[tuple[int | str, Any]]:
    """List the members of a container as (key, member); an empty list for anything else."""
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return [(field.name, getattr(value, field.name)) for field in dataclasses.fields(value)]
    return []


def tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield every tensor inside tuples, lists, mappings and dataclasses with the path that leads to it.

    >>> import torch
    >>> [path for path, _ in tensors({"sample": torch.zeros(1), "skips": (torch.zeros(1), 0)})]
    [('sample',), ('skips', 0)]
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    for key, member in _children(value):
        yield from tensors(member, (*path, key))


def select(value: Any, path: Path) -> Any:
    """Follow a path from :func:`tensors` into a value; raise ``LookupError`` where it does not exist."""
    for key in path:
        members = dict(_children(value))
        if key not in members:
            raise LookupError(f"no member {key!r} in a {type(value).__name__} with {list(members) or 'no members'}")
        value = members[key]
    return value


def rebuild(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Copy a nested value with every tensor replaced by ``change(path, tensor)``; other leaves are kept as they are."""
    if isinstance(value, Tensor):
        return change(path, value)
    children = [(key, rebuild(member, change, (*path, key))) for key, member in _children(value)]
    if not children:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(value, **{str(key): member for key, member in children})
    if isinstance(value, MutableMapping):
        copied = copy.copy(value)  # keeps what a defaultdict or a ModelOutput is made with
        copied.update(children)
        return copied
    members = [member for _, member in children]
    return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)


def copied(value: Any) -> Any:
    """Copy the containers of a nested value, not what they hold: who writes into one leaves the other as it is.

    >>> batch = {"image": "given"}
    >>> kept = copied((batch, "mask"))
    >>> batch["image"] = "written by the host"
    >>> kept
    ({'image': 'given'}, 'mask')
    """
    dataclass = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if isinstance(value, tuple):
        members = [copied(member) for member in value]
        if all(new is old for new, old in zip(members, value, strict=True)):
            return value
        return type(value)(*members) if hasattr(value, "_fields") else type(value)(members)
    if not (dataclass or isinstance(value, (list, MutableMapping))):
        return value
    fresh = copy.copy(value)
    for key, member in _children(value):
        if (new := copied(member)) is member:
            continue
        if dataclass:
            object.__setattr__(fresh, str(key), new)  # of a frozen one, too
        else:
            fresh[key] = new
    return fresh


def format_path(path: Path) -> str:
    """Write a path as Python would index it.

    >>> format_path(("skips", 0))
    "['skips'][0]"
    """
    return "".join(f"[{key!r}]" for key in path)
