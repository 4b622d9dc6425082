"""Walk and rebuild the nested arguments and outputs of somebody else's forward (ours)."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

import torch
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
        names = (field.name for field in dataclasses.fields(value))
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    return []


def _put(container: Any, key: int | str, member: Any) -> None:
    """Replace a member of a list, mapping or dataclass."""
    if isinstance(container, (list, MutableMapping)):
        container[key] = member  # type: ignore[index]
    else:
        object.__setattr__(container, str(key), member)  # of a frozen one, too


def tensors(value: Any, path: Path = (), around: tuple[int, ...] = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield every tensor inside tuples, lists, mappings and dataclasses with the path that leads to it.

    A container that holds itself is entered once; ``around`` has the identities of those that were entered.

    >>> import torch
    >>> [path for path, _ in tensors({"sample": torch.zeros(1), "skips": (torch.zeros(1), 0)})]
    [('sample',), ('skips', 0)]
    """
    if isinstance(value, Tensor):
        yield path, value
        return
    if around and id(value) in around:
        return
    within = (
        () if torch.compiler.is_compiling() else (*around, id(value))
    )  # a graph would be compiled for each identity
    for key, member in _children(value):
        yield from tensors(member, (*path, key), within)


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
    if dataclasses.is_dataclass(value) or isinstance(value, MutableMapping):
        fresh = copy.copy(value)  # keeps what a defaultdict or a ModelOutput is made with, and what no __init__ sets
        for key, member in children:
            _put(fresh, key, member)
        return fresh
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
        _put(fresh, key, new)
    return fresh


def format_path(path: Path) -> str:
    """Write a path as Python would index it.

    >>> format_path(("skips", 0))
    "['skips'][0]"
    """
    return "".join(f"[{key!r}]" for key in path)
