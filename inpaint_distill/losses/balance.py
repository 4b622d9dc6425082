"""Balance the terms against the host's own loss by gradient norm at the tapped features (ours, after Moebius)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inpaint_distill.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.autograd.graph import GradientEdge

    from inpaint_distill.host.watch import Place

__all__ = ["EAGER_STEPS", "GradientNormBalancer", "Observation"]

_SMOOTHING = 0.8
_BOUNDS = (1e-12, 1e6)
_ROUNDING = 1e-6  # of the factor: a host's gradient this small is what the subtraction of the terms' own leaves
EAGER_STEPS = 32  # first steps, in which the ratio of an untrained host falls or rises by decades
_TINY = 1e-20


class GradientNormBalancer:
    """Estimate, for each term, the factor that gives it the same gradient norm as the host's loss.

    Every few steps, one backward of the user's is observed. The gradient that arrives at a tapped feature is the
    host's plus the terms'; each term's own is had from a backward from the term to the features, which enters the host
    only between the tapped features. The user's scaling of the sum (accumulation, GradScaler) is read off the gradient
    of the returned loss and divided out, so that a factor of the user's own on the distillation loss is divided out
    too: use the weights. Nothing here waits for the device.

    Args:
        names: Names of the terms.
        every: Steps between two observations, after the first ones.
    """

    def __init__(self, names: Sequence[str], every: int) -> None:
        self.every = every
        self.factors: dict[str, Tensor | None] = dict.fromkeys(names)

    def due(self, step: int) -> bool:
        """Tell whether this step is to be observed: the first ones and until all is measured, then every few."""
        unmeasured = any(factor is None for factor in self.factors.values())
        return step < EAGER_STEPS or step % self.every == 0 or unmeasured

    def factor(self, name: str) -> Tensor | float:
        """Return a term's current factor; 0 before the first observation: how strong it is, is not known yet."""
        factor = self.factors[name]
        return 0.0 if factor is None else factor

    def update(self, name: str, ratio: Tensor) -> None:
        """Take one measured ratio of gradient norms into the running factor; a ratio that is not finite is dropped."""
        old = self.factors[name]
        measured = torch.isfinite(ratio) & (ratio > (_BOUNDS[0] if old is None else _ROUNDING * old))
        ratio = ratio.clamp(*_BOUNDS)
        if old is None:
            self.factors[name] = torch.where(measured, ratio, torch.zeros_like(ratio))
            return
        # Geometric mean: the ratio spans decades in the first steps.
        mean = (_SMOOTHING * old.log() + (1 - _SMOOTHING) * ratio.log()).exp()
        self.factors[name] = torch.where(measured, torch.where(old > 0, mean, ratio), old)


class Observation:
    """One backward, watched at the tapped tensors.

    Made before the host's forward; :meth:`watch` is called by the taps on each tensor as it appears, so that a feature
    that is overwritten in place later is watched at the right version.
    """

    def __init__(self, balancer: GradientNormBalancer) -> None:
        self.balancer = balancer
        self.total: dict[Place, Tensor] = {}
        self.early: dict[Place, Tensor] = {}
        self.own: dict[str, dict[Place, Tensor]] = {}
        self.applied: dict[str, Tensor] = {}
        self.awaited: set[Place] = set()
        self.scale: Tensor | None = None

    def watch(self, place: Place, tensor: Tensor) -> None:
        """Watch the gradient of one tapped tensor."""
        tensor.register_hook(partial(self._gradient, place))  # type: ignore[no-untyped-call]

    def expect(
        self,
        terms: Mapping[str, Tensor],
        looks_at: Mapping[str, str],
        applied: Mapping[str, Tensor],
        edges: Mapping[Place, GradientEdge],
        loss: Tensor,
    ) -> None:
        """Take each term's own gradient at what it looks at and wait for the user's backward of ``loss``.

        Args:
            terms: Unweighted terms that depend on the tapped tensors.
            looks_at: Which of them each term looks at, as in :data:`~inpaint_distill.host.watch.Place`.
            applied: The factor each enters ``loss`` with.
            edges: Where the tapped tensors are in the graph. They are not kept: a hook on the graph that holds the
                graph would never be freed.
            loss: What is handed to the user.
        """
        early = dict(self.early)  # the backwards below run through the same hooks
        for name, term in terms.items():
            places = [place for place in edges if place[0] == looks_at[name]]
            wanted = [edges[place] for place in places]
            try:
                gradients = torch.autograd.grad(term, wanted, retain_graph=True, allow_unused=True)
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                raise CaptureError(
                    f"the gradient of term {name!r} at the tapped features, to balance it",
                    "reentrant gradient checkpointing between them, which allows none",
                    "checkpoint with use_reentrant=False, or set Config(balance='none')",
                ) from None
            self.own[name] = {place: each for place, each in zip(places, gradients, strict=True) if each is not None}
        self.early = early
        self.applied = dict(applied)
        self.awaited = {place for own in self.own.values() for place in own}
        loss.register_hook(self._loss_gradient)  # type: ignore[no-untyped-call]

    def _loss_gradient(self, gradient: Tensor) -> None:
        self.scale = gradient.detach()

    def _gradient(self, place: Place, gradient: Tensor) -> None:
        if self.scale is None:  # a backward of the host's loss alone, before this one's
            self.early[place] = gradient.detach()
            return
        early = self.early.get(place)
        whole = gradient.detach() if early is None else gradient.detach() + early
        self.total[place] = whole.float() / self.scale
        if self.awaited and self.awaited <= self.total.keys():
            self._finish()

    def _finish(self) -> None:
        host = {}
        for place in self.awaited:
            mine = [self.applied[name] * own[place] for name, own in self.own.items() if place in own]
            host[place] = (self.total[place] - sum(mine)).square().sum()
        for name, own in self.own.items():
            if own:
                term_norm = torch.stack([part.float().square().sum() for part in own.values()]).sum()
                host_norm = torch.stack([host[place] for place in own]).sum()
                self.balancer.update(name, (host_norm / term_norm.clamp_min(_TINY)).sqrt())
        self.total.clear()
        self.own.clear()
        self.awaited.clear()
