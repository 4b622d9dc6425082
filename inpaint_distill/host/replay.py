"""Repeat the host's own call with the hole filled: which channel of which argument is image, mask or neither (ours).

No two inpainting models share a call convention, but all of them pass pixels and mask. Each channel of each argument
is compared with the image and the mask that the user gives to the loss:

- *constant*: one value everywhere (a plane of ones, a timestep map): passed on as it is;
- *mask*: ``a * mask + b``, also at a lower resolution: becomes ``b``, an empty hole;
- *image*: ``sum_c a_c * image_c + b`` at every known pixel, whatever stands in the hole: becomes that sum everywhere.

Anything else is an error that names the argument and the channel, unless an adapter declares what it is: *passed on*
(edges, noise), or *latent*, which becomes the complete image's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.call import HostCall, argument_name
from inpaint_distill.host.hole import HoleSource
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from inpaint_distill.host.image_source import ImageSource
    from inpaint_distill.host.tree import Path

__all__ = ["Recipe", "derive_recipe"]

_ADAPTER = "write an Adapter with `outputs` and `replayable = False`, and pass it: attach(..., adapter=...)"
_FIT_PIXELS = 65536  # enough for an affine fit; every pixel is checked


@dataclass
class _Channels:
    """How one argument follows from the complete image: ``weight @ image + bias``, or kept where ``keep`` is set."""

    weight: Tensor  # (C, image channels)
    bias: Tensor  # (C,)
    slope: Tensor  # (C,), of a mask
    keep: Tensor  # (C,) bool
    kinds: tuple[str, ...]


@dataclass
class Recipe:
    """How to turn the host's call into the teacher's: the same call, with the complete image and an empty hole.

    Attributes:
        channels: The arguments that carry pixels, by path; everything else is passed on.
        signature: The shape of the calls that this recipe fits.
    """

    channels: dict[Path, _Channels]
    signature: tuple[object, ...]
    names: dict[Path, str] = field(default_factory=dict)

    def apply(self, call: HostCall, image: Tensor) -> HostCall:
        """Return the call with every pixel argument computed from the complete ``image`` (B, C, H, W)."""

        def complete(path: Path, tensor: Tensor) -> Tensor:
            found = self.channels.get(path)
            return tensor if found is None else _complete(tensor, image, found)

        return call.rebuild(complete)

    def own(self, call: HostCall, image: Tensor, mask: Tensor) -> HostCall:
        """Return the host's call, so that it can be repeated later."""
        return call

    def target(self, call: HostCall, image: Tensor) -> Tensor:
        """Return the complete image in the range in which the host takes it, (B, 3, H, W)."""
        for path, tensor in call.tensors():
            found = self.channels.get(path)
            rows = [i for i, kind in enumerate(found.kinds) if kind == "image"] if found else []
            if found is not None and len(rows) >= 3:
                return _complete(_planes(tensor), image, found)[:, rows[:3]]
        raise ReplayError(
            "the complete image in the host's own range",
            "no argument of the host carries three image channels",
            f"use teacher='ema', which needs features alone, or {_ADAPTER}",
        )

    def hole(self, host: nn.Module) -> HoleSource | None:
        """Return where the host's call carries the hole; ``None`` where it does not."""
        for path, found in self.channels.items():
            if "mask" in found.kinds:
                channel = found.kinds.index("mask")
                slope, bias = float(found.slope[channel]), float(found.bias[channel])
                return HoleSource(path=path, channel=channel, slope=slope, bias=bias).named(host)
        return None

    def has_image(self, source: ImageSource) -> bool:
        """Tell whether all channels of an argument that are thought to be the image are."""
        for found in map(self.channels.get, source.paths):
            if found is not None and max(source.channels) < len(found.kinds):
                return all(found.kinds[channel] in ("image", "latent") for channel in source.channels)
        return False

    def fits(self, call: HostCall, image: Tensor, mask: Tensor) -> bool:
        """Tell whether a further call is still explained by this recipe; synchronises with the device."""
        known = mask == 0
        for path, tensor in call.tensors():
            found = self.channels.get(path)
            if found is None:
                continue
            planes = _planes(tensor)
            holes = [i for i, kind in enumerate(found.kinds) if kind == "mask"]
            if holes and planes.shape[2:] == mask.shape[2:]:
                slope, bias = (each[holes].to(image).view(-1, 1, 1) for each in (found.slope, found.bias))
                expected = (slope * mask + bias).expand(image.shape[0], -1, -1, -1)
                if not _equal(planes[:, holes].expand_as(expected), expected, torch.ones_like(expected).bool()):
                    return False
            if "image" not in found.kinds:
                continue
            if planes.shape[0] != image.shape[0] or planes.shape[2:] != image.shape[2:]:
                return False
            rows = [i for i, kind in enumerate(found.kinds) if kind == "image"]
            expected = _complete(planes, image, found)[:, rows]
            if not _equal(planes[:, rows], expected, known.expand_as(expected)):
                return False
        return True

    @property
    def tells(self) -> bool:
        """Whether :meth:`fits` can tell one batch from another."""
        return any("image" in found.kinds for found in self.channels.values())

    def describe(self) -> str:
        """Say in one line what each argument carries."""
        parts = []
        for path, found in self.channels.items():
            counts = {kind: found.kinds.count(kind) for kind in dict.fromkeys(found.kinds)}
            parts.append(f"{self.names[path]}: " + " + ".join(f"{n} {kind}" for kind, n in counts.items()))
        return "; ".join(parts)


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
    found: dict[Path, _Channels] = {}
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
            _ADAPTER,
        )
    if "mask" not in kinds and (place := _mask_beside(host, mask64)):
        raise ReplayError(
            "the mask among the arguments of the host's call",
            f"none carries it, but {place} holds it: a teacher would keep that of the first batch",
            f"put the host into a module whose forward takes the mask and sets it, or {_ADAPTER}",
        )
    return Recipe(found, call.signature(), names)


