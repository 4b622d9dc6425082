"""What every teacher is: a network that sees the complete image and gives features."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.host.guard import copy_module, forked_rng, module_device
from inpaint_distill.host.taps import FeatureTaps, StopForward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.stage import Stage

__all__ = ["CopyTeacher", "Teacher"]


class Teacher(ABC):
    """A teacher, from the choice of it to its last step.

    ``bind`` at attach, ``plan`` once the host's stages are known, ``prepare`` at the first loss, then ``features`` at
    every loss and ``update`` after every optimizer step.
    """

    kind: ClassVar[str]

    @abstractmethod
    def bind(self, host: nn.Module) -> None:
        """Meet the host, before anything is installed on it."""

    @abstractmethod
    def plan(self, stages: Sequence[Stage], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """Return the teacher's stage for each of the host's, and put the taps on the teacher."""

    @abstractmethod
    def features(self, call: HostCall, image: Tensor) -> list[Tensor]:
        """Return a feature (B, C, H, W) for each planned stage, without gradient.

        Args:
            call: The host's own call with the complete image and an empty hole.
            image: The complete image (B, 3, H, W) as the user gave it.
        """

    def prepare(self, recipe: Recipe, call: HostCall, image: Tensor) -> None:  # noqa: B027 - optional
        """Do what needs the first batch; nothing by default."""

    def update(self, host: nn.Module) -> None:  # noqa: B027 - optional
        """Follow one optimizer step of the host; nothing by default."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a resumed run needs, as tensors and JSON values."""
        return {}, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:  # noqa: B027 - optional
        """Take a state from :meth:`state` back."""

    def release(self) -> None:  # noqa: B027 - optional
        """Take off whatever was put on the teacher's network."""

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return self.kind


class CopyTeacher(Teacher):
    """A teacher of the host's own architecture, run by the host's own call.

    Its forward ends at the last tap: what the host would do with the features is not computed.
    """

    module: nn.Module
    taps: FeatureTaps

    def bind(self, host: nn.Module) -> None:
        """Copy the host, with its weights; the copy is in eval mode and takes no gradient."""
        self.module = copy_module(host)
        self.module.eval()  # some public hosts return None here
        self.module.requires_grad_(False)

    def plan(self, stages: Sequence[Stage], image_size: tuple[int, int]) -> tuple[Stage, ...]:
        """Tap the copy where the host is tapped."""
        self.taps = FeatureTaps(self.module, stages, stop=True)
        return self.taps.stages

    def follow(self, host: nn.Module) -> None:
        """Move to the host's device."""
        self.module.to(module_device(host))

    def features(self, call: HostCall, image: Tensor) -> list[Tensor]:
        """Run the copy up to its last tap; the random state is as before afterwards."""
        self.taps.begin()
        with torch.no_grad(), forked_rng(image.device):
            try:
                call.run(self.module)
            except StopForward:
                pass
            finally:
                self.taps.active = False
        size = (image.shape[2], image.shape[3])
        return [stage.as_map(kept, size) for stage, kept in zip(self.taps.stages, self.taps.take(), strict=True)]

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the copy's weights and buffers."""
        return dict(self.module.state_dict()), {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take the weights and buffers back."""
        self.module.load_state_dict(tensors)

    def release(self) -> None:
        """Take the taps off."""
        if hasattr(self, "taps"):
            self.taps.remove()
