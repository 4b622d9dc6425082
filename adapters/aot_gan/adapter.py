"""What is known about the AOT-GAN family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.aot_gan.network import AOTGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["AOTGANAdapter"]

_OURS = Variant(
    source="inpaint_distill",
    kind="AOTGenerator",
    has=("encoder.6", "middle.0.gate", "decoder"),
    convention=Convention("image", "hole", fill="white"),
    stages=("encoder.2", "encoder.4", "encoder.6"),
    attention=(),
)

_RESEARCHMM = Variant(
    source="researchmm/AOT-GAN-for-Inpainting",
    kind="InpaintGenerator",
    has=("encoder.6", "middle.0.fuse", "middle.0.gate", "decoder.4"),
    convention=Convention("image", "hole", fill="white"),
    stages=("encoder.2", "encoder.4", "encoder.6"),
    attention=(),
)

_MMAGIC = Variant(
    source="mmagic",
    kind="AOTEncoderDecoder",
    has=("encoder.encoder.3", "dilation_neck", "decoder"),
    convention=Convention("image+hole", fill="white"),
    stages=("encoder.encoder.1", "encoder.encoder.2", "encoder.encoder.3"),
    attention=(),
)


class AOTGANAdapter(Adapter):
    """Adapt the generator of AOT-GAN (Zeng et al., TVCG 2022).

    Holes are white. What its blocks call a gate is no attention: it weighs channels and places, and compares none.
    """

    name: ClassVar[str] = "aot-gan"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _RESEARCHMM, _MMAGIC)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build an :class:`AOTGenerator`, by default one that trains on a CPU at 64 px."""
        return AOTGenerator(**{"width": 16, "blocks": 4, **kwargs})
