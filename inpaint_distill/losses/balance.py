"""Balance the terms against the host's own loss by gradient norm at the tapped features (ours, after Moebius)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from inpaint_distill.distributed import mean
from inpaint_distill.errors import CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch.autograd.graph import GradientEdge

    from inpaint_distill.host.watch import Place

__all__ = ["EAGER_STEPS", "GradientNormBalancer", "Observation"]

_SMOOTHING = 0.8
_BOUNDS = (1e-20, 1e6)
_ROUNDING = 1e-6  # of a term's gradient: a host's this small is what the subtraction of the term's leaves
_FALL = 1e-3  # of the factor: a ratio this small is taken at once, as a term has outgrown its factor
EAGER_STEPS = 32  # first steps, in which the ratio of an untrained host falls or rises by decades
_TINY = 1e-20
_BALANCE = "the gradient of the terms at the tapped features, to balance them"
_COMPILED_LATE = (
    "a graph, compiled after attach(), that can be walked back only once",
    "compile first, then attach to what is called: attach(torch.compile(host), ...); or set Config(balance='none')",
)


class GradientNormBalancer:
    """Estimate, for each level of each term, the factor that gives it the same gradient norm there as the host's loss.

    Level by level, since a host's gradient falls by decades from one to the next while a term's does not: an optimizer
    that divides by the size of the gradient would follow the term alone where the host's is small, and a moving average
    that is its own teacher then dies with its student.

    Every few steps, one backward of the user's is observed. The gradient that arrives at a tapped feature is the
    host's plus the terms'; theirs is had from a backward from the terms to the features, which enters the host
    only between the tapped features. The user's scaling of the sum (accumulation, GradScaler) is read off the gradient
    of the returned loss and divided out, so that a factor of the user's own on the distillation loss is divided out
    too: use the weights. Nothing here waits for the device.

    Args:
        names: Names of the terms.
        every: Steps between two observations, after the first ones.

    Attributes:
        factors: Of each term, (levels,); ``None`` before the first observation.
        hosts: The squared norms of the host's gradient at each term's levels that were last seen.
        waits: Keep what is measured until :meth:`settle`: other processes measure too, and in the middle of a backward
            is no time to ask them.
    """

    def __init__(self, names: Sequence[str], every: int) -> None:
        self.every = every
        self.factors: dict[str, Tensor | None] = dict.fromkeys(names)
        self.hosts: dict[str, Tensor | None] = dict.fromkeys(names)
        self.waits = False
        self._measured: list[tuple[str, Tensor]] = []
        self._measurements = 0
        self._reached: Tensor | None = None  # whether the host's gradient has arrived anywhere

    def due(self, step: int) -> bool:
        """Tell whether this step, of those that are distilled, is to be observed.

        The first ones are and, until all is measured, any; then every few.
        """
        unmeasured = any(factor is None for factor in self.factors.values())
        return step < EAGER_STEPS or step % self.every == 0 or unmeasured

    def factor(self, name: str) -> Tensor | float:
        """Return a term's current factor; 0 before the first observation: how strong it is, is not known yet."""
        factor = self.factors[name]
        return 0.0 if factor is None else factor

    def measured(self, name: str, host: Tensor, own: Tensor) -> None:
        """Take squared gradient norms, (levels,), of the host's loss and of a term."""
        self._reached = host.any() if self._reached is None else self._reached | host.any()
        self._measurements += 1
        if self.waits:
            self._measured.append((name, torch.stack([host, own])))
        else:  # at once: what waits here when Ctrl-C comes would go into the factors of a later step
            self._take(name, host, own)

    def check(self) -> None:
        """Refuse to go on where every term counts 0 because there is nothing to balance it against.

        Raises:
            CaptureError: The host's own loss has given no gradient in any of the first steps.
        """
        steps = self._measurements // max(1, len(self.factors))
        if steps >= EAGER_STEPS and self._reached is not None and not bool(self._reached):
            raise CaptureError(
                "the gradient of your own loss at the tapped features, to balance the terms against",
                f"none in {steps} steps: your loss is made from another forward of the host, from none, or from an "
                "output that does not depend on these features, such as that of an earlier network",
                "call loss() right after the forward that your loss is made from, and run others under "
                "torch.no_grad() or distiller.paused(); name stages of the network that your loss trains: "
                "attach(stages=[...]); or set Config(balance='none')",
            )

    def settle(self) -> None:
        """Take what has been measured into the factors, as the mean over all processes."""
        kept, self._measured = self._measured, []
        for (name, _), (host, own) in zip(kept, mean([both for _, both in kept]), strict=True):
            self._take(name, host, own)

    def update(self, name: str, ratio: Tensor) -> None:
        """Take measured ratios of gradient norms, (levels,), into the running factors; those not finite are dropped."""
        old = self.factors[name]
        measured = torch.isfinite(ratio) & (ratio > _BOUNDS[0])
        ratio = ratio.clamp(*_BOUNDS)
        if old is None:
            self.factors[name] = torch.where(measured, ratio, torch.zeros_like(ratio))
            return
        # Geometric mean: the ratio spans decades in the first steps.
        smoothed = (_SMOOTHING * old.log() + (1 - _SMOOTHING) * ratio.log()).exp()
        self.factors[name] = torch.where(measured, torch.where((old > 0) & (ratio > _FALL * old), smoothed, ratio), old)

    def _take(self, name: str, host: Tensor, own: Tensor) -> None:
        old, before = self.factors[name], self.hosts[name]
        if old is None or before is None:
            self.hosts[name] = host
        else:
            # Beside a term that has outgrown its factor the host's gradient drowns: the last one seen stands for it.
            seen = host.isfinite() & (host > (_ROUNDING * old).square() * own)
            self.hosts[name] = torch.where(seen & (own > 0), host, before)
            host = torch.where(seen, host, before)
        # A level without a gradient, such as one left out for NaN, has no ratio.
        self.update(name, (host / own.clamp_min(_TINY) * (own > 0)).sqrt())


