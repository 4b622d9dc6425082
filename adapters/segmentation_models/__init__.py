"""Networks of segmentation_models_pytorch."""

from __future__ import annotations

from inpaint_distill.adapters.segmentation_models.adapter import SegmentationModelsAdapter

__all__ = ["SegmentationModelsAdapter"]
