"""The two losses of a look-ahead on somebody's host."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inpaint_distill.distributed import mean
from inpaint_distill.errors import ConfigError, ReplayError
from inpaint_distill.host.guard import lending, untouched
from inpaint_distill.host.outputs import in_output_range, restored_images
from inpaint_distill.host.watch import Views, Watch
from inpaint_distill.networks.meta import meta_parameters
from inpaint_distill.state import under

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.lookahead.problem import Parameters
    from inpaint_distill.losses.term import Term

__all__ = ["Batch", "HostProblem", "InpaintingLoss", "hole_weighted_l1", "recomputed"]

InpaintingLoss: TypeAlias = "Callable[[Any, Tensor, Tensor], Tensor]"
"""``loss(output, image, mask)``: the host's output, and the complete image and the mask as given to ``loss()``."""

_HOLE_WEIGHT = 6.0  # of a hole pixel against a known one, as in the partial convolution paper
_RECOMPUTED = "stages that run again in backward, by gradient checkpointing"
_FIX = "give attach(inpainting_loss=...) a function of the host's output, the image and the mask"


@dataclass(frozen=True)
class Batch:
    """One step's batch, kept for a look-ahead: copies, so that a loader may fill its buffers again.

    Attributes:
        call: The host's own call.
        image: Complete image (B, 3, H, W).
        mask: (B or 1, 1, H, W).
        autocast: The type that the host's forward was cast to; ``None`` for none.
    """

    call: HostCall
    image: Tensor
    mask: Tensor
    autocast: torch.dtype | None = None

    @staticmethod
    def copy(call: HostCall, image: Tensor, mask: Tensor, autocast: torch.dtype | None = None) -> Batch:
        """Copy what a host was called with."""
        kept = call.rebuild(lambda _, tensor: tensor.detach().clone())
        return Batch(dataclasses.replace(kept, random=None), image.detach().clone(), mask.detach().clone(), autocast)

    def cast(self) -> torch.autocast:
        """Return the autocast under which the host ran on it."""
        return torch.autocast(self.image.device.type, dtype=self.autocast, enabled=self.autocast is not None)


def hole_weighted_l1(output: Any, target: Tensor, mask: Tensor) -> Tensor:
    """Return the mean absolute error of all restored images, a hole pixel weighing 6 times a known one (ours).

    Args:
        output: Whatever the host returned.
        target: Complete image in the host's own range, (B, 3, H, W).
        mask: (B or 1, 1, H, W), 1 in the hole.

    Raises:
        ReplayError: No restored image is found in the output.
    """
    weight = 1 + (_HOLE_WEIGHT - 1) * mask.float()
    weight = weight.expand(target.shape[0], target.shape[1], -1, -1)
    errors = [(image.float() - target.float()).abs() for image in restored_images(output, target, _FIX)]
    (area,) = mean([weight.sum()])
    return torch.stack([(weight * error).sum() / area for error in errors]).mean()


class _Call(nn.Module):
    """A host as a module whose forward takes a :class:`HostCall`, for ``functional_call``."""

    def __init__(self, host: nn.Module) -> None:
        super().__init__()
        self.host = host

    def forward(self, call: HostCall) -> Any:
        # What gradient checkpointing runs again in backward would have the host's own weights, without a word.
        try:
            with torch.autograd.graph.disable_saved_tensors_hooks(_RECOMPUTED):
                return call.run(self.host)
        except RuntimeError as error:
            if _RECOMPUTED not in str(error):
                raise
            raise recomputed() from None


def recomputed() -> ReplayError:
    """Say that a look-ahead cannot go through gradient checkpointing."""
    return ReplayError("a forward that keeps what its backward needs", _RECOMPUTED, "train without it")


def _places(host: nn.Module) -> dict[str, str]:
    """List where a host's modules hold the parameters that are trained, each with its key in ``theta``.

    ``functional_call`` ties what is shared by name. It puts a parameter in place once for each name of its module, and
    back only once, so that a module of two names would keep what it should have been lent.
    """
    keys = {parameter: f"host.{name}" for name, parameter in host.named_parameters() if parameter.requires_grad}
    return {
        f"host.{name}.{key}" if name else f"host.{key}": keys[parameter]
        for name, part in host.named_modules()
        for key, parameter in part.named_parameters(recurse=False, remove_duplicate=False)
        if parameter in keys
    }


