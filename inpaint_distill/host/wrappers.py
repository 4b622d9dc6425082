"""Look through what is put around a module to train it: DDP, FSDP, ``torch.compile``, checkpointing (ours)."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

from inpaint_distill.errors import PlanError

__all__ = ["check_whole", "name_inside", "plain_name", "unwrap"]

_T = TypeVar("_T")
_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel and ``torch.compile``, however they are nested.

    What FSDP puts around a module stays: its parameters are whole only while the wrapper runs.
    """
    return _peel(module)[1]


def name_inside(called: nn.Module, name: _T) -> _T | str:
    """Return a name of a wrapped module's part, ``_orig_mod.module.encoder.0``, as that part is called inside.

    Whatever is no string, or has another beginning, is returned as it is.
    """
    prefix, inner = _peel(called)
    if not isinstance(name, str) or not prefix or not name.startswith(prefix):
        return name
    # A host may have a part that is itself called "module".
    return name if any(name == own for own, _ in inner.named_modules()) else name[len(prefix) :]


def _peel(module: nn.Module) -> tuple[str, nn.Module]:
    """Return the beginning of all names in what is put around a module, and that module."""
    prefix = ""
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            prefix, module = f"{prefix}module.", module.module
        elif isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
            prefix, module = f"{prefix}_orig_mod.", inner
        else:
            return prefix, module


def check_whole(host: nn.Module) -> None:
    """Refuse a host whose parameters FSDP, the first or the second, has split among processes, or that is replicated.

    Raises:
        PlanError: It is one.
    """
    parts = list(host.modules())
    replicated = any(isinstance(part, nn.DataParallel) and len(part.device_ids) > 1 for part in parts)
    if replicated or getattr(host, "_is_replica", False):
        raise PlanError(
            "to attach to a host on several devices",
            "DataParallel, which runs copies of it side by side in one process: a tap would see one part of the batch",
            "wrap it in torch.nn.parallel.DistributedDataParallel instead, or give DataParallel one device",
        )
    # By the names of their classes, which have moved about in torch and are slow to import.
    kinds = {kind for part in parts for kind in type(part).__mro__ if kind.__module__.startswith("torch.")}
    if not {"FSDPModule", "FSDP", "FullyShardedDataParallel"}.isdisjoint(kind.__name__ for kind in kinds):
        raise PlanError(
            "to attach to a host whose parameters are sharded",
            "FSDP: a process holds only a part of each, so that no teacher can be copied and no look-ahead taken",
            "wrap it in torch.nn.parallel.DistributedDataParallel instead; to save memory, checkpoint its decoder",
        )


def plain_name(name: str) -> str:
    """Return the name that a module has without its wrappers.

    >>> plain_name("_fsdp_wrapped_module.encoder.0._checkpoint_wrapped_module")
    'encoder.0'
    """
    return ".".join(part for part in name.split(".") if part not in _INNER)
