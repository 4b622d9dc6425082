"""A plain U-Net over any timm backbone with (B, C, H, W) features."""

from __future__ import annotations

from inpaint_distill.adapters.unet.adapter import UNetAdapter
from inpaint_distill.adapters.unet.network import InpaintUNet

__all__ = ["InpaintUNet", "UNetAdapter"]
