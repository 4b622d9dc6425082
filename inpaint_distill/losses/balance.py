"""Balance the terms against the host's own loss by gradient norm at the tapped features (ours, after Moebius)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch.autograd.graph import GradientEdge

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
    """One backward, watched at the tapped features.

    Made before the host's forward; :meth:`watch` is called by the taps on each feature as it appears, so that a
    feature that is overwritten in place later is watched at the right version.
    """

    def __init__(self, balancer: GradientNormBalancer, count: int) -> None:
        self.balancer = balancer
        self.total: list[Tensor | None] = [None] * count
        self.early: list[Tensor | None] = [None] * count
        self.own: dict[str, list[Tensor | None]] = {}
        self.applied: dict[str, Tensor] = {}
        self.scale: Tensor | None = None

    def watch(self, index: int, feature: Tensor) -> None:
        """Watch the gradient of one feature."""
        if feature.requires_grad:
            feature.register_hook(partial(self._feature_gradient, index))  # type: ignore[no-untyped-call]

    def expect(
        self,
        terms: Mapping[str, Tensor],
        applied: Mapping[str, Tensor],
        edges: Sequence[GradientEdge],
        loss: Tensor,
    ) -> None:
        """Take each term's own gradient at the features and wait for the user's backward of ``loss``.

        Args:
            terms: Unweighted terms that depend on the features.
            applied: The factor each enters ``loss`` with.
            edges: Where the features are in the graph. They are not kept: a hook on the graph that holds the graph
                would never be freed.
            loss: What is handed to the user.
        """
        early = list(self.early)  # the backwards below run through the same hooks
        for name, term in terms.items():
            self.own[name] = list(torch.autograd.grad(term, edges, retain_graph=True, allow_unused=True))
        self.early = early
        self.applied = dict(applied)
        loss.register_hook(self._loss_gradient)  # type: ignore[no-untyped-call]

    def _loss_gradient(self, gradient: Tensor) -> None:
        self.scale = gradient.detach()

    def _feature_gradient(self, index: int, gradient: Tensor) -> None:
        if self.scale is None:  # a backward of the host's loss alone, before this one's
            self.early[index] = gradient.detach()
            return
        early = self.early[index]
        whole = gradient.detach() if early is None else gradient.detach() + early
        self.total[index] = whole.float() / self.scale
        totals = [total for total in self.total if total is not None]
        if len(totals) == len(self.total):
            self._finish(totals)

    def _finish(self, totals: list[Tensor]) -> None:
        host = []
        for index, total in enumerate(totals):
            mine = [self.applied[name] * part for name, own in self.own.items() if (part := own[index]) is not None]
            host.append((total - sum(mine)).square().sum())
        for name, own in self.own.items():
            touched = [(index, part) for index, part in enumerate(own) if part is not None]
            term_norm = torch.stack([part.float().square().sum() for _, part in touched]).sum()
            host_norm = torch.stack([host[index] for index, _ in touched]).sum()
            self.balancer.update(name, (host_norm / term_norm.clamp_min(_TINY)).sqrt())
        self.total = [None] * len(self.total)
        self.own.clear()
