"""Add the terms up: weights, schedule, balance, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.losses.balance import GradientNormBalancer, Observation
from inpaint_distill.losses.schedule import schedule

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.autograd.graph import GradientEdge

    from inpaint_distill.config import Config

__all__ = ["Composer"]


class Composer:
    """Turn named terms into the one number that the user adds to the host's loss.

    Args:
        config: Schedule and kind of balance.
        weights: Weight of each term.

    Attributes:
        log: Values of the last step as detached tensors: each term, the ``factor/...`` it entered with, ``loss``.
    """

    def __init__(self, config: Config, weights: Mapping[str, float]) -> None:
        self.config = config
        self.weights = dict(weights)
        self.log: dict[str, Tensor] = {}
        balanced = config.balance == "gradient_norm"
        self.balancer = GradientNormBalancer(list(weights), config.balance_every) if balanced else None

    def active(self, step: int) -> bool:
        """Tell whether anything counts at this step."""
        return bool(self.weights) and schedule(step, self.config.warmup, self.config.decay) > 0

    def observation(self, step: int, count: int) -> Observation | None:
        """Return the watcher of this step's backward where one is due."""
        if self.balancer is None or not self.balancer.due(step):
            return None
        return Observation(self.balancer, count)

    def combine(
        self,
        terms: Mapping[str, Tensor],
        step: int,
        observation: Observation | None = None,
        edges: Sequence[GradientEdge] = (),
    ) -> Tensor:
        """Weigh the terms of one step and add them up.

        Args:
            terms: Unweighted terms.
            step: Optimizer steps done so far.
            observation: From :meth:`observation`, if the step is watched.
            edges: Then also where the tapped features are in the graph, one for each.
        """
        now = schedule(step, self.config.warmup, self.config.decay)
        factors = {}
        for name, term in terms.items():
            balance = self.balancer.factor(name) if self.balancer else 1.0
            factors[name] = torch.full_like(term.detach(), now * self.weights[name]) * balance
        loss = torch.stack([factors[name] * term for name, term in terms.items()]).sum()
        if observation is not None:
            observation.expect(terms, factors, edges, loss)
        self.log = {
            **{name: term.detach() for name, term in terms.items()},
            **{f"factor/{name}": factor for name, factor in factors.items()},
            "loss": loss.detach(),
        }
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the balancer's factors as tensors."""
        factors = self.balancer.factors if self.balancer else {}
        return {name: factor for name, factor in factors.items() if factor is not None}, {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the factors back."""
        if self.balancer:
            self.balancer.factors.update(tensors)
