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

_NIPPONJO = Variant(
    source="nipponjo/deepfillv2-pytorch",
    kind="Generator",
    has=("stage1.down_block2", "stage2.conv_conv1", "stage2.conv_down_block2", "stage2.contextual_attention"),
    convention=Convention("image+ones+hole", "hole", outputs=_TWO_IMAGES),
    stages=("stage2.conv_conv1", "stage2.conv_down_block1", "stage2.conv_down_block2"),
    attention=("stage2.contextual_attention",),
)

# It empties the hole itself, so that its own training hands it the complete image.
_CSQIANGWEN = Variant(
    source="csqiangwen/DeepFillv2_Pytorch",
    kind="GatedGenerator",
    has=("coarse", "refine_conv.5", "refine_atten_1.5", "context_attention", "refine_combine"),
    convention=Convention("whole", "hole", outputs=_TWO_IMAGES),
    stages=("refine_conv.0", "refine_conv.2", "refine_conv.5"),
    attention=("context_attention",),
)

_MMAGIC = Variant(
    source="mmagic",
    kind="DeepFillEncoderDecoder",
    has=("stage1.encoder", "stage2.encoder_conv.enc6.gate_act", "stage2.contextual_attention_neck"),
    convention=Convention("image+ones+hole", outputs=_TWO_IMAGES),
    stages=("stage2.encoder_conv.enc1", "stage2.encoder_conv.enc3", "stage2.encoder_conv.enc6"),
    attention=("stage2.contextual_attention_neck.contextual_attention",),
)


class GatedConvAdapter(Adapter):
    """Adapt DeepFill v2, gated convolutions and contextual attention (Yu et al., ICCV 2019).

    Two stages, (coarse, fine). Tapped is the refinement network's convolution branch, whose encoder reaches the image
    last.
    """

    name: ClassVar[str] = "gated-conv"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _NIPPONJO, _CSQIANGWEN, _MMAGIC)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`GatedConvGenerator`, by default one that trains on a CPU at 64 px."""
        return GatedConvGenerator(**{"width": 16, **kwargs})
