"""What is known about our U-Net."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inpaint_distill.adapters.unet.network import InpaintUNet
from inpaint_distill.host.adapter import Adapter

__all__ = ["UNetAdapter"]


class UNetAdapter(Adapter):
    """Adapt a plain U-Net over a timm backbone (ours).

    Called with cat[masked image, hole]; returns one image. It has no attention of its own.
    """

    name: ClassVar[str] = "unet"
    stages: ClassVar[tuple[str, ...] | None] = ("encoder.[0-9]",)
    attention: ClassVar[tuple[str, ...] | None] = ()

    def matches(self, host: nn.Module) -> bool:
        """Recognise our reference by its class name and its two halves."""
        return (
            type(host).__name__ == "InpaintUNet"
            and {"encoder", "decoder", "head"} <= dict(host.named_children()).keys()
        )

    def build(self, **kwargs: Any) -> nn.Module:
        """Build an :class:`InpaintUNet`, by default one that trains on a CPU at 64 px."""
        return InpaintUNet(**{"width": 16, **kwargs})

    def outputs(self, host: nn.Module, image: Tensor, hole: Tensor) -> tuple[Tensor, ...]:
        """Empty the hole, run the host and return its one image (B, 3, H, W) in [-1, 1]."""
        return (host(torch.cat([image * (1 - hole), hole], dim=1)),)
