"""What is known about the partial-convolution family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.partial_conv.network import PartialConvUNet
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["PartialConvAdapter"]

_OURS = Variant(
    source="inpaint_distill",
    kind="PartialConvUNet",
    has=("encoder", "decoder", "head"),
    convention=Convention("image", "known3", outputs=((0,),)),
    stages=("encoder.[0-9]",),
    attention=(),
)

_NAOTO0804 = Variant(
    source="naoto0804/pytorch-inpainting-with-partial-conv",
    kind="PConvUNet",
    has=("enc_1.conv.mask_conv", "enc_4.bn", "dec_1.conv.mask_conv"),
    convention=Convention("image", "known3", scale="imagenet", outputs=((0,),)),
    stages=("enc_[0-9]",),
    attention=(),
)

_MMAGIC = Variant(
    source="mmagic",
    kind="PConvEncoderDecoder",
    has=("encoder.enc1", "encoder.enc2", "decoder"),
    convention=Convention("image", "known3", outputs=((0,),)),
    stages=("encoder.enc[0-9]",),
    attention=(),
)


class PartialConvAdapter(Adapter):
    """Adapt the partial-convolution U-Net (Liu et al., ECCV 2018).

    Its mask has three channels and is 1 where the image is KNOWN; a stage puts out (feature, mask).
    """

    name: ClassVar[str] = "partial-conv"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _NAOTO0804, _MMAGIC)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`PartialConvUNet`, by default one that trains on a CPU at 64 px."""
        return PartialConvUNet(**{"width": 16, "levels": 4, **kwargs})
