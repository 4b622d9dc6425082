"""LaMa (Suvorov et al., WACV 2022): one stage of fast Fourier convolutions."""

from __future__ import annotations

from inpaint_distill.adapters.lama.adapter import LaMaAdapter
from inpaint_distill.adapters.lama.network import LaMaGenerator

__all__ = ["LaMaAdapter", "LaMaGenerator"]
