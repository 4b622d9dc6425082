"""What is known about the DeepFill v1 family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.contextual_attention.network import ContextualAttentionGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ContextualAttentionAdapter"]

_TWO_IMAGES = ((0,), (1,))

_OURS = Variant(
    source="inpaint_distill",
    kind="ContextualAttentionGenerator",
    has=("coarse", "refine.encoder", "refine.attention"),
    convention=Convention("image+ones+hole", outputs=_TWO_IMAGES),
    stages=("refine.encoder.0", "refine.encoder.1", "refine.encoder.2"),
    attention=("refine.attention",),
)

# Its third output is a picture of where the attention looks.
_DAA233 = Variant(
    source="daa233/generative-inpainting-pytorch",
    kind="Generator",
    has=(
        "coarse_generator.conv6",
        "fine_generator.conv6",
        "fine_generator.pmconv6",
        "fine_generator.contextul_attention",
    ),
    convention=Convention("image", "hole", outputs=_TWO_IMAGES),
    stages=("fine_generator.conv1", "fine_generator.conv3", "fine_generator.conv6"),
    attention=("fine_generator.contextul_attention",),
)

_MMAGIC = Variant(
    source="mmagic",
    kind="DeepFillEncoderDecoder",
    has=("stage1.encoder", "stage2.encoder_conv.enc6.activate", "stage2.contextual_attention_neck"),
    convention=Convention("image+ones+hole", outputs=_TWO_IMAGES),
    stages=("stage2.encoder_conv.enc1", "stage2.encoder_conv.enc3", "stage2.encoder_conv.enc6"),
    attention=("stage2.contextual_attention_neck.contextual_attention",),
)


class ContextualAttentionAdapter(Adapter):
    """Adapt DeepFill v1, plain convolutions and contextual attention (Yu et al., CVPR 2018).

    Two stages, (coarse, fine). Tapped is the refinement network's convolution branch, whose encoder reaches the image
    last.
    """

    name: ClassVar[str] = "contextual-attention"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _DAA233, _MMAGIC)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`ContextualAttentionGenerator`, by default one that trains on a CPU at 64 px."""
        return ContextualAttentionGenerator(**{"width": 8, **kwargs})
