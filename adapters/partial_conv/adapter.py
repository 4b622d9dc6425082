"""What is known about the partial-convolution family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.partial_conv.network import PartialConvUNet
from inpaint_distill.host.adapter import Adapter

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["PartialConvAdapter"]


class PartialConvAdapter(Adapter):
    """Adapt the partial-convolution U-Net (Liu et al., ECCV 2018).

    Called with the masked image and, as a second argument, a three-channel mask that is 1 where the image is KNOWN;
    returns (image, mask). A stage's output is (feature, mask).
    """

    name: ClassVar[str] = "partial-conv"
    stages: ClassVar[tuple[str, ...] | None] = ("encoder.[0-9]",)
    attention: ClassVar[tuple[str, ...] | None] = ()

    def matches(self, host: nn.Module) -> bool:
        """Recognise our reference by its class name and its two halves."""
        return (
            type(host).__name__ == "PartialConvUNet"
            and {"encoder", "decoder", "head"} <= dict(host.named_children()).keys()
        )

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`PartialConvUNet`, by default one that trains on a CPU at 64 px."""
        return PartialConvUNet(**{"width": 16, "levels": 4, **kwargs})

    def outputs(self, host: nn.Module, image: Tensor, hole: Tensor) -> tuple[Tensor, ...]:
        """Empty the hole, run the host and return its one image (B, 3, H, W) in [-1, 1]."""
        known = (1 - hole).expand_as(image)
        restored, _ = host(image * known, known)
        return (restored,)
