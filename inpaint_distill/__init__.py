"""Plug-in distillation for existing PyTorch inpainting models.

Two lines in a training loop that exists already:

    distiller = inpaint_distill.attach(host, optimizer)
    loss = host_loss + distiller.loss(image, mask)
"""

from __future__ import annotations

from pathlib import Path

# A source checkout keeps adapters/ beside the package; installed, it lies inside (see setup.cfg).
# Without this line, `python -m pytest` in the repository root would find the package but not its adapters.
if not (Path(__file__).parent / "adapters").is_dir() and (Path(__file__).parents[1] / "adapters").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

from inpaint_distill.attach import attach
from inpaint_distill.config import Config, TermConfig
from inpaint_distill.distiller import Distiller
from inpaint_distill.errors import InpaintDistillError
from inpaint_distill.host.adapter import Adapter
from inpaint_distill.host.stage import Stage
from inpaint_distill.plan import Plan
from inpaint_distill.plan import plan_images as plan
from inpaint_distill.teachers import EMATeacher, FrozenTeacher, ModuleTeacher, OnlineTeacher

__all__ = [
    "Adapter",
    "Config",
    "Distiller",
    "EMATeacher",
    "FrozenTeacher",
    "InpaintDistillError",
    "ModuleTeacher",
    "OnlineTeacher",
    "Plan",
    "Stage",
    "TermConfig",
    "attach",
    "plan",
]

__version__ = "0.1.0"
