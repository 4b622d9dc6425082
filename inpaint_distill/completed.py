"""Save and load a host that keeps what was injected into it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from inpaint_distill.errors import InpaintDistillError, StateError
from inpaint_distill.host.guard import forked_rng
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
        host: The model, attached or after ``distiller.detach()``.
        path: The file.

    Raises:
        StateError: The folder does not exist or cannot be written.
    """
    own = injected(host)
    write_state(path, dict(host.state_dict()), {"kind": _KIND, "injected": own.to_spec() if own else None})


def load_host(host: nn.Module, path: str | Path) -> nn.Module:
    """Load a file of :func:`save_host` into a plain host of the same class; blocks are injected as they were.

    Args:
        host: The model as its own code builds it; it is changed and returned.
        path: The file.

    Raises:
        StateError: The file cannot be read, or was saved from another host; ``host`` is as it was.
    """
    asked, fix = f"a host saved in {path}", "load it into the host it was saved from, by the version that saved it"
    ours = "give a file written by save_host()"
    tensors, values = read_state(path, "a host", ours)
    if values.get("kind") != _KIND or "injected" not in values:
        raise StateError(asked, "a distiller's state", ours)
    before = copy.deepcopy(host.state_dict())
    fresh = values["injected"] is not None and injected(host) is None
    try:
        if fresh:
            with forked_rng():  # the blocks' first weights are drawn, and replaced
                Injected.from_spec(host, values["injected"])
        host.load_state_dict(tensors)
    except BaseException as error:
        own = injected(host)
        if fresh and own is not None:
            own.remove(host)
        host.load_state_dict(before)
        if isinstance(error, InpaintDistillError) or not isinstance(error, Exception):
            raise
        # torch names what does not fit in the second line
        found = " ".join(line.strip() for line in str(error).splitlines()[:2])
        raise StateError(asked, found, fix) from None
    return host
