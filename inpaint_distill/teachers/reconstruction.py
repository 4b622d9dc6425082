"""Teachers trained to reconstruct the complete image: once beforehand, or alongside the host."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from inpaint_distill.distributed import average_
from inpaint_distill.errors import ConfigError, InputError
from inpaint_distill.host.guard import forked_rng
from inpaint_distill.host.outputs import in_output_range, restored_images
from inpaint_distill.state import optimizer_state, set_optimizer_state, under
from inpaint_distill.teachers.base import CopyTeacher, running_statistics
from inpaint_distill.teachers.quality import images_from, images_in, measure_quality
from inpaint_distill.teachers.unneeded import moved_copy

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from torch import nn

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.watch import Views
    from inpaint_distill.teachers.quality import TeacherQuality

__all__ = ["FrozenTeacher", "OnlineTeacher"]


_MEASURED_AFTER = 500  # steps of an online teacher
_FIX = "use teacher='ema', which needs the host's features alone"


class _ReconstructionTeacher(CopyTeacher):
    """A copy of the host with an L1 reconstruction loss on the complete image (DGI's auxiliary network)."""

    def __init__(self, lr: float = 1e-3) -> None:
        self.lr = lr
        self.trained_steps = 0
        self.quality: TeacherQuality | None = None

    def bind(self, host: nn.Module) -> None:
        """Copy the host; the copy can be trained."""
        super().bind(host)
        self.trained = [
            own for own, other in zip(self.module.parameters(), host.parameters(), strict=True) if other.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(self.trained, lr=self.lr, weight_decay=0.0)
        self.trained_steps = 0  # those of the copy of another host do not count
        self.modes = list(zip(self.module.modules(), host.modules(), strict=True))

    def prepare(self, recipe: Recipe, call: HostCall, image: Tensor) -> None:
        """Remember how the host takes the complete image, which is also the range in which it gives it back."""
        self.recipe = recipe
        if not self.trained_steps:
            self.quality = None

    def train_step(self, call: HostCall, image: Tensor) -> Tensor:
        """Do one step of reconstruction and return its loss; ``call`` carries the complete image.

        Every layer is in the mode of the host's own: a batch of one has no statistics, and a host that trains on such
        leaves its batch normalisations in eval mode.
        """
        for parameter in self.trained:
            parameter.requires_grad_(True)
        for own, other in self.modes:
            own.training = other.training
        self.optimizer.zero_grad()  # of a step that Ctrl-C has ended just before it was over
        statistics = [(each, each.clone()) for each in self.module.buffers() if each.is_floating_point()]
        try:
            with torch.enable_grad():
                target = self.recipe.target(call, image)
                outputs = restored_images(call.run(self.module), target, _FIX)
                target = in_output_range(outputs, target, image)
                loss = torch.stack([(output.float() - target.float()).abs().mean() for output in outputs]).sum()
                loss.backward()  # type: ignore[no-untyped-call]
            gradients = [parameter.grad for parameter in self.trained if parameter.grad is not None]
            average_(itertools.chain(gradients, running_statistics(self.module)))
            for gradient in gradients:  # one batch that overflows would be its last
                gradient.nan_to_num_(0.0, 0.0, 0.0)
            for buffer, before in statistics:
                buffer.copy_(torch.where(buffer.isfinite(), buffer, before))
            self.optimizer.step()
        finally:  # an error, or Ctrl-C, in the host's own code
            self.optimizer.zero_grad()
            self.module.eval()
            for parameter in self.trained:
                parameter.requires_grad_(False)
        return loss.detach()

    def measure(self, call: HostCall, image: Tensor) -> None:
        """Measure how well it reconstructs a batch, and warn where its deep features are not needed for it."""
        if self.watch is not None:
            target = self.recipe.target(call, image)
            self.quality = measure_quality(self.module, call, target, image, self.watch.stages[-1])
            self.quality.warn()


class OnlineTeacher(_ReconstructionTeacher):
    """A copy of the host, trained to reconstruct alongside it (DGI: "not static"); costs a forward and a backward.

    What neither its features nor the images made from them depend on is neither run nor trained: on a complete image, a
    coarse network whose result goes into the hole.

    Args:
        lr: Learning rate of its own AdamW.
    """

    kind: ClassVar[str] = "online"

    def prepare(self, recipe: Recipe, call: HostCall, image: Tensor) -> None:
        """Find out what need not be run."""
        super().prepare(recipe, call, image)
        target = recipe.target(call, image)
        stages = self.watch.stages if self.watch is not None else ()
        with forked_rng(image.device):
            try:
                wanted = images_from(stages, moved_copy(self.module), call, target)
            except Exception:  # whatever a foreign forward raises on such weights, or on features of zero
                wanted = []
        if wanted:
            self._leave_out(call, image, lambda output: [images_in(output, target)[index] for index in wanted])

    def views(self, call: HostCall, image: Tensor) -> Views:
        """Train one step and return the views of that very forward."""
        with forked_rng(image.device):
            views = self.watch_forward(lambda: self.train_step(call, image), image, stop=False)
        self.trained_steps += 1
        if self.trained_steps == _MEASURED_AFTER:
            self.measure(call, image)
        return views.detached()

    def look(self, call: HostCall, image: Tensor) -> Views:
        """Return the views of a forward without training."""
        return super().views(call, image)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the copy's weights and its optimizer's moments."""
        state = {f"module.{key}": value for key, value in super().state()[0].items()}
        kept, _ = optimizer_state(self.optimizer, self._numbered)
        state |= {f"optimizer.{key}": value for key, value in kept.items()}
        return state, {"steps": self.trained_steps}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take weights and moments back."""
        self.trained_steps = int(values["steps"])
        self.module.load_state_dict(under("module.", tensors))
        set_optimizer_state(self.optimizer, self._numbered, under("optimizer.", tensors))

    @property
    def _numbered(self) -> dict[str, nn.Parameter]:
        return {str(index): parameter for index, parameter in enumerate(self.trained)}

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return f"online: copy of the host, trained to reconstruct alongside it (lr {self.lr})"


class FrozenTeacher(_ReconstructionTeacher):
    """A copy of the host, first trained to reconstruct the complete image (DGI's autoencoder), then fixed.

    The training happens at the first loss, when it is known how the host is called.

    Args:
        images: Complete images to train on, in the range that ``loss()`` gets: a tensor (N, 3, H, W), or batches
            (B, 3, H, W) that can be iterated over again.
        steps: Steps of training.
        lr: Learning rate of AdamW.
        seed: Seed of the order of ``images`` where they are a tensor.

    Attributes:
        errors: Reconstruction loss of each step of the training.
        quality: Reconstruction error afterwards, with and without the deepest feature; where that makes no difference,
            a :class:`TeacherWarning` names the remedy.
    """

    kind: ClassVar[str] = "frozen"

    def __init__(
        self, images: Tensor | Iterable[Tensor] | None = None, steps: int = 500, lr: float = 1e-3, seed: int = 0
    ) -> None:
        super().__init__(lr)
        self.images = images
        self.steps = steps
        self.seed = seed
        self.errors: list[Tensor] = []

    def check(self) -> None:
        """Refuse to go on without something to train the copy on."""
        if self.images is None:
            raise ConfigError(
                "a frozen teacher",
                "no images to train it on",
                "attach(..., teacher=FrozenTeacher(images=...)), or choose teacher='ema', which needs none",
            )

    def prepare(self, recipe: Recipe, call: HostCall, image: Tensor) -> None:
        """Train the copy, unless it came from a saved state."""
        super().prepare(recipe, call, image)
        if self.trained_steps < self.steps:
            self.errors = []
            with forked_rng(image.device):
                batches = self._batches(image)
                for _ in range(self.steps - self.trained_steps):
                    batch = next(batches).to(image)
                    own = recipe.apply(_with_batch(call, image, len(batch)), batch)
                    self.errors.append(self.train_step(own, batch))
            self.trained_steps = self.steps
            self.measure(call, image)
        CopyTeacher.prepare(self, recipe, call, image)  # it is run for its features alone from now on

    def _batches(self, image: Tensor) -> Iterator[Tensor]:
        """Yield batches without end, of the image's size."""
        generator = torch.Generator().manual_seed(self.seed)
        while True:
            count = 0
            for batch in self._epoch(image.shape[0], generator):
                if batch.ndim != 4 or batch.shape[1:] != image.shape[1:]:
                    asked = f"teacher images of shape (B, {', '.join(map(str, image.shape[1:]))}), as given to loss()"
                    found = f"shape {tuple(batch.shape)}"
                    raise InputError(asked, found, "give FrozenTeacher images of the training size")
                count += len(batch)
                if len(batch):
                    yield batch
            if not count:
                raise InputError("images for the frozen teacher", "none", "give FrozenTeacher(images=...) some")

    def _epoch(self, size: int, generator: torch.Generator) -> Iterator[Tensor]:
        """Yield every image once."""
        images = self.images
        if isinstance(images, Tensor):
            order = torch.randperm(len(images), generator=generator)
            whole = len(order) // size * size or len(order)  # the rest, which may be one, comes in another epoch
            yield from (images[part] for part in torch.split(order[:whole], size))
        else:
            yield from images or ()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the copy's weights and how long it was trained."""
        return super().state()[0], {"steps": self.trained_steps}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take the weights back; a trained teacher is not trained again."""
        super().load(tensors, values)
        self.trained_steps = int(values["steps"])

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return f"frozen: copy of the host, trained {self.steps} steps to reconstruct (lr {self.lr})"


def _with_batch(call: HostCall, image: Tensor, size: int) -> HostCall:
    """Bring what a call passes on per sample (constant planes, timesteps) to another batch size."""
    rows = torch.arange(size, device=image.device) % image.shape[0]
    return call.rebuild(lambda _, t: t[rows.to(t.device)] if t.ndim and t.shape[0] == image.shape[0] else t)
