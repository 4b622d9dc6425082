"""What every teacher is: a network that sees the complete image and gives features."""

from __future__ import annotations

import weakref
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from inpaint_distill.description import DESCRIPTION
from inpaint_distill.errors import CaptureError, PlanError
from inpaint_distill.host.guard import copy_module, forked_rng
from inpaint_distill.host.watch import Watch
from inpaint_distill.injection import injected
from inpaint_distill.teachers.unneeded import leave_out, put_back

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.watch import Views

__all__ = ["CopyTeacher", "Teacher", "running_statistics", "teacher_copy"]


class Teacher(ABC):
    """A teacher, from the choice of it to its last step.

    ``check`` at attach, ``bind`` and ``plan`` once the host's stages are known, ``prepare`` at the first loss, then
    ``views`` at every loss and ``update`` after every optimizer step.

    Attributes:
        sites: Its attention layer for each of the host's, set by :meth:`plan`; empty where there is none to compare.
    """

    kind: ClassVar[str]
    sites: tuple[AttentionSite, ...] = ()
    _engaged: Callable[[], Any] | None = None

    def engage(self, distiller: Any) -> None:
        """Teach for this distiller.

        Raises:
            PlanError: It teaches for another one, which has not been detached.
        """
        other = self._engaged() if self._engaged is not None else None
        if other is not None and other is not distiller and other.attached:
            asked, found = f"the teacher, {self.describe()}", "one that teaches for another distiller"
            raise PlanError(asked, found, "make a teacher for each, or detach the other distiller first")
        self._engaged = weakref.ref(distiller)

    def check(self) -> None:  # noqa: B027 - optional
        """Refuse, before anything is installed, what cannot work; nothing by default."""

    @abstractmethod
    def bind(self, host: nn.Module) -> None:
        """Meet the host, before taps are put on it."""

    @abstractmethod
    def plan(
        self, stages: Sequence[Stage], image_size: tuple[int, int], sites: Sequence[AttentionSite] = ()
    ) -> tuple[Stage, ...]:
        """Return the teacher's stage for each of the host's, and put the taps on the teacher."""

    @abstractmethod
    def views(self, call: HostCall, image: Tensor) -> Views:
        """Return what the teacher sees, without gradient: a feature for each planned stage, and its attention.

        Args:
            call: The host's own call with the complete image and an empty hole.
            image: The complete image (B, 3, H, W) as the user gave it.
        """

    def look(self, call: HostCall, image: Tensor) -> Views:
        """Return the same as :meth:`views`, for a look-ahead: the teacher does not move."""
        return self.views(call, image)

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


def teacher_copy(host: nn.Module) -> nn.Module:
    """Copy a host with its weights; blocks in the copy do not learn with the host where the hole is: it sees none."""
    module = copy_module(host)
    if (blocks := injected(module)) is not None:
        blocks.stand_alone()
    return module


class CopyTeacher(Teacher):
    """A teacher of the host's own architecture, run by the host's own call.

    Its forward ends at the last tap: what the host would do with the features is not computed. Nor is what they do not
    depend on, such as a coarse network whose result goes into a hole that is empty.

    Attributes:
        left_out: Names of the modules that are not run.
    """

    module: nn.Module
    watch: Watch | None = None
    left_out: Sequence[str] = ()

    def bind(self, host: nn.Module) -> None:
        """Copy the host, with its weights; the copy is in eval mode and takes no gradient."""
        self.module = teacher_copy(host)
        self.module.eval()  # some public hosts return None here
        self.module.requires_grad_(False)

    def plan(
        self, stages: Sequence[Stage], image_size: tuple[int, int], sites: Sequence[AttentionSite] = ()
    ) -> tuple[Stage, ...]:
        """Tap the copy where the host is tapped."""
        self.watch = Watch(self.module, stages, sites, logits=True)
        self.sites = self.watch.sites
        return self.watch.stages

    def prepare(self, recipe: Recipe, call: HostCall, image: Tensor) -> None:
        """Leave out of the copy's forward what its features on the complete image do not depend on."""
        self._leave_out(call, image)

    def _leave_out(self, call: HostCall, image: Tensor, result: Callable[[Any], Any] | None = None) -> None:
        """Leave out what neither the features depend on nor, where it is given, the ``result`` of the output."""
        if self.watch is None:
            raise RuntimeError("the teacher has not been planned")
        put_back(self.module, self.left_out)  # what was left out of another call
        stages, sites, size = self.watch.stages, self.watch.sites, (image.shape[2], image.shape[3])

        def views(module: nn.Module) -> Any:
            watch = Watch(module, stages, sites, logits=True)
            outputs: list[Any] = []
            with torch.no_grad(), forked_rng(image.device):
                try:
                    with self._named():
                        seen = watch.run(lambda: outputs.append(call.run(module)), size, stop=result is None)
                finally:
                    watch.remove()
            return seen if result is None else [seen, result(outputs[0])]

        with forked_rng(image.device):
            self.left_out = leave_out(
                self.module, [*(each.name for each in stages), *(each.name for each in sites)], views
            )

    def views(self, call: HostCall, image: Tensor) -> Views:
        """Run the copy up to its last tap; the random state is as before afterwards."""
        with torch.no_grad(), forked_rng(image.device):
            return self.watch_forward(lambda: call.run(self.module), image)

    def watch_forward(self, forward: Callable[[], Any], image: Tensor, *, stop: bool = True) -> Views:
        """Run the copy under its taps."""
        if self.watch is None:
            raise RuntimeError("the teacher has not been planned")
        with self._named():
            return self.watch.run(forward, (image.shape[2], image.shape[3]), stop=stop)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Say of what the copy does not show that it is the copy: in eval mode hosts leave parts out."""
        try:
            yield
        except CaptureError as error:
            asked = f"{error.asked} in the teacher, a copy of the host in eval mode"
            raise CaptureError(asked, error.found, error.fix) from None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the copy's weights and buffers."""
        state = dict(self.module.state_dict())
        state.pop(DESCRIPTION, None)  # the copy has the host's blocks already
        return state, {}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take the weights and buffers back."""
        self.module.load_state_dict(tensors)

    def release(self) -> None:
        """Take the taps off, and run again what was left out."""
        if self.watch is not None:
            self.watch.remove()
        if self.left_out:
            put_back(self.module, self.left_out)
        self.left_out = ()


def running_statistics(module: nn.Module) -> Iterator[Tensor]:
    """Go through the running means and variances of a module's batch normalisations."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            yield from (each for each in (part.running_mean, part.running_var) if each is not None)
