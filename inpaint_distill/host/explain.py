"""Explain a host's call: which channel of which argument is image, mask or neither (ours).

No two inpainting models share a call convention, but all of them pass pixels and mask. Each channel of each argument
is compared with the image and the mask that the user gives to the loss:

- *constant*: one value everywhere (a plane of ones, a timestep map);
- *mask*: ``a * mask + b``, also at a lower resolution;
- *image*: ``sum_c a_c * image_c + b`` at every known pixel, whatever stands in the hole.

Anything else is an error that names the argument and the channel, unless an adapter declares what it is: *passed on*
(edges, noise), or *latent*.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.affine import fit_image, fit_mask, is_constant, planes_of
from inpaint_distill.host.call import HostCall, argument_name
from inpaint_distill.host.hole import HoleSource
from inpaint_distill.host.replay import WRITE_ADAPTER, Channels, Recipe
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from inpaint_distill.host.tree import Path

__all__ = ["derive_recipe", "find_hole"]


def derive_recipe(
    host: nn.Module,
    call: HostCall,
    image: Tensor,
    mask: Tensor,
    declared: Mapping[Path, Mapping[int, int | None]] | None = None,
) -> Recipe:
    """Explain every pixel argument of a host's call by the image and the mask.

    Args:
        host: The model that was called; its signature is read, and whether it was given the mask beside the call.
        call: Its arguments.
        image: Complete image (B, 3, H, W), in any affine range.
        mask: (B, 1, H, W), 1 in the hole.
        declared: Channels that an adapter explains, by argument: each is passed on as it is (``None``), or becomes a
            channel of the complete image.

    Raises:
        ReplayError: A channel is neither image nor mask nor constant, no argument carries the image, or the mask is
            carried by an attribute alone.
    """
    if not bool((mask == 0).any()):
        raise ReplayError(
            "which channels of the host's arguments are image and mask",
            "no known pixel in the first batch: the mask is 1 everywhere",
            "give the mask as 1 = hole, and begin with a batch that has known pixels",
        )
    found: dict[Path, Channels] = {}
    names: dict[Path, str] = {}
    with torch.no_grad():
        image64, mask64 = image.double(), mask.double().expand(image.shape[0], 1, *image.shape[2:])
        for path, tensor in call.tensors():
            if _carries_pixels(tensor, image):
                names[path] = argument_name(host, path)
                found[path] = _explain(names[path], tensor, image64, mask64, (declared or {}).get(path, {}))
    kinds = [kind for channels in found.values() for kind in channels.kinds]
    if not {"image", "latent"} & set(kinds):
        shapes = [f"{argument_name(host, path)} {tuple(t.shape)}" for path, t in call.tensors()]
        raise ReplayError(
            "the image among the arguments of the host's call",
            f"{', '.join(shapes) or 'no tensor argument'}: none carries the image given to loss()",
            WRITE_ADAPTER,
        )
    if "mask" not in kinds and (place := _mask_beside(host, mask64)):
        raise ReplayError(
            "the mask among the arguments of the host's call",
            f"none carries it, but {place} holds it: a teacher would keep that of the first batch",
            f"put the host into a module whose forward takes the mask and sets it, or {WRITE_ADAPTER}",
        )
    return Recipe(found, call.signature(), names)


def find_hole(host: nn.Module, call: HostCall, mask: Tensor) -> HoleSource | None:
    """Return where a host's call carries the mask (B or 1, 1, H, W), whatever else it carries, or ``None``."""
    with torch.no_grad():
        for path, tensor in call.tensors():
            planes = planes_of(tensor)
            if planes.ndim != 4 or min(planes.shape[2:]) < 2 or len({len(planes), len(mask)} - {1}) > 1:
                continue
            hole = mask.double().expand(max(len(planes), len(mask)), -1, -1, -1)
            planes = planes.expand(len(hole), -1, -1, -1)
            for channel in range(planes.shape[1]):
                if (line := fit_mask(planes[:, channel : channel + 1], hole)) is not None:
                    slope, bias = map(float, line)
                    return HoleSource(path=path, channel=channel, slope=slope, bias=bias).named(host)
    return None


