"""AOT-GAN (Zeng et al., TVCG 2022): blocks that look at several distances at once."""

from __future__ import annotations

from inpaint_distill.adapters.aot_gan.adapter import AOTGANAdapter
from inpaint_distill.adapters.aot_gan.network import AOTGenerator

__all__ = ["AOTGANAdapter", "AOTGenerator"]
