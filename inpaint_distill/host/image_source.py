"""Where a host's call carries the emptied image, so that its hole can be rewritten there (ours)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.hole import Argument
from inpaint_distill.host.tree import format_path, rebuild, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from inpaint_distill.host.call import HostCall

__all__ = ["Found", "ImageSource", "find_image"]

_FLAT = 1e-6
_CLEARLY = 100  # times what the host's outputs differ by when nothing has changed


@dataclass(frozen=True, kw_only=True)
class ImageSource(Argument):
    """Some channels of one argument: the image that the host completes, empty in its hole.

    Attributes:
        channels: Which, in order.
    """

    what: ClassVar[str] = "the image"

    channels: tuple[int, ...]

    def __str__(self) -> str:
        first = self.path[0] if isinstance(self.path[0], str) else self.also
        where = f"positional argument {self.path[0]}" if first is None else f"argument {first!r}"
        return f"channels {', '.join(map(str, self.channels))} of {where}{format_path(self.path[1:])}"

    @staticmethod
    def from_spec(values: dict[str, Any]) -> ImageSource:
        """Build one from JSON values, as ``dataclasses.asdict`` gives them.

        Raises:
            TypeError: They are of other kinds.
        """
        channels = tuple(values["channels"])
        if not channels or not all(isinstance(each, int) for each in channels):
            raise TypeError(f"channels {values['channels']!r} are no list of numbers")
        return ImageSource(**{**values, "path": tuple(values["path"]), "channels": channels})

    def rewrite(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the image replaced by ``change(image)``, an image (B, C, H, W) of the same shape.

        Raises:
            CaptureError: The call does not have the argument, or not with these channels.
        """
        path, tensor = self.find(args, kwargs)
        index = list(self.channels)
        if tensor.ndim != 4 or tensor.shape[1] <= max(index):
            fix = "call the host as it was called when its completion block was injected"
            raise CaptureError(str(self), f"a tensor {tuple(tensor.shape)}", fix)
        first, last = index[0], index[-1] + 1
        if index == list(range(first, last)):
            pieces = [tensor[:, :first], change(tensor[:, first:last]), tensor[:, last:]]
            changed = torch.cat([piece for piece in pieces if piece.shape[1]], 1)
        else:
            changed = tensor.index_copy(1, torch.tensor(index, device=tensor.device), change(tensor[:, index]))
        container: Any = args if isinstance(path[0], int) else kwargs
        container = rebuild(container, lambda each, value: changed if each == path else value)
        return (container, kwargs) if isinstance(path[0], int) else (args, container)


class Found(NamedTuple):
    """What :func:`find_image` has found.

    Attributes:
        source: The image; ``None`` where there is none.
        reason: Why not; empty where there is one.
    """

    source: ImageSource | None
    reason: str = ""


def find_image(host: nn.Module, *calls: HostCall) -> Found:
    """Find an emptied image among the arguments of some calls that the host reads in its holes too.

    It is told by its values: each channel has one value in the hole, which another channel marks with two values, and
    several outside. Of several such, the one of most channels is tried first. Whether the host reads what stands in the
    hole, and does not empty its image itself, is tried: its outputs differ when something else does.

    Args:
        host: The model, as before afterwards.
        calls: Its own. Where one of them has no such image there is none; else it is that of the first.
    """
    every = [_in_call(host, call) for call in calls] or [Found(None, "the adapter does not call the host as a module")]
    return next((found for found in every if found.source is None), every[0])


def _in_call(host: nn.Module, call: HostCall) -> Found:
    size = call.image_size()
    planes = [(path, tensor) for path, tensor in call.tensors() if tensor.shape[-2:] == size]
    candidates: list[tuple[ImageSource, Tensor]] = []
    with torch.no_grad():
        for hole in (hole for _, tensor in planes for hole in _holes(tensor)):
            for path, tensor in planes:
                if tensor.ndim == 4 and tensor.is_floating_point() and len(hole) in (1, len(tensor)):
                    own = hole.expand(len(tensor), -1, -1)
                    channels = tuple(index for index, plane in enumerate(tensor.unbind(1)) if _is_emptied(plane, own))
                    if channels:
                        candidates.append((ImageSource(path=path, channels=channels).named(host), own))
        candidates.sort(key=lambda each: -len(each[0].channels))
        for source, hole in candidates:
            if _is_read(host, call, source, hole):
                return Found(source)
    if candidates:
        return Found(None, f"the host does not read what stands in the hole of {candidates[0][0]}")
    return Found(None, "no argument of the host's call is an image that is empty in a hole that another one marks")


def _holes(tensor: Tensor) -> Iterator[Tensor]:
    """Yield the planes (B, H, W), true in what may be a hole, that channels of two values mark."""
    if tensor.ndim not in (3, 4) or tensor.is_complex():
        return
    for plane in (tensor if tensor.ndim == 4 else tensor.unsqueeze(1)).detach().float().unbind(1):
        low, high = plane.amin(), plane.amax()
        upper = plane == high
        if high > low and bool((upper | (plane == low)).all()):
            yield upper
            yield ~upper


def _is_emptied(plane: Tensor, hole: Tensor) -> bool:
    """Tell whether a channel (B, H, W) is flat in the hole, and neither flat nor two-valued outside."""
    inside, outside = plane.detach()[hole].float(), plane.detach()[~hole].float()
    if not inside.numel() or not outside.numel() or inside.amax() - inside.amin() > _FLAT:
        return False
    return bool(((outside != outside.amin()) & (outside != outside.amax())).any())


def _is_read(host: nn.Module, call: HostCall, source: ImageSource, hole: Tensor) -> bool:
    """Run the host twice, and with something else in the hole, and tell whether that changes what it puts out."""

    def stir(image: Tensor) -> Tensor:
        spread = image.float().std().clamp_min(_FLAT)
        ramp = torch.linspace(-1, 1, image[0, 0].numel(), device=image.device).view(image.shape[2:])
        return torch.where(hole[:, None], (image.float().mean() + spread * ramp).to(image.dtype), image)

    args, kwargs = source.rewrite(call.args, call.kwargs or {}, stir)
    changed = dataclasses.replace(call, args=args, kwargs=kwargs)
    outputs = []
    for each in (call, call, changed):
        own = each.rebuild(lambda _, tensor: tensor.clone())  # hosts write into what they are given
        given = {tensor.data_ptr() for _, tensor in own.tensors()}
        with untouched(host), uncompiled():
            found = [tensor for _, tensor in tensors(own.run(host)) if tensor.is_floating_point()]
            outputs.append([tensor.float().clone() for tensor in found if tensor.data_ptr() not in given])
    first, again, other = outputs
    if [each.shape for each in first] != [each.shape for each in other]:
        return True
    return any(_apart(a, c) > _CLEARLY * _apart(a, b) for a, b, c in zip(first, again, other, strict=True))


def _apart(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two tensors; what is not finite in both is none."""
    if one.shape != other.shape:
        return 0.0
    difference = (one - other).abs()[one.isfinite() & other.isfinite()]
    return float(difference.max()) if difference.numel() else 0.0
