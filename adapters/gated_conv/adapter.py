"""What is known about the DeepFill v2 family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.gated_conv.network import GatedConvGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["GatedConvAdapter"]

_TWO_IMAGES = ((0,), (1,))

_OURS = Variant(
    source="inpaint_distill",
    kind="GatedConvGenerator",
    has=("coarse", "refine.encoder", "refine.attention"),
    convention=Convention("image+ones+hole", outputs=_TWO_IMAGES),
    stages=("refine.encoder.0", "refine.encoder.1", "refine.encoder.2"),
    attention=("refine.attention",),
)


class GatedConvAdapter(Adapter):
    """Adapt DeepFill v2, gated convolutions and contextual attention (Yu et al., ICCV 2019).

    Two stages, (coarse, fine). Tapped is the refinement network's convolution branch, whose encoder reaches the image
    last.
    """

    name: ClassVar[str] = "gated-conv"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS,)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`GatedConvGenerator`, by default one that trains on a CPU at 64 px."""
        return GatedConvGenerator(**{"width": 16, **kwargs})
