"""Look through what is put around a module to train it: DDP, FSDP, ``torch.compile``, checkpointing (ours)."""

from __future__ import annotations

from torch import nn

__all__ = ["plain_name", "unwrap"]

_INNER = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})


def unwrap(module: nn.Module) -> nn.Module:
    """Return the module inside DDP, DataParallel and ``torch.compile``, however they are nested.

    What FSDP puts around a module stays: its parameters are whole only while the wrapper runs.
    """
    while True:
        if isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            module = module.module
        elif isinstance(inner := module._modules.get("_orig_mod"), nn.Module):
            module = inner
        else:
            return module


def plain_name(name: str) -> str:
    """Return the name that a module has without its wrappers.

    >>> plain_name("_fsdp_wrapped_module.encoder.0._checkpoint_wrapped_module")
    'encoder.0'
    """
    return ".".join(part for part in name.split(".") if part not in _INNER)
