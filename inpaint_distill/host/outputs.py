"""The restored images among what a host puts out (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["restored_images"]


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