def find_hole(host: nn.Module, call: HostCall, mask: Tensor) -> HoleSource | None:
    """Return where a host's call carries the mask (B or 1, 1, H, W), whatever else it carries, or ``None``."""
    with torch.no_grad():
        for path, tensor in call.tensors():
            planes = _planes(tensor)
            if planes.ndim != 4 or min(planes.shape[2:]) < 2 or len({len(planes), len(mask)} - {1}) > 1:
                continue
            hole = mask.double().expand(max(len(planes), len(mask)), -1, -1, -1)
            planes = planes.expand(len(hole), -1, -1, -1)
            for channel in range(planes.shape[1]):
                if (line := _fit_mask(planes[:, channel : channel + 1], hole)) is not None:
                    slope, bias = map(float, line)
                    return HoleSource(path=path, channel=channel, slope=slope, bias=bias).named(host)
    return None


def _mask_beside(host: nn.Module, mask: Tensor) -> str:
    """Name the attribute or buffer in which a host was given its mask; empty where there is none."""
    least = min(mask.shape[2:]) / 4  # smaller ones may be kernels
    for name, part in host.named_modules():
        for path, tensor in tensors(vars(part)):
            planes = _planes(tensor.detach())
            if planes.ndim == 4 and len(planes) in (1, len(mask)) and min(planes.shape[2:]) >= least:
                plane = planes[:, :1].to(mask).expand(len(mask), -1, -1, -1)
                if _fit_mask(plane, mask) is not None:
                    keys = path[1:] if path[0] == "_buffers" else path
                    return ".".join(map(str, (name, *keys) if name else keys))
    return ""


def _carries_pixels(tensor: Tensor, image: Tensor) -> bool:
    """Tell whether a tensor argument has to be explained; latents, labels and timesteps are passed on."""
    if tensor.ndim == 3:
        return tensor.shape[0] == image.shape[0] and tensor.shape[1:] == image.shape[2:]
    return tensor.ndim > 3 and min(tensor.shape[-2:]) > 1


def _planes(tensor: Tensor) -> Tensor:
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor


def _complete(tensor: Tensor, image: Tensor, channels: _Channels) -> Tensor:
    weight, bias = channels.weight.to(image), channels.bias.to(image)
    planes = _planes(tensor)
    if bool({"image", "latent"} & set(channels.kinds)):
        with torch.autocast(image.device.type, enabled=False):  # pixels stay exact in a mixed-precision step
            filled = torch.einsum("oc,bchw->bohw", weight, image) + bias.view(-1, 1, 1)
    else:
        filled = bias.view(-1, 1, 1).expand(planes.shape)
    keep = channels.keep.to(image.device)
    return torch.where(keep.view(-1, 1, 1), planes, filled.to(planes.dtype)).view(tensor.shape)


def _equal(value: Tensor, expected: Tensor, where: Tensor) -> bool:
    """Compare at the precision of ``value``'s type, relative to the range of what is expected."""
    tolerance = 2e-2 if value.dtype in (torch.float16, torch.bfloat16) else 1e-4
    error = (value.double() - expected.double()).abs()[where]
    scale = expected.double().abs()[where]
    return error.numel() == 0 or bool(error.max() <= tolerance * (1 + scale.max()))


