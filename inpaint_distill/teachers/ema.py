"""The host's own moving average, fed the complete image."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from inpaint_distill.distributed import average_
from inpaint_distill.teachers.base import CopyTeacher, running_statistics, teacher_copy

if TYPE_CHECKING:
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.watch import Views

__all__ = ["EMATeacher"]


class EMATeacher(CopyTeacher):
    """Moving average of the host (ours, after I-JEPA and data2vec); timm's ``ModelEmaV3``. No training of its own.

    Its batch normalisation uses the batch's statistics whenever the host's does, as mean teachers do: the running ones
    are not there yet when training starts. It never moves the running ones, which are averages of the host's.

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

        self.average = ModelEmaV3(teacher_copy(host), decay=self.decay, use_warmup=True)
        self.module = self.average.module
        self.steps = 0  # those of another host do not count
        self.module.requires_grad_(False)
        kind = nn.modules.batchnorm._BatchNorm
        self.norms = [
            (own, other)
            for own, other in zip(self.module.modules(), host.modules(), strict=True)
            if isinstance(own, kind) and own.track_running_stats
        ]
        for own, _ in self.norms:
            own.track_running_stats = False  # a momentum of 0 would let a batch with NaN in

    def views(self, call: HostCall, image: Tensor) -> Views:
        """Run the average up to its last tap."""
        for own, other in self.norms:
            own.training = other.training
        return super().views(call, image)

    def update(self, host: nn.Module) -> None:
        """Move the average towards the host.

        By name, where timm pairs tensors by their order: a buffer that the host's forward makes anew comes last there.
        One of another size is left to the average, which makes its own.
        """
        self.steps += 1
        there = host.state_dict()
        paired = {
            name: found if isinstance(found := there.get(name), Tensor) and found.shape == own.shape else own
            for name, own in self.module.state_dict().items()
        }
        self.average.update(SimpleNamespace(state_dict=lambda: paired), step=self.steps)
        average_(running_statistics(self.module))  # each process has seen other images

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
