"""MAT (Li et al., CVPR 2022): a mask-aware transformer whose attention leaves out what is not known yet."""

from __future__ import annotations

from inpaint_distill.adapters.mat.adapter import MATAdapter
from inpaint_distill.adapters.mat.network import MATGenerator

__all__ = ["MATAdapter", "MATGenerator"]
