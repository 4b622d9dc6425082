"""Where a host's call carries the emptied image, so that its hole can be rewritten there (ours)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.hole import Argument
from inpaint_distill.host.tree import format_path, rebuild, tensors

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from inpaint_distill.host.call import HostCall

__all__ = ["ImageSource", "find_image"]

_FLAT = 1e-6


@dataclass(frozen=True, kw_only=True)
class ImageSource(Argument):
    """Some channels of one argument: the image that the host completes, empty in its hole.

    Attributes:
        channels: Which, in order.
    """

    what: ClassVar[str] = "the image"

    channels: tuple[int, ...]

    def __str__(self) -> str:
        first = self.path[0]
        where = f"argument {first!r}" if isinstance(first, str) else f"positional argument {first}"
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
            CaptureError: The call does not have the argument.
        """
        path, tensor = self.find(args, kwargs)
        index = list(self.channels)
        first, last = index[0], index[-1] + 1
        if index == list(range(first, last)):
            pieces = [tensor[:, :first], change(tensor[:, first:last]), tensor[:, last:]]
            changed = torch.cat([piece for piece in pieces if piece.shape[1]], 1)
        else:
            changed = tensor.index_copy(1, torch.tensor(index, device=tensor.device), change(tensor[:, index]))
        container: Any = args if isinstance(path[0], int) else kwargs
        container = rebuild(container, lambda each, value: changed if each == path else value)
        return (container, kwargs) if isinstance(path[0], int) else (args, container)


def find_image(host: nn.Module, call: HostCall) -> ImageSource | None:
    """Find an emptied image among a call's arguments that the host reads in its holes too.

    It is told by its values: each channel has one value in the hole, which another channel marks with two values, and
    several outside. Whether the host reads what stands there, and does not empty its image itself, is tried: its
    outputs differ when something else does.

    Args:
        host: The model, as before afterwards.
        call: Its own call.

    Returns:
        The image; ``None`` where there is none, or the host does not read it in its holes.
    """
    size = call.image_size()
    planes = [(path, tensor) for path, tensor in call.tensors() if tensor.ndim == 4 and tensor.shape[2:] == size]
    with torch.no_grad():
        for hole in (hole for _, tensor in planes for hole in _holes(tensor)):
            for path, tensor in planes:
                found = tuple(index for index, plane in enumerate(tensor.unbind(1)) if _is_emptied(plane, hole))
                if found:
                    source = ImageSource(path=path, channels=found).named(host)
                    return source if _is_read(host, call, source, hole) else None
    return None


def _holes(tensor: Tensor) -> list[Tensor]:
    """Return the planes (B, H, W), true in what may be a hole, that channels of two values mark."""
    found = []
    for plane in tensor.detach().float().unbind(1):
        low, high = plane.amin(), plane.amax()
        upper = plane == high
        if high > low and bool((upper | (plane == low)).all()):
            found += [upper, ~upper]
    return found


def _is_emptied(plane: Tensor, hole: Tensor) -> bool:
    """Tell whether a channel (B, H, W) is flat in the hole, and neither flat nor two-valued outside."""
    if plane.shape != hole.shape:
        return False
    inside, outside = plane.detach()[hole].float(), plane.detach()[~hole].float()
    if not inside.numel() or not outside.numel() or inside.amax() - inside.amin() > _FLAT:
        return False
    return bool(((outside != outside.amin()) & (outside != outside.amax())).any())


def _is_read(host: nn.Module, call: HostCall, source: ImageSource, hole: Tensor) -> bool:
    """Run the host with something else in the hole, and tell whether that changes what it puts out."""

    def stir(image: Tensor) -> Tensor:
        spread = image.float().std().clamp_min(_FLAT)
        other = image.float().mean() + spread * torch.linspace(-1, 1, image[0, 0].numel()).view(image.shape[2:]).to(
            image
        )
        return torch.where(hole[:, None], other.to(image.dtype), image)

    outputs = []
    args, kwargs = source.rewrite(call.args, call.kwargs or {}, stir)
    for each in (call, dataclasses.replace(call, args=args, kwargs=kwargs)):
        with untouched(host), uncompiled():
            outputs.append([tensor.clone() for _, tensor in tensors(each.run(host))])
    return any(one.shape != other.shape or not torch.equal(one, other) for one, other in zip(*outputs, strict=True))
