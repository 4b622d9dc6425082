"""What a user may name modules by: a name, a glob, a regular expression, a class, or a function (ours)."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from torch import nn

from inpaint_distill.host.wrappers import plain_name

__all__ = ["Target", "format_target", "match"]

Target: TypeAlias = str | re.Pattern[str] | type[nn.Module] | Callable[[str, nn.Module], bool]


def match(target: Target, names: Iterable[str], modules: Mapping[str, nn.Module]) -> list[str]:
    """Return the names that a target stands for, in the order of ``names``.

    >>> modules = {"enc.0": nn.Conv2d(1, 1, 1), "enc.1": nn.ReLU(), "dec.0": nn.Conv2d(1, 1, 1)}
    >>> match("enc.*", modules, modules), match(re.compile(r".*0"), modules, modules), match(nn.ReLU, modules, modules)
    (['enc.0', 'enc.1'], ['enc.0', 'dec.0'], ['enc.1'])
    >>> match(lambda name, module: isinstance(module, nn.Conv2d) and "enc" in name, modules, modules)
    ['enc.0']

    Args:
        target: A name or a glob; a regular expression that matches the whole name; a class of modules; or a function
            of name and module. Names are taken with and without what ``torch.compile``, FSDP and checkpointing add.
        names: Names to choose from.
        modules: The modules by name.
    """
    names = list(names)
    if isinstance(target, str):
        if target in names:
            return [target]
        found = [name for name in names if any(fnmatch.fnmatchcase(each, target) for each in (name, plain_name(name)))]
    elif isinstance(target, re.Pattern):
        found = [name for name in names if target.fullmatch(name) or target.fullmatch(plain_name(name))]
    elif isinstance(target, type):
        found = [name for name in names if isinstance(modules.get(name), target)]
    else:
        found = [name for name in names if name in modules and target(name, modules[name])]
    # Of a wrapper and what it holds, which put out the same, the wrapper.
    outermost: dict[str, str] = {}
    for name in found:
        plain = plain_name(name)
        outermost[plain] = min(name, outermost.get(plain, name), key=len)
    return list(outermost.values())


def format_target(target: Target) -> str:
    """Write a target as the user gave it."""
    if isinstance(target, str):
        return repr(target)
    if isinstance(target, re.Pattern):
        return f"re.compile({target.pattern!r})"
    return getattr(target, "__name__", repr(target))