def _mask_beside(host: nn.Module, mask: Tensor) -> str:
    """Name the attribute or buffer in which a host was given its mask; empty where there is none."""
    least = min(mask.shape[2:]) / 4  # smaller ones may be kernels
    for name, part in host.named_modules():
        for path, tensor in tensors(vars(part)):
            planes = planes_of(tensor.detach())
            if planes.ndim == 4 and len(planes) in (1, len(mask)) and min(planes.shape[2:]) >= least:
                plane = planes[:, :1].to(mask).expand(len(mask), -1, -1, -1)
                if fit_mask(plane, mask) is not None:
                    keys = path[1:] if path[0] == "_buffers" else path
                    return ".".join(map(str, (name, *keys) if name else keys))
    return ""


def _carries_pixels(tensor: Tensor, image: Tensor) -> bool:
    """Tell whether a tensor argument has to be explained; latents, labels and timesteps are passed on."""
    if tensor.ndim == 3:
        return tensor.shape[0] == image.shape[0] and tensor.shape[1:] == image.shape[2:]
    return tensor.ndim > 3 and min(tensor.shape[-2:]) > 1


def _explain(name: str, tensor: Tensor, image: Tensor, mask: Tensor, declared: Mapping[int, int | None]) -> Channels:
    planes = planes_of(tensor)
    if planes.shape[0] == 1 and planes.ndim == 4:  # one mask, or one plane, for the whole batch
        planes = planes.expand(image.shape[0], -1, -1, -1)
    batch, channels = planes.shape[:2]
    if planes.ndim != 4 or batch != image.shape[0]:
        raise ReplayError(
            f"image or mask in {name}",
            f"shape {tuple(tensor.shape)} beside an image of shape {tuple(image.shape)}",
            "run the host on the batch given to loss()",
        )
    weight = torch.zeros(channels, image.shape[1], dtype=torch.float64, device=image.device)
    bias = torch.zeros(channels, dtype=torch.float64, device=image.device)
    slope = torch.zeros(channels, dtype=torch.float64, device=image.device)
    keep = torch.zeros(channels, dtype=torch.bool, device=image.device)
    kinds: list[str] = []
    for index in range(channels):
        plane = planes[:, index : index + 1]
        if index in declared:
            source = declared[index]
            keep[index] = source is None
            if source is not None:
                weight[index, source] = 1
            kinds.append("passed on" if source is None else "latent")
            continue
        expected = kinds.count("image") % image.shape[1]
        if (line := fit_mask(plane, mask)) is not None:
            slope[index], bias[index] = line
            kinds.append("mask")
        elif is_constant(plane):
            keep[index] = True
            kinds.append("constant")
        elif (mixture := fit_image(plane, image, mask, expected)) is not None:
            weight[index], bias[index] = mixture
            kinds.append("image")
        else:
            raise _unexplained(name, index, plane, image, mask)
    return Channels(weight, bias, slope, keep, tuple(kinds))


def _unexplained(name: str, index: int, plane: Tensor, image: Tensor, mask: Tensor) -> ReplayError:
    asked = f"channel {index} of {name} in terms of the image and the mask given to loss()"
    if fit_image(plane, image, 1 - mask, 0) is not None:
        found = "it matches the image inside the mask: the mask is 1 where pixels are known"
        return ReplayError(asked, found, "give loss() the mask as 1 = hole: distiller.loss(image, 1 - mask)")
    values = plane.double()
    found = (
        f"values from {values.min():.3g} to {values.max():.3g}, size {tuple(plane.shape[2:])}: "
        "neither constant, nor the mask, nor the image at the known pixels"
    )
    fix = (
        f"give loss() the very image and mask that the host ran on; if the host takes something else (noise, edges, "
        f"latents), {WRITE_ADAPTER}"
    )
    return ReplayError(asked, found, fix)
