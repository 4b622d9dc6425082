"""Whether a teacher that reconstructs has learned features, or copies its input through skip connections (ours)."""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.errors import TeacherWarning
from inpaint_distill.host.guard import forked_rng
from inpaint_distill.host.outputs import in_output_range
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.stage import Stage

__all__ = ["TeacherQuality", "images_from", "images_in", "measure_quality"]

_LEAST_RISE = 1.25  # of the error, by zeroing the deepest feature, below which that feature hardly matters
_RECONSTRUCTS = 0.5  # of the error of a flat image, below which a teacher reconstructs at all


@dataclass(frozen=True)
class TeacherQuality:
    """Mean absolute reconstruction error of complete images, in the host's own range.

    Attributes:
        error: Of the teacher as it is.
        error_without_bottleneck: With its deepest tapped feature set to zero.
        error_of_flat_image: Of each image's mean colour: what a teacher that has learned nothing reaches.
        bottleneck: Name of that feature.
    """

    error: float
    error_without_bottleneck: float
    error_of_flat_image: float
    bottleneck: str

    @property
    def copies_through_skips(self) -> bool:
        """Whether it reconstructs, and its deepest feature hardly matters for that."""
        reconstructs = self.error < _RECONSTRUCTS * self.error_of_flat_image
        return reconstructs and self.error_without_bottleneck < _LEAST_RISE * self.error

    def warn(self) -> None:
        """Warn of a teacher whose deep features are empty, and name the remedy."""
        if self.copies_through_skips:
            message = (
                f"the teacher reconstructs with a mean error of {self.error:.4f}, and of "
                f"{self.error_without_bottleneck:.4f} with {self.bottleneck} set to zero: it copies the image through "
                "skip connections and its deep features carry little. Use teacher='ema', or a teacher without skips"
            )
            warnings.warn(message, TeacherWarning, stacklevel=2)


class _Zero:
    """A forward hook that sets one stage's feature to zero."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.calls = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        call, self.calls = self.calls, self.calls + 1
        if call != self.stage.call:
            return output
        return self.stage.write(output, torch.zeros_like(self.stage.read(output)))


def measure_quality(
    module: nn.Module, call: HostCall, target: Tensor, given: Tensor, bottleneck: Stage
) -> TeacherQuality:
    """Reconstruct a batch twice, the second time without the deepest feature.

    Args:
        module: The teacher, in eval mode.
        call: The host's call with the complete image and an empty hole.
        target: The complete image in the range in which the host takes it, (B, 3, H, W).
        given: The same as it was given to ``loss()``.
        bottleneck: The deepest tapped stage.
    """
    images = _images(module, call, target)
    target = in_output_range(images, target, given)

    def error(images: list[Tensor]) -> float:
        # Coarse and fine images, and masks of three channels among them: the best one is the reconstruction.
        return float(torch.stack([(image - target).abs().mean() for image in images]).min())

    whole = error(images)
    with _zeroed(module, [bottleneck]):
        without = error(_images(module, call, target))
    flat = (target - target.mean((2, 3), keepdim=True)).abs().mean()
    return TeacherQuality(whole, without, float(flat), bottleneck.label)


def images_from(stages: Sequence[Stage], module: nn.Module, call: HostCall, target: Tensor) -> list[int]:
    """Say which images a network makes from the features of some stages: those that change with them.

    Args:
        stages: The stages, which are set to zero.
        module: The network.
        call: A call of it.
        target: An image, for its shape.

    Returns:
        Indices among the outputs of that shape.
    """
    whole = _images(module, call, target)
    with _zeroed(module, stages):
        without = _images(module, call, target)
    return [index for index, pair in enumerate(zip(whole, without, strict=True)) if not torch.equal(*pair)]


def images_in(output: Any, target: Tensor) -> list[Tensor]:
    """Return what has an image's shape in an output, with a gradient or without."""
    return [each for _, each in tensors(output) if each.shape == target.shape]


def _images(module: nn.Module, call: HostCall, target: Tensor) -> list[Tensor]:
    with torch.no_grad(), forked_rng(target.device):
        return images_in(call.run(module), target)


@contextmanager
def _zeroed(module: nn.Module, stages: Sequence[Stage]) -> Iterator[None]:
    """Set the features of stages to zero."""
    handles = [module.get_submodule(stage.name).register_forward_hook(_Zero(stage)) for stage in stages]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