class HostProblem:
    """The distillation loss on batch A and the inpainting loss on batch B; see :class:`Problem`.

    Every forward begins from the same buffers and random state and leaves both, and the weights, as they were.

    Args:
        host: The model; its forward hooks (taps, completion blocks) run.
        stages: Its tapped stages.
        sites: Its tapped attention.
        terms: The distillation terms, by name.
        factors: What each is multiplied with.
        first: Batch A.
        teacher: The teacher's views of it.
        second: Batch B.
        recipe: How the complete image follows from the host's call.
        inpainting_loss: The host's own loss; :func:`hole_weighted_l1` by default.
    """

    def __init__(
        self,
        host: nn.Module,
        stages: Sequence[Stage],
        sites: Sequence[AttentionSite],
        terms: Mapping[str, Term],
        factors: Mapping[str, Tensor | float],
        first: Batch,
        teacher: Views,
        second: Batch,
        recipe: Recipe,
        inpainting_loss: InpaintingLoss | None = None,
    ) -> None:
        self.host = host
        self.stages = stages
        self.sites = sites
        self.terms = terms
        self.factors = factors
        self.first = first
        self.teacher = teacher
        self.second = second
        self.recipe = recipe
        self.inpainting_loss = inpainting_loss
        self._runner = _Call(host)
        self._places = _places(host)

    def theta(self) -> Parameters:
        """Return what the distillation loss trains: the host's parameters, and those of the terms' own networks."""
        found: Parameters = {f"host.{name}": each for name, each in self.host.named_parameters() if each.requires_grad}
        for name, term in self.terms.items():
            found |= {f"terms.{name}.{key}": each for key, each in term.named_parameters() if each.requires_grad}
        return found

    def meta(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the meta-networks."""
        return {f"{name}.{key}": each for name, term in self.terms.items() for key, each in meta_parameters(term)}

    def distillation(self, theta: Parameters, meta: Parameters, anchor: Views | None = None) -> tuple[Tensor, Views]:
        """Compute the weighted terms on batch A, from a forward that ends at the last tap."""
        image, mask = self.first.image, self.first.mask
        watch = Watch(self.host, self.stages, self.sites)
        try:
            seen = watch.run(lambda: self._forward(theta, self.first), (image.shape[2], image.shape[3]))
        finally:
            watch.remove()
        seen.features = [feature.float() for feature in seen.features]
        hole = mask.float().expand(image.shape[0], -1, -1, -1)
        parts = []
        for name, term in self.terms.items():
            own = under(f"terms.{name}.", theta) | under(f"{name}.", meta)
            views = [getattr(each, term.looks_at) for each in (seen, self.teacher, anchor or seen)]
            with lending(term):
                value = functional_call(term, own, (views[0], views[1], hole, views[2]))
            parts.append((self.factors[name] * value).sum())
        return torch.stack(parts).sum(), anchor or seen.detached()

    def inpainting(self, theta: Parameters) -> Tensor:
        """Compute the inpainting loss on batch B."""
        batch = self.second
        output = self._forward(theta, batch)
        if self.inpainting_loss is not None:
            loss = self.inpainting_loss(output, batch.image, batch.mask)
            if not isinstance(loss, Tensor) or loss.ndim or not loss.requires_grad:
                found = f"{tuple(loss.shape)} tensor" if isinstance(loss, Tensor) else f"{type(loss).__name__}"
                found += "" if getattr(loss, "requires_grad", True) else " without a gradient"
                fix = "return one number that depends on the output: `(error * mask).mean()`"
                raise ConfigError("one number from inpainting_loss(output, image, mask)", f"a {found}", fix)
            return loss
        target = self.recipe.target(batch.call, batch.image)
        images = restored_images(output, target, _FIX)
        return hole_weighted_l1(images, in_output_range(images, target, batch.image), batch.mask)

    def _forward(self, theta: Parameters, batch: Batch) -> Any:
        own = {place: theta[key] for place, key in self._places.items()}
        with untouched(self.host), lending(self.host), batch.cast():
            return functional_call(self._runner, own, (batch.call,), tie_weights=False)
