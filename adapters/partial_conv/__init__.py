"""Partial convolutions (Liu et al., ECCV 2018): a U-Net whose features travel with their masks."""

from __future__ import annotations

from inpaint_distill.adapters.partial_conv.adapter import PartialConvAdapter
from inpaint_distill.adapters.partial_conv.network import PartialConvUNet

__all__ = ["PartialConvAdapter", "PartialConvUNet"]
