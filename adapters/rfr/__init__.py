"""RFR (Li et al., CVPR 2020): recurrent feature reasoning, the hole filled from its border inward."""

from __future__ import annotations

from inpaint_distill.adapters.rfr.adapter import RFRAdapter
from inpaint_distill.adapters.rfr.network import RFRGenerator

__all__ = ["RFRAdapter", "RFRGenerator"]
