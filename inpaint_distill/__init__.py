"""Plug-in distillation for existing PyTorch inpainting models.

Two lines in a training loop that exists already:

    distiller = inpaint_distill.attach(host, optimizer)
    loss = host_loss + distiller.loss(image, mask)
"""

from __future__ import annotations

import sys
from importlib.util import spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING

from inpaint_distill.attach import attach
from inpaint_distill.completed import load_host, save_host
from inpaint_distill.config import AttentionConfig, Config, LookaheadConfig, TermConfig
from inpaint_distill.distiller import Distiller
from inpaint_distill.errors import InpaintDistillError
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage
from inpaint_distill.networks.fill import pull_push
from inpaint_distill.plan import Plan, plan
from inpaint_distill.teachers import EMATeacher, FrozenTeacher, ModuleTeacher, OnlineTeacher

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

__all__ = [
    "Adapter",
    "AttentionConfig",
    "AttentionSite",
    "Config",
    "Convention",
    "Distiller",
    "EMATeacher",
    "FrozenTeacher",
    "InpaintDistillError",
    "LookaheadConfig",
    "ModuleTeacher",
    "OnlineTeacher",
    "Plan",
    "Stage",
    "TermConfig",
    "Variant",
    "attach",
    "load_host",
    "plan",
    "pull_push",
    "save_host",
]

__version__ = "0.1.0"


class _AdaptersBeside:
    """Finds ``adapters/`` beside the package, where a source checkout keeps it (see setup.cfg).

    Installed, it lies inside the package and is found as any other. Without this, ``python -m pytest`` in the root of
    a checkout would find the package but not its adapters.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """Find ``inpaint_distill.adapters`` and nothing else."""
        beside = Path(__file__).parents[1] / "adapters"
        if name != f"{__name__}.adapters" or not (beside / "__init__.py").is_file():
            return None
        return spec_from_file_location(name, beside / "__init__.py", submodule_search_locations=[str(beside)])


if not (Path(__file__).parent / "adapters").is_dir():
    sys.meta_path.append(_AdaptersBeside)
