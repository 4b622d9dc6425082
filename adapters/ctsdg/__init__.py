"""CTSDG (Guo et al., ICCV 2021): texture and structure, two encoders that exchange their bottlenecks."""

from __future__ import annotations

from inpaint_distill.adapters.ctsdg.adapter import CTSDGAdapter
from inpaint_distill.adapters.ctsdg.network import CTSDGGenerator

__all__ = ["CTSDGAdapter", "CTSDGGenerator"]
