"""MI-GAN (Sargsyan et al., ICCV 2023): separable, re-parametrised convolutions, small enough for a telephone."""

from __future__ import annotations

from inpaint_distill.adapters.mi_gan.adapter import MIGANAdapter
from inpaint_distill.adapters.mi_gan.network import MIGANGenerator

__all__ = ["MIGANAdapter", "MIGANGenerator"]
