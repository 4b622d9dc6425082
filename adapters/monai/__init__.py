"""Networks of MONAI in two dimensions."""

from __future__ import annotations

from inpaint_distill.adapters.monai.adapter import MonaiAdapter

__all__ = ["MonaiAdapter"]
