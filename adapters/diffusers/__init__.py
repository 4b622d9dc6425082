"""Networks of diffusers: the U-Net of latent inpainting, and those that take pixels."""

from __future__ import annotations

from inpaint_distill.adapters.diffusers.latents import DiffusersLatentAdapter
from inpaint_distill.adapters.diffusers.pixels import DiffusersPixelAdapter

__all__ = ["DiffusersLatentAdapter", "DiffusersPixelAdapter"]
