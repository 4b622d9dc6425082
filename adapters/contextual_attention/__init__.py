"""DeepFill v1 (Yu et al., CVPR 2018): two stages of plain convolutions with contextual attention."""

from __future__ import annotations

from inpaint_distill.adapters.contextual_attention.adapter import ContextualAttentionAdapter
from inpaint_distill.adapters.contextual_attention.attention import ContextualAttention
from inpaint_distill.adapters.contextual_attention.network import ContextualAttentionGenerator

__all__ = ["ContextualAttention", "ContextualAttentionAdapter", "ContextualAttentionGenerator"]
