"""What is known about the CTSDG family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.ctsdg.network import CTSDGGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["CTSDGAdapter"]

# (result, image projected from the texture alone, ...)
_CALL = Convention("image", "edges+grey", "known", outputs=((1,), (0,)))

_XIEFAN = Variant(
    source="Xiefan-Guo/CTSDG",
    kind="Generator",
    has=("ec_texture_7", "ec_structure_7", "texture_feature_projection", "bigff", "cfa.ral"),
    convention=_CALL,
    stages=tuple(Stage(name=f"ec_texture_{level}", select=(0,), mask=(1,)) for level in range(1, 8)),
    attention=("cfa.ral",),
)
_OURS = Variant(
    source="inpaint_distill",
    kind="CTSDGGenerator",
    has=("texture_encoder", "structure_encoder", "fusion", "aggregation.attention"),
    convention=_CALL,
    stages=(Stage(name="texture_encoder.[0-9]", select=(0,), mask=(1,)),),
    attention=("aggregation.attention",),
)


class CTSDGAdapter(Adapter):
    """Adapt conditional texture and structure dual generation (Guo et al., ICCV 2021).

    Of its two encoders the texture's is tapped; a stage puts out (feature, mask). The mask is 1 where the image is
    KNOWN. Beside the image the host takes its edges, of which :meth:`outputs` knows none, and its grey values; a
    host's own call is passed on to the teacher with its own edges.
    """

    name: ClassVar[str] = "ctsdg"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _XIEFAN)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`CTSDGGenerator`, by default one that trains on a CPU at 64 px."""
        return CTSDGGenerator(**{"width": 8, "levels": 4, **kwargs})
