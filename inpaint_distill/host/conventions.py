"""Call a host of which nothing is known, for a dry run only: the common ways to pass image and mask, tried in turn."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from inpaint_distill.errors import PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.guard import untouched

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Convention", "find_convention"]

Convention: TypeAlias = Callable[[Tensor, Tensor], HostCall]


def _concatenated(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((torch.cat([image * (1 - hole), hole], 1),))


def _separate(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((image * (1 - hole), hole))


def _with_ones(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((torch.cat([image * (1 - hole), torch.ones_like(hole), hole], 1),))


def _with_ones_and_mask(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((*_with_ones(image, hole).args, hole))


def _known_rgb(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((image * (1 - hole), (1 - hole).expand_as(image)))


def _image_only(image: Tensor, hole: Tensor) -> HostCall:
    return HostCall((image * (1 - hole),))


# How 45 public hosts take their pixels, the most frequent first.
_CONVENTIONS: dict[str, Convention] = {
    "host(cat[image, mask])": _concatenated,
    "host(image, mask)": _separate,
    "host(cat[image, ones, mask])": _with_ones,
    "host(cat[image, ones, mask], mask)": _with_ones_and_mask,
    "host(image, known as 3 channels)": _known_rgb,
    "host(image)": _image_only,
}


def find_convention(host: nn.Module, image: Tensor, mask: Tensor) -> tuple[str, Convention]:
    """Return the first convention under which the host runs, and its name; the host is as before afterwards.

    Raises:
        PlanError: It runs under none of them.
    """
    for name, convention in _CONVENTIONS.items():
        # Whatever a foreign forward raises means "not this one".
        with suppress(Exception), untouched(host), torch.no_grad():
            convention(image, mask).run(host)
            return name, convention
    raise PlanError(
        f"a dry run of {type(host).__name__} on an image and a mask",
        f"it runs under none of: {', '.join(_CONVENTIONS)}",
        "leave image and mask out of attach(), so that your own first call is used, or pass an adapter with `outputs`",
    )
