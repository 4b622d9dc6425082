"""What a host's weights say of the blocks among them, as numbers beside the weights (ours)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.errors import StateError
from inpaint_distill.host.trace import RESERVED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["DESCRIPTION", "EXTRA", "encode", "kinds_and_places", "read", "spec_in"]

EXTRA = "_extra_state"
"""torch's name for what ``get_extra_state()`` returns."""
DESCRIPTION = f"{RESERVED}.{EXTRA}"
"""In a host's ``state_dict``: what is injected into it."""
_ROOM = 1024  # characters: more than a description of where the hole is has


def encode(spec: Mapping[str, Any], like: Tensor) -> Tensor:
    """Write a description's characters as numbers.

    Safetensors, averages of states and changes of type leave them alone: they are of the blocks' type and device, as
    what averages all of a state at once wants them, and as many before it is known where the hole is, so that it finds
    the same shapes.

    Args:
        spec: What :meth:`inpaint_distill.injection.Injected.to_spec` returns.
        like: A parameter of the blocks.
    """
    short = len(json.dumps({**spec, "source": None}))
    length = -(-(short + _ROOM) // _ROOM) * _ROOM
    codes = torch.frombuffer(bytearray(json.dumps(spec).ljust(length), "ascii"), dtype=torch.uint8)
    return codes.to(like)


def read(state: Any) -> dict[str, Any] | None:
    """Return what :func:`encode` has written; ``None`` of anything else."""
    try:
        spec = json.loads(bytes(int(value) for value in state.float().round().tolist()))
    except (AttributeError, TypeError, ValueError, OverflowError, RuntimeError):  # or it is on the meta device
        return None
    return spec if isinstance(spec, dict) and {"source", "blocks"} <= spec.keys() else None


def spec_in(state: Mapping[str, Any], prefix: str = "") -> dict[str, Any] | None:
    """Return what a host's state says is injected into it; ``None`` where nothing is.

    Args:
        state: A ``state_dict``.
        prefix: What stands before the host's own names.

    Raises:
        StateError: There are weights of blocks without a readable description of these.
    """
    names = [name for name in state if name.startswith(f"{prefix}{RESERVED}.")]
    if not names:
        return None
    spec = read(state.get(f"{prefix}{DESCRIPTION}"))
    if spec is None:
        fix = "attach(..., image=image, mask=mask) before they are loaded, or give load_host() a file of save_host()"
        raise StateError(f"weights with injected blocks, such as {names[-1]!r}", "no description of the blocks", fix)
    return spec


def kinds_and_places(spec: Mapping[str, Any]) -> list[str]:
    """Name each block that a description has: images, and with them the sizes of stages, may differ."""
    image = spec.get("image")
    found = [] if image is None else [f"{image['kind']} at the input"]
    for each in spec["blocks"]:
        stage = each["stage"]
        found.append(f"{each['kind']} after {stage['name']} (call {stage['call']})")
    return found
