"""Save and load a host that keeps what was injected into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from inpaint_distill.errors import StateError
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
    asked = f"a host saved in {path}"
    tensors, values = read_state(path, "a host", "save_host()")
    if values.get("kind") != _KIND:
        raise StateError(asked, "a distiller's state", "give a file written by save_host()")
    fresh = None
    if values["injected"] is not None and injected(host) is None:
        try:
            with forked_rng():  # the blocks' first weights are drawn, and replaced
                fresh = Injected.from_spec(host, values["injected"])
        except (AttributeError, KeyError, TypeError) as error:
            own = injected(host)
            if own is not None:
                own.remove(host)
            raise StateError(asked, f"{error}", "load it into the host it was saved from") from None
    before = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    try:
        host.load_state_dict(tensors)
    except RuntimeError as error:
        if fresh is not None:
            fresh.remove(host)
        host.load_state_dict({name: before[name] for name in host.state_dict()})
        raise StateError(asked, str(error).splitlines()[1].strip(), "load it into the host it was saved from") from None
    return host