def _explain(name: str, tensor: Tensor, image: Tensor, mask: Tensor, declared: Mapping[int, int | None]) -> _Channels:
    planes = _planes(tensor)
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
        if (line := _fit_mask(plane, mask)) is not None:
            slope[index], bias[index] = line
            kinds.append("mask")
        elif _is_constant(plane):
            keep[index] = True
            kinds.append("constant")
        elif (mixture := _fit_image(plane, image, mask, expected)) is not None:
            weight[index], bias[index] = mixture
            kinds.append("image")
        else:
            raise _unexplained(name, index, plane, image, mask)
    return _Channels(weight, bias, slope, keep, tuple(kinds))


def _is_constant(plane: Tensor) -> bool:
    values = plane.double().flatten(1)
    return bool((values.amax(1) - values.amin(1)).max() <= 1e-6 * (1 + values.abs().max()))


def _fit_mask(plane: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fit ``a * mask + b``, a not zero, the mask reduced to the plane's size where it is smaller; return a and b."""
    size = plane.shape[2:]
    reduced = (
        [mask]
        if size == mask.shape[2:]
        else [
            F.interpolate(mask, size, mode="nearest"),
            F.adaptive_max_pool2d(mask, (size[0], size[1])),
            F.adaptive_avg_pool2d(mask, (size[0], size[1])),
        ]
    )
    for hole in reduced:
        coefficients = _least_squares(plane.double().flatten()[:, None], hole.flatten()[:, None])
        if coefficients is not None:
            slope, bias = coefficients
            fitted = slope[0] * hole + bias
            if slope[0].abs() > 1e-3 and _equal(plane, fitted, torch.ones_like(hole, dtype=torch.bool)):
                return slope[0], bias
    return None


def _fit_image(plane: Tensor, image: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor] | None:
    """Fit one image channel, the expected one first, then a mixture of all (a grey image), on known pixels."""
    if plane.shape[2:] != image.shape[2:]:
        return None
    known = (mask == 0)[:, 0]
    values = plane.double()[:, 0][known][:, None]
    colours = image.movedim(1, -1)[known]
    count = image.shape[1]
    for columns in [*([(first + i) % count] for i in range(count)), list(range(count))]:
        coefficients = _least_squares(values, colours[:, columns])
        if coefficients is None:
            continue
        slopes, bias = coefficients
        fitted = colours[:, columns] @ slopes + bias
        if slopes.abs().max() > 1e-3 and _equal(plane[:, 0][known], fitted, torch.ones_like(fitted, dtype=torch.bool)):
            weight = torch.zeros(count, dtype=torch.float64, device=image.device)
            weight[columns] = slopes
            return weight, bias
    return None


def _least_squares(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (slopes, bias) of ``values`` (N, 1) on ``columns`` (N, K), or ``None`` where the columns do not vary."""
    stride = max(1, len(columns) // _FIT_PIXELS)
    values, columns = values[::stride], columns[::stride]
    if len(columns) < 2 or bool((columns.std(0) < 1e-6).any()):
        return None
    # The ridge only matters where channels are equal (a grey photograph): it picks the smallest of the equal fits.
    centred, mean = columns - columns.mean(0), values.mean(0)
    gram = centred.T @ centred
    gram = gram + 1e-10 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    slopes = torch.linalg.solve(gram, centred.T @ (values - mean))[:, 0]
    bias = mean[0] - columns.mean(0) @ slopes
    return slopes.round(decimals=6), bias.round(decimals=6)


def _unexplained(name: str, index: int, plane: Tensor, image: Tensor, mask: Tensor) -> ReplayError:
    asked = f"channel {index} of {name} in terms of the image and the mask given to loss()"
    if _fit_image(plane, image, 1 - mask, 0) is not None:
        found = "it matches the image inside the mask: the mask is 1 where pixels are known"
        return ReplayError(asked, found, "give loss() the mask as 1 = hole: distiller.loss(image, 1 - mask)")
    values = plane.double()
    found = (
        f"values from {values.min():.3g} to {values.max():.3g}, size {tuple(plane.shape[2:])}: "
        "neither constant, nor the mask, nor the image at the known pixels"
    )
    fix = (
        f"give loss() the very image and mask that the host ran on; if the host takes something else (noise, edges, "
        f"latents), {_ADAPTER}"
    )
    return ReplayError(asked, found, fix)
