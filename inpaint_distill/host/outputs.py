"""The restored images among what a host puts out (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

__all__ = ["in_output_range", "restored_images"]

_FAR = 10.0  # times as far from the outputs: of two ranges, such as [0, 1] and [-1, 1], none is so in the first steps


def restored_images(output: Any, image: Tensor, fix: str) -> list[Tensor]:
    """Return the restored images, coarse and fine, among a host's outputs: (B, C, H, W) that carry a gradient.

    Args:
        output: Whatever the host returned.
        image: The complete image, for its shape.
        fix: What to do where there is none.

    Raises:
        ReplayError: There is none.
    """
    found = [each for _, each in tensors(output) if each.shape == image.shape and each.requires_grad]
    if not found:
        shapes = [tuple(each.shape) for _, each in tensors(output)]
        raise ReplayError(
            "the restored image among the host's outputs",
            f"outputs of shape {shapes}, none of them {tuple(image.shape)} with a gradient",
            fix,
        )
    return found


def in_output_range(images: Sequence[Tensor], taken: Tensor, given: Tensor) -> Tensor:
    """Return the complete image in the range in which a host gives its images back; does not wait for the device.

    That is the one in which it takes them, unless its images are ten times closer to the one that was given to
    ``loss()``: there are hosts that take 0..255 and give -1..1 back.

    Args:
        images: Its restored images, (B, 3, H, W) each.
        taken: The complete image in the range in which it takes its own.
        given: The same as it was given to ``loss()``.
    """
    if taken.shape != given.shape:
        return taken
    outputs = torch.stack([image.detach().float() for image in images])
    far, near = ((outputs - each.float()).abs().mean() for each in (taken, given))
    return torch.where(far > _FAR * near, given.to(taken), taken)
