"""What is known about the MI-GAN family."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.mi_gan.network import MIGANGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MIGANAdapter"]

_CALL = Convention("known-0.5+image")

# Both the released generator for training and the one for inference, whose convolutions are merged.
_PICSART = Variant(
    source="Picsart-AI-Research/MI-GAN",
    kind="Generator",
    has=("encoder.b4.conv1.conv2", "synthesis.b4.conv1.conv2", "synthesis.b8.torgb"),
    convention=_CALL,
    stages=(re.compile(r"encoder\.b\d+\.conv1"),),
    attention=(),
)
_OURS = Variant(
    source="inpaint_distill",
    kind="MIGANGenerator",
    has=("encoder.0.conv1.depthwise", "synthesis.0.to_image"),
    convention=_CALL,
    stages=(Stage(name="encoder.[0-9]", select=(1,)),),
    attention=(),
)


class MIGANAdapter(Adapter):
    """Adapt MI-GAN (Sargsyan et al., ICCV 2023).

    A block of the encoder puts out (what goes on at half the resolution, the feature of this one), and there is one
    block for each resolution down to 4 px. The resolution is fixed when the host is built.
    """

    name: ClassVar[str] = "mi-gan"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _PICSART)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`MIGANGenerator`, by default one that trains on a CPU at 64 px."""
        return MIGANGenerator(**{"width": 16, "resolution": 64, **kwargs})
