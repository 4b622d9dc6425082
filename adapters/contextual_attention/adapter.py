"""What is known about the DeepFill v1 family."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inpaint_distill.adapters.contextual_attention.network import ContextualAttentionGenerator
from inpaint_distill.host.adapter import Adapter

__all__ = ["ContextualAttentionAdapter"]


class ContextualAttentionAdapter(Adapter):
    """Adapt DeepFill v1, plain convolutions and contextual attention (Yu et al., CVPR 2018).

    Called with cat[masked image, ones, hole]; returns (coarse, fine). Stages are those of the refinement network's
    convolution branch, whose encoder reaches the image last.
    """

    name: ClassVar[str] = "contextual-attention"
    stages: ClassVar[tuple[str, ...] | None] = ("refine.encoder.0", "refine.encoder.1", "refine.encoder.2")
    attention: ClassVar[tuple[str, ...] | None] = ("refine.attention",)

    def matches(self, host: nn.Module) -> bool:
        """Recognise our reference by its class name and its two stages."""
        return (
            type(host).__name__ == "ContextualAttentionGenerator"
            and {"coarse", "refine"} <= dict(host.named_children()).keys()
        )

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`ContextualAttentionGenerator`, by default one that trains on a CPU at 64 px."""
        return ContextualAttentionGenerator(**{"width": 8, **kwargs})

    def outputs(self, host: nn.Module, image: Tensor, hole: Tensor) -> tuple[Tensor, ...]:
        """Empty the hole, run the host and return (coarse, fine), each (B, 3, H, W) in [-1, 1]."""
        coarse, fine = host(torch.cat([image * (1 - hole), torch.ones_like(hole), hole], dim=1))
        return coarse, fine