class Observation:
    """One backward, watched at the tapped tensors.

    Made before the host's forward; :meth:`watch` is called by the taps on each tensor as it appears, so that a feature
    that is overwritten in place later is watched at the right version.

    Args:
        balancer: Takes what is measured.
        parameters: The host's. Where none has a gradient as the backward of ``loss`` begins, one of before has been
            thrown away, such as that of a discriminator's loss.
    """

    def __init__(
        self, balancer: GradientNormBalancer, parameters: Callable[[], Iterable[Tensor]] | None = None
    ) -> None:
        self.balancer = balancer
        self.parameters = parameters
        self.total: dict[Place, Tensor] = {}
        self.early: dict[Place, Tensor] = {}
        self.added: dict[Place, Tensor] = {}
        self.norms: dict[str, list[Tensor]] = {}
        self.looks_at: dict[str, str] = {}
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
        """Take the terms' own gradients at what they look at and wait for the user's backward of ``loss``.

        Args:
            terms: Unweighted terms that depend on the tapped tensors, (levels,) each.
            looks_at: Which of them each term looks at, as in :data:`~inpaint_distill.host.watch.Place`.
            applied: The factors their levels enter ``loss`` with.
            edges: Where the tapped tensors are in the graph. They are not kept: a hook on the graph that holds the
                graph would never be freed.
            loss: What is handed to the user.
        """
        early = dict(self.early)  # the backwards below run through the same hooks
        try:
            together = torch.stack([(applied[name] * term).sum() for name, term in terms.items()]).sum()
            self.added = self._gradients(together, edges)
            for name, term in terms.items():
                self.norms[name] = []
                for level, value in enumerate(term.unbind()):
                    own = {place: edge for place, edge in edges.items() if place[:2] == (looks_at[name], level)}
                    if not own and looks_at[name] == "features":
                        raise _reentrant()  # only there a tensor has no gradient when it appears, and one later
                    norms = [each.float().square().sum() for each in self._gradients(value, own).values()]
                    self.norms[name].append(torch.stack([torch.zeros_like(value), *norms]).sum())
        except CaptureError:
            raise
        except RuntimeError as error:
            if "use_reentrant" in str(error):
                raise _reentrant() from None
            if "donated buffer" in str(error):
                raise CaptureError(_BALANCE, *_COMPILED_LATE) from None
            raise
        except Exception as error:  # of a function of the host's own
            found = f"{type(error).__name__}: {error}, from a backward in the host that does not run a second time"
            raise CaptureError(_BALANCE, found, "set Config(balance='none'), or train without that function") from error
        self.early = early
        self.looks_at = dict(looks_at)
        self.awaited = set(self.added)
        loss.register_hook(self._loss_gradient)  # type: ignore[no-untyped-call]

    def _gradients(self, value: Tensor, edges: Mapping[Place, GradientEdge]) -> dict[Place, Tensor]:
        if not edges:
            return {}
        found = torch.autograd.grad(value, list(edges.values()), retain_graph=True, allow_unused=True)
        return {place: each for place, each in zip(edges, found, strict=True) if each is not None}

    def _loss_gradient(self, gradient: Tensor) -> None:
        self.scale = gradient.detach()
        if self.early and self.parameters is not None and all(each.grad is None for each in self.parameters()):
            self.early.clear()

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
        host: dict[tuple[str, int], Tensor] = {}
        for place in self.awaited:
            norm = (self.total[place] - self.added[place]).float().square().sum()
            host[place[:2]] = host.get(place[:2], torch.zeros_like(norm)) + norm
        for name, norms in self.norms.items():
            own = torch.stack(norms)
            whole = [host.get((self.looks_at[name], level), own.new_zeros(())) for level in range(len(own))]
            self.balancer.measured(name, torch.stack(whole), own)
        self.total.clear()
        self.added.clear()
        self.norms.clear()
        self.awaited.clear()


def _reentrant() -> CaptureError:
    return CaptureError(
        _BALANCE,
        "reentrant gradient checkpointing between them, which allows none",
        "checkpoint with use_reentrant=False, or set Config(balance='none')",
    )
