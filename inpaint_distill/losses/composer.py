"""Add the terms up: weights, schedule, balance, names."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.losses.balance import GradientNormBalancer, Observation
from inpaint_distill.losses.schedule import schedule

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from torch import Tensor
    from torch.autograd.graph import GradientEdge

    from inpaint_distill.config import Config
    from inpaint_distill.host.watch import Place

__all__ = ["Composer"]

_TINY = 1e-20
_HOST = "/host"  # after a term's name, in a saved state


class Composer:
    """Turn named terms, each with a value for every level, into the number that the user adds to the host's loss.

    Args:
        config: Schedule and kind of balance.
        weights: Weight of each term.

    Attributes:
        log: Values of the last step as detached tensors: each term's sum over the levels, the ``factor/...`` with
            which that sum entered, ``loss``.
    """

    def __init__(self, config: Config, weights: Mapping[str, float]) -> None:
        self.config = config
        self.weights = dict(weights)
        self.log: dict[str, Tensor] = {}
        balanced = config.balance == "gradient_norm"
        self.balancer = GradientNormBalancer(list(weights), config.balance_every) if balanced else None
        self._device = torch.device("cpu")

    def active(self, step: int) -> bool:
        """Tell whether anything counts around this step."""
        return bool(self.weights) and schedule(step, self.config.warmup, self.config.decay) > 0

    def due(self, step: int) -> bool:
        """Tell whether anything counts at this step."""
        return step % self.config.every == 0 and self.active(step)

    def over(self, step: int) -> bool:
        """Tell whether nothing counts from this step on."""
        decay = self.config.decay
        return not self.weights or (decay is not None and step >= decay[1])

    def keep(self, names: Collection[str], device: torch.device) -> None:
        """Forget the terms that this host, on this device, does not have."""
        self._device = device
        for name in [name for name in self.weights if name not in names]:
            del self.weights[name]
            if self.balancer:
                del self.balancer.factors[name], self.balancer.hosts[name]

    def observation(self, step: int, parameters: Callable[[], Iterable[Tensor]] | None = None) -> Observation | None:
        """Return the watcher of this step's backward, with the host's parameters, where one is due."""
        if self.balancer is None or not self.balancer.due(step // self.config.every):
            return None
        return Observation(self.balancer, parameters)

    def wait(self) -> None:
        """Take measurements into the factors no sooner than :meth:`settle` is called: other processes measure too."""
        if self.balancer:
            self.balancer.waits = True

    def settle(self) -> None:
        """Take what has been measured into the factors."""
        if self.balancer:
            self.balancer.settle()

    def factors(self) -> dict[str, Tensor | float]:
        """Return what each term's levels are multiplied with once it has warmed up; 0 where not balanced yet."""
        return {
            name: weight * (self.balancer.factor(name) if self.balancer else 1.0)
            for name, weight in self.weights.items()
        }

    def combine(
        self,
        terms: Mapping[str, Tensor],
        step: int,
        observation: Observation | None = None,
        looks_at: Mapping[str, str] | None = None,
        edges: Mapping[Place, GradientEdge] | None = None,
    ) -> Tensor:
        """Weigh the terms of one step and add them up.

        Args:
            terms: Unweighted terms, (levels,) each.
            step: Optimizer steps done so far.
            observation: From :meth:`observation`, if the step is watched.
            looks_at: Then also what each term looks at,
            edges: and where that is in the graph.
        """
        self.settle()
        now = self.config.every * schedule(step, self.config.warmup, self.config.decay)
        full = self.factors()
        factors = {name: torch.full_like(term.detach(), now) * full[name] for name, term in terms.items()}
        parts = {name: (factors[name] * term).sum() for name, term in terms.items()}
        loss = torch.stack(list(parts.values())).sum()
        if observation is not None:
            observation.expect(terms, looks_at or {}, factors, edges or {}, loss)
        sums = {name: term.detach().sum() for name, term in terms.items()}
        self.log = {
            **sums,
            **{f"factor/{name}": part.detach() / sums[name].clamp_min(_TINY) for name, part in parts.items()},
            "loss": loss.detach(),
        }
        return loss

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what the balancer has measured as tensors."""
        if self.balancer is None:
            return {}, {}
        found = self.balancer.factors | {f"{name}{_HOST}": norm for name, norm in self.balancer.hosts.items()}
        return {name: value for name, value in found.items() if value is not None}, {}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take it back."""
        if self.balancer:
            if unknown := {name.removesuffix(_HOST) for name in tensors} - self.balancer.factors.keys():
                raise ValueError(f"no term {', '.join(sorted(unknown))}")
            for kept, suffix in ((self.balancer.factors, ""), (self.balancer.hosts, _HOST)):
                found = {name: tensors.get(f"{name}{suffix}") for name in kept}
                kept.update({name: None if each is None else each.to(self._device) for name, each in found.items()})
