"""What is known about the RFR family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.rfr.network import RFRGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["RFRAdapter"]

_CALL = Convention("image", "known3", scale="unit", outputs=((0,),))


def _last(*names: str) -> tuple[Stage, ...]:
    """Tap the last recurrence, whose mask is the fullest."""
    return tuple(Stage(name=name, call=-1) for name in names)


_JINGYUANLI = Variant(
    source="jingyuanli001/RFR-Inpainting",
    kind="RFRNet",
    has=("Pconv22", "bn2", "RFRModule.enc_3", "RFRModule.att.att", "Tconv"),
    convention=_CALL,
    stages=_last("bn2", "RFRModule.enc_1", "RFRModule.enc_2", "RFRModule.enc_3"),
)
_OURS = Variant(
    source="inpaint_distill",
    kind="RFRGenerator",
    has=("identify.norm", "reason.encoder.2", "reason.attention"),
    convention=_CALL,
    stages=_last("identify.norm", "reason.encoder.0", "reason.encoder.1", "reason.encoder.2"),
)


class RFRAdapter(Adapter):
    """Adapt recurrent feature reasoning (Li et al., CVPR 2020).

    The same encoder runs in every recurrence, and so does its attention; the last run of each is tapped. Images are in
    [0, 1], the mask has three channels and is 1 where the image is KNOWN.

    The released attention calls ``.cuda()`` in its first forward, unless ``RFRModule.att.att.prop_kernels`` is set to
    any tensor before: on a CPU it needs that.
    """

    name: ClassVar[str] = "rfr"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _JINGYUANLI)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build an :class:`RFRGenerator`, by default one that trains on a CPU at 64 px."""
        return RFRGenerator(**{"width": 8, **kwargs})
