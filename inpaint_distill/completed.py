"""Save and load a host that keeps what was injected into it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from inpaint_distill.description import spec_in
from inpaint_distill.errors import InpaintDistillError, StateError
from inpaint_distill.host.wrappers import unwrap
from inpaint_distill.injection import Injected, injected
from inpaint_distill.state import read_state, write_state

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["load_host", "save_host"]

_KIND = "host"


def save_host(host: nn.Module, path: str | Path) -> None:
    """Save a host's weights and what is injected into it: one safetensors file.

    Args:
        host: The model, attached or after ``distiller.detach()``; what DDP, DataParallel or ``torch.compile`` have put
            around it is left out.
        path: The file.

    Raises:
        StateError: The folder does not exist or cannot be written.
    """
    host = unwrap(host)
    own = injected(host)
    write_state(path, dict(host.state_dict()), {"kind": _KIND, "injected": own.to_spec() if own else None})


def load_host(host: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Load weights into a plain host of the same class; blocks are injected as they were.

    Args:
        host: The model as its own code builds it; it is changed and returned.
        source: A file of :func:`save_host`, or the host's ``state_dict`` from a checkpoint of your own.

    Raises:
        StateError: The file cannot be read, or was saved from another host; ``host`` is as it was.
    """
    fix = "load it into the host it was saved from, by the version that saved it"
    if isinstance(source, Mapping):
        asked, tensors, spec = "a host's weights", dict(source), spec_in(source)
    else:
        asked, ours = f"a host saved in {source}", "give a file written by save_host()"
        tensors, values = read_state(source, "a host", ours)
        if values.get("kind") != _KIND or "injected" not in values:
            raise StateError(asked, "a distiller's state", ours)
        spec = values["injected"]
    inner = unwrap(host)
    before = copy.deepcopy(inner.state_dict())
    fresh = spec is not None and injected(inner) is None
    try:
        if spec is not None and fresh:
            Injected.from_spec(inner, spec)
        inner.load_state_dict(tensors)
    except BaseException as error:
        own = injected(inner)
        if fresh and own is not None:
            own.remove(inner)
        inner.load_state_dict(before)
        if isinstance(error, InpaintDistillError) or not isinstance(error, Exception):
            raise
        # torch names what does not fit in the second line
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise StateError(asked, found, fix) from None
    return host
