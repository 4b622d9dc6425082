"""DeepFill v2 (Yu et al., ICCV 2019): two stages of gated convolutions with contextual attention."""

from __future__ import annotations

from inpaint_distill.adapters.gated_conv.adapter import GatedConvAdapter
from inpaint_distill.adapters.gated_conv.network import GatedConvGenerator

__all__ = ["GatedConvAdapter", "GatedConvGenerator"]
