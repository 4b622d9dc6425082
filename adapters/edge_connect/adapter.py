"""What is known about the EdgeConnect family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.edge_connect.network import EdgeConnectGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention

if TYPE_CHECKING:
    from torch import nn

__all__ = ["EdgeConnectAdapter"]

_CONVENTION = Convention("image+edges", scale="unit", fill="white")
_ACTIVATIONS = ("encoder.3", "encoder.6", "encoder.9")

_OURS = Variant(
    source="inpaint_distill",
    kind="EdgeConnectGenerator",
    has=("encoder.9", "middle.0.wide", "decoder.8"),
    convention=_CONVENTION,
    stages=_ACTIVATIONS,
    attention=(),
)

_KNAZERI = Variant(
    source="knazeri/edge-connect",
    kind="InpaintGenerator",
    has=("encoder.9", "middle.0.conv_block", "decoder.7"),
    convention=_CONVENTION,
    stages=_ACTIVATIONS,
    attention=(),
)


class EdgeConnectAdapter(Adapter):
    """Adapt the image completion network of EdgeConnect (Nazeri et al., ICCVW 2019).

    It sees no mask: holes are white. The edge map is another network's, and reaches the teacher as it is.
    """

    name: ClassVar[str] = "edge-connect"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _KNAZERI)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build an :class:`EdgeConnectGenerator`, by default one that trains on a CPU at 64 px."""
        return EdgeConnectGenerator(**{"width": 16, "blocks": 4, **kwargs})
