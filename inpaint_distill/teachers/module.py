"""Any module as a teacher: another architecture, or a timm backbone with ``features_only``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.errors import PlanError
from inpaint_distill.host.discovery import choose_encoder, find_encoders, named_stages, output_stages
from inpaint_distill.host.guard import forked_rng, module_device
from inpaint_distill.host.taps import FeatureTaps, StopForward
from inpaint_distill.host.trace import Trace, trace_forward
from inpaint_distill.teachers.base import Teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.stage import Stage

__all__ = ["ModuleTeacher"]


class ModuleTeacher(Teacher):
    """A network of the user's, called on the complete image (ours).

    Each of the host's stages is paired with the teacher's stage of the nearest stride.

    Args:
        module: The network. A list of maps as output (timm's ``features_only``) is taken as its stages; otherwise
            its encoder is found as the host's is.
        call: How to run it on the image given to ``loss()``, e.g. with another normalisation; ``module(image)``
            by default.
        stages: Names, to settle what discovery cannot.
    """

    kind: ClassVar[str] = "module"

    def __init__(
        self,
        module: nn.Module,
        *,
        call: Callable[[nn.Module, Tensor], Any] | None = None,
        stages: Sequence[str | Stage] | None = None,
    ) -> None:
        self.module = module
        self.call = call or (lambda network, image: network(image))
        self.stages = stages

    def bind(self, host: nn.Module) -> None:
        """Put the module into eval mode, until release, and on the host's device."""
        self.modes = {part: part.training for part in self.module.modules()}
        self.module.eval()
        self.module.to(module_device(host))

    def plan(self, stages: Sequence[Stage], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """Find the module's stages in a dry run and pair them by stride."""
        image = torch.zeros(2, 3, *image_size, device=module_device(self.module))
        try:
            events = trace_forward(self.module, lambda: self.call(self.module, image))
        except Exception as error:
            raise PlanError(
                f"a dry run of the teacher {type(self.module).__name__} on images {tuple(image.shape)}",
                f"{type(error).__name__}: {error}",
                "say how to run it: ModuleTeacher(module, call=lambda module, image: ...)",
            ) from error
        trace = Trace(events, image_size, image_size)
        own = named_stages(trace, self.stages) if self.stages else output_stages(trace)
        if not own:
            encoders = find_encoders(trace)
            own = encoders[choose_encoder(encoders)]
        self.paired = tuple(min(own, key=lambda each: abs(each.stride - stage.stride)) for stage in stages)
        distinct = tuple(dict.fromkeys(self.paired))
        self.taps = FeatureTaps(self.module, distinct, stop=True)
        return self.paired

    def features(self, call: HostCall, image: Tensor) -> list[Tensor]:
        """Run the module on the complete image, up to its last tap."""
        self.taps.begin()
        with torch.no_grad(), forked_rng(image.device):
            try:
                self.call(self.module, image)
            except StopForward:
                pass
            finally:
                self.taps.active = False
        size = (image.shape[2], image.shape[3])
        kept = dict(zip(self.taps.stages, self.taps.take(), strict=True))
        return [stage.as_map(kept[stage], size) for stage in self.paired]

    def release(self) -> None:
        """Take the taps off and give the training flags back."""
        if hasattr(self, "taps"):
            self.taps.remove()
        for part, training in getattr(self, "modes", {}).items():
            part.training = training

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return f"module: {type(self.module).__name__}"
