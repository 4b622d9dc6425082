"""What is known about our U-Net."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.unet.network import InpaintUNet
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["UNetAdapter"]

_OURS = Variant(
    source="inpaint_distill",
    kind="InpaintUNet",
    has=("encoder", "decoder", "head"),
    convention=Convention("image+hole"),
    stages=("encoder.[0-9]",),
    attention=(),
)


class UNetAdapter(Adapter):
    """Adapt a plain U-Net over a timm backbone (ours). It has no attention of its own."""

    name: ClassVar[str] = "unet"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS,)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build an :class:`InpaintUNet`, by default one that trains on a CPU at 64 px."""
        return InpaintUNet(**{"width": 16, **kwargs})
