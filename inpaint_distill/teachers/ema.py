"""The host's own moving average, fed the complete image."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.host.guard import copy_module
from inpaint_distill.teachers.base import CopyTeacher

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["EMATeacher"]


class EMATeacher(CopyTeacher):
    """Moving average of the host (ours, after I-JEPA and data2vec); timm's ``ModelEmaV3``. No training of its own.

    Args:
        decay: Decay reached after timm's warm-up; the first step copies the host.
    """

    kind: ClassVar[str] = "ema"

    def __init__(self, decay: float = 0.999) -> None:
        self.decay = decay
        self.steps = 0

    def bind(self, host: nn.Module) -> None:
        """Start the average at the host's weights."""
        from timm.utils.model_ema import ModelEmaV3

        self.average = ModelEmaV3(copy_module(host), decay=self.decay, use_warmup=True)
        self.module = self.average.module
        self.module.requires_grad_(False)

    def update(self, host: nn.Module) -> None:
        """Move the average towards the host."""
        self.steps += 1
        self.average.update(host, step=self.steps)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the average and the number of its updates."""
        return super().state()[0], {"steps": self.steps}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take the average and the number of its updates back."""
        super().load(tensors, values)
        self.steps = int(values["steps"])

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return f"ema: moving average of the host, decay {self.decay}"
