"""Repeat the host's own call with the hole filled (ours).

Of what each channel of each argument was found to be (:mod:`~inpaint_distill.host.explain`), a *constant* is passed
on as it is, a *mask* ``a * mask + b`` becomes ``b``, an empty hole, and an *image*, known outside the hole alone,
becomes the complete one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inpaint_distill.errors import ReplayError
from inpaint_distill.host.affine import equal, planes_of
from inpaint_distill.host.hole import HoleSource

if TYPE_CHECKING:
    from torch import nn

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.image_source import ImageSource
    from inpaint_distill.host.tree import Path

__all__ = ["WRITE_ADAPTER", "Channels", "Recipe"]

WRITE_ADAPTER = "write an Adapter with `outputs` and `replayable = False`, and pass it: attach(..., adapter=...)"
"""What to do about a call that cannot be explained."""


@dataclass
class Channels:
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

    channels: dict[Path, Channels]
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
                return _complete(planes_of(tensor), image, found)[:, rows[:3]]
        raise ReplayError(
            "the complete image in the host's own range",
            "no argument of the host carries three image channels",
            f"use teacher='ema', which needs features alone, or {WRITE_ADAPTER}",
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
            planes = planes_of(tensor)
            holes = [i for i, kind in enumerate(found.kinds) if kind == "mask"]
            if holes and planes.shape[2:] == mask.shape[2:]:
                slope, bias = (each[holes].to(image).view(-1, 1, 1) for each in (found.slope, found.bias))
                expected = (slope * mask + bias).expand(image.shape[0], -1, -1, -1)
                if not equal(planes[:, holes].expand_as(expected), expected, torch.ones_like(expected).bool()):
                    return False
            if "image" not in found.kinds:
                continue
            if planes.shape[0] != image.shape[0] or planes.shape[2:] != image.shape[2:]:
                return False
            rows = [i for i, kind in enumerate(found.kinds) if kind == "image"]
            expected = _complete(planes, image, found)[:, rows]
            if not equal(planes[:, rows], expected, known.expand_as(expected)):
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


def _complete(tensor: Tensor, image: Tensor, channels: Channels) -> Tensor:
    weight, bias = channels.weight.to(image), channels.bias.to(image)
    planes = planes_of(tensor)
    if bool({"image", "latent"} & set(channels.kinds)):
        with torch.autocast(image.device.type, enabled=False):  # pixels stay exact in a mixed-precision step
            filled = torch.einsum("oc,bchw->bohw", weight, image) + bias.view(-1, 1, 1)
    else:
        filled = bias.view(-1, 1, 1).expand(planes.shape)
    keep = channels.keep.to(image.device)
    return torch.where(keep.view(-1, 1, 1), planes, filled.to(planes.dtype)).view(tensor.shape)
