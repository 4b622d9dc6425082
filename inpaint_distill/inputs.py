"""Check the image and the mask that a user gives."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from inpaint_distill.errors import ConfigError, InputError, PlanError

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["check_complete", "check_host", "check_shapes", "check_values"]

_FLAT = 64  # values: a smaller hole may be flat by chance
_SLACK = 0.05  # resampling and augmentation overshoot a little


def check_host(host: Any) -> None:
    """Refuse what cannot be watched, or copied for a teacher.

    Raises:
        ConfigError: It is no module.
        PlanError: It is TorchScript, in whole or in part, or has no parameters yet.
    """
    asked = "a host to attach to"
    if not isinstance(host, nn.Module):
        raise ConfigError(asked, f"a {type(host).__name__}", "give the inpainting model, an nn.Module")
    for name, part in host.named_modules():
        if isinstance(part, torch.jit.ScriptModule):
            found = f"a TorchScript module{f' at {name!r}' if name else ''}, which can be neither watched nor copied"
            raise PlanError(asked, found, "give the nn.Module that it was made from")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*host.parameters(), *host.buffers())):
        raise PlanError(asked, "Lazy modules without parameters yet", "run the host once before attach()")


def check_shapes(image: Any, mask: Any, *, latent: bool = False) -> None:
    """Check what costs nothing: types, dimensions, sizes.

    Args:
        image: Complete image (B, 3, H, W), floating point.
        mask: (B or 1, 1, H, W).
        latent: The host works on latents (B, C, H, W) of another network instead.

    Raises:
        InputError: Something else was given.
    """
    for name, value in (("image", image), ("mask", mask)):
        if not isinstance(value, torch.Tensor):
            raise InputError(f"{name} as a tensor", f"a {type(value).__name__}", "give loss(image, mask) two tensors")
    shapes = f"image {tuple(image.shape)}, mask {tuple(mask.shape)}"
    asked = "image (B, 3, H, W) and mask (B, 1, H, W)"
    if image.ndim == mask.ndim == 4 and image.shape[1] == 1 and mask.shape[1] == 3:
        raise InputError(asked, f"{shapes}: they are swapped", "call loss(image, mask), the image first")
    if image.ndim != 4 or (image.shape[1] != 3 and not latent):
        raise InputError(asked, shapes, "give the complete image with 3 channels, batch first")
    if mask.ndim != 4 or mask.shape[1] != 1:
        raise InputError(asked, shapes, "give the mask with 1 channel, 1 = hole, batch first")
    if mask.shape[2:] != image.shape[2:]:
        raise InputError(asked, f"{shapes}: different sizes", "resize the mask to the image with mode='nearest'")
    if mask.shape[0] not in (1, image.shape[0]):
        raise InputError(asked, f"{shapes}: different batches", "give one mask per image, or one for all")
    if mask.device != image.device:
        raise InputError("image and mask on one device", f"{image.device} and {mask.device}", "move one of them")
    if not image.is_floating_point():
        raise InputError("an image in [-1, 1] or [0, 1]", f"{image.dtype}", "convert it: image.float() / 127.5 - 1")


def check_values(image: Tensor, mask: Tensor, *, latent: bool = False, hole_elsewhere: bool = False) -> None:
    """Check what reads the values and so waits for the device: range, 0/1 mask, a hole to fill.

    Args:
        image: (B, C, H, W).
        mask: (B or 1, 1, H, W).
        latent: The image is latents, of any range.
        hole_elsewhere: This is a part of a batch, of which another process may have all the holes.

    Raises:
        InputError: The image is out of range or not finite, the mask is not 0/1, or there is no hole.
    """
    low, high = (float(value) for value in torch.aminmax(image.detach()))
    if not ((latent and math.isfinite(low + high)) or (low >= -1 - _SLACK and high <= 1 + _SLACK)):
        raise InputError(
            "finite latents" if latent else "an image in [-1, 1] or [0, 1]",
            f"values from {low:.4g} to {high:.4g}",
            "rescale it (image / 127.5 - 1 for 0..255); give loss() the image as it was before any other normalisation",
        )
    hole = mask != 0
    if not bool(((mask == 1) | ~hole).all()):
        bad = mask[(mask != 1) & hole]
        raise InputError(
            "a mask of zeros and ones",
            f"other values, such as {float(bad[0]):.4g}",
            "threshold it after resizing, before the host is given it: mask = (mask > 0.5).float()",
        )
    if not hole_elsewhere and not bool(hole.any()):
        raise InputError(
            "a mask with a hole", "zeros everywhere", "give the mask as 1 = hole; skip batches without one"
        )


def check_complete(image: Tensor, mask: Tensor) -> None:
    """Check that the image still has its hole's content: painted in one colour, it is not the complete image.

    Raises:
        InputError: Every hole of the batch is one flat colour while the known pixels are not.
    """
    hole = (mask != 0).expand_as(image)
    inside, outside = image.detach()[hole], image.detach()[~hole]
    flat = (image.amax() + 1).detach()
    lowest = torch.where(hole, image.detach(), flat).amin((0, 2, 3))
    highest = torch.where(hole, image.detach(), -flat).amax((0, 2, 3))
    if inside.numel() > _FLAT and outside.numel() and bool((highest <= lowest).all()) and outside.std() > 0:
        raise InputError(
            "the complete image",
            "one flat colour in every hole",
            "give loss() the image as it was before the hole was emptied",
        )
