"""When the meta-networks look ahead, on which batches, and by which engine."""

from __future__ import annotations

import warnings
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.distributed import mean
from inpaint_distill.errors import LookaheadWarning, ReplayError
from inpaint_distill.host.guard import forked_rng
from inpaint_distill.lookahead.finite_difference import finite_difference
from inpaint_distill.lookahead.host_problem import Batch, recomputed
from inpaint_distill.lookahead.unroll import lacks_double_backward, unroll
from inpaint_distill.state import optimizer_state, set_optimizer_state, under

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from inpaint_distill.config import LookaheadConfig
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.lookahead.host_problem import HostProblem
    from inpaint_distill.lookahead.problem import Engine, Parameters

__all__ = ["Lookahead"]

_EPSILON = 1e-12  # of Adam: the gradient carries the weights and factors of the terms, which may be small


class Lookahead:
    """Train meta-networks by the inpainting loss after a look-ahead, every few optimizer steps (DGI).

    Batch B is that of the step just done and batch A the one before it. Both are copied when :meth:`remember` is
    called, and only in the steps that a look-ahead needs: two of every k.

    Args:
        config: Engine, period and learning rates.
        meta: Parameters of the meta-networks.
        stride: Optimizer steps from one that is distilled to the next.
    """

    def __init__(self, config: LookaheadConfig, meta: Mapping[str, nn.Parameter], stride: int = 1) -> None:
        self.config = config
        self._stride = stride
        self._period = max(1, config.every // stride)  # in distilled steps
        self.meta = dict(meta)
        self.active = config.engine != "off" and bool(self.meta)
        self.objective: Tensor | None = None
        self._batches: deque[Batch] = deque(maxlen=2)
        self._last = -1
        self._pending: dict[str, Tensor] = {}
        self._unrolls = config.engine == "unroll"
        self._optimizer = (
            torch.optim.Adam(list(self.meta.values()), lr=config.meta_lr, eps=_EPSILON) if self.meta else None
        )

    def remember(
        self, step: int, call: HostCall, image: Tensor, mask: Tensor, autocast: torch.dtype | None = None
    ) -> None:
        """Copy a batch where the look-ahead will need it that follows this distilled step, or the next one.

        Args:
            step: Optimizer steps done so far; this one will be the next.
            call: The host's own call.
            image: Complete image (B, 3, H, W).
            mask: (B, 1, H, W).
            autocast: The type that the host's forward was cast to.
        """
        if not self.active:
            return
        if self._pending:
            self._restore(call, autocast)
        distilled = step // self._stride
        if (distilled + 1) % self._period == 0 or (distilled + 2) % self._period == 0:
            if self._batches and self._last == step:  # of several batches of one step, the last
                self._batches.pop()
            self._batches.append(Batch.copy(call, image, mask, autocast))
            self._last = step

    def forget(self) -> None:
        """Forget the batches that are kept, and what the last look-ahead has found."""
        self._batches.clear()
        self.objective = None

    def due(self, steps: int) -> bool:
        """Tell whether a look-ahead follows the step just done: a distilled one, and two batches have to be there.

        Args:
            steps: Optimizer steps done, this one included.
        """
        distilled, between = divmod(steps - 1, self._stride)
        return self.active and not between and (distilled + 1) % self._period == 0 and len(self._batches) == 2

    def look(self, make: Callable[[Batch, Batch], HostProblem]) -> None:
        """Look ahead once and move the meta-networks.

        Args:
            make: Builds the problem from batch A and batch B.
        """
        first, second = self._batches
        if self._period > 1:
            self._batches.clear()
        device = second.image.device
        with torch.enable_grad(), torch.autocast(device.type, enabled=False), forked_rng(device):
            try:
                problem = make(first, second)
                theta: Parameters = dict(problem.theta())
                self.objective, gradient = self._gradient(problem, theta)
            except ReplayError as error:
                self.give_up(error)
                return
            except RuntimeError as error:
                if "use_reentrant" not in str(error):
                    raise
                self.give_up(recomputed())
                return
        self._step(gradient)

    def _gradient(self, problem: HostProblem, theta: Parameters) -> tuple[Tensor, Parameters]:
        meta: Parameters = dict(self.meta)
        if self._unrolls:
            try:
                return unroll(problem, theta, meta, lr=self.config.lr, steps=self.config.steps)
            except RuntimeError as error:
                if not lacks_double_backward(error):
                    raise
                self._unrolls = False
                warnings.warn(
                    f"the look-ahead cannot unroll this host: {str(error).splitlines()[0]}. It goes on with "
                    "engine='finite_difference', which needs no second derivative",
                    LookaheadWarning,
                    stacklevel=2,
                )
        engine: Engine = partial(finite_difference, lr=self.config.lr)
        return engine(problem, theta, meta)

    def _step(self, gradient: Parameters) -> None:
        if self._optimizer is None:
            return
        averages = mean([gradient[name].to(parameter.dtype) for name, parameter in self.meta.items()])
        for parameter, average in zip(self.meta.values(), averages, strict=True):
            # What overflows says nothing about the meta-networks; where its square does, Adam would stop for good.
            parameter.grad = torch.where(average.square().isfinite(), average, 0)
        self._optimizer.step()
        self._optimizer.zero_grad()

    def give_up(self, error: ReplayError) -> None:
        """Warn that the meta-networks cannot be trained on this host, and leave them at their start."""
        self.active = False
        self._batches.clear()
        warnings.warn(
            f"the meta-networks stay at their start: {error.asked} is needed to look ahead, but there are "
            f"{error.found}. To train them, {error.fix}; or choose lookahead='off'",
            LookaheadWarning,
            stacklevel=2,
        )

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return the moments, and the batches that are kept for the next look-ahead."""
        kept, _ = optimizer_state(self._optimizer, self.meta, "/")
        tensors = {f"moments/{key}": value for key, value in kept.items()}
        for index, batch in enumerate(self._batches):
            own = {"image": batch.image, "mask": batch.mask}
            own |= {f"call{number}": tensor for number, (_, tensor) in enumerate(batch.call.tensors())}
            tensors |= {f"batches/{index}/{key}": value for key, value in own.items()}
        tensors |= {f"batches/{key}": value for key, value in self._pending.items()}
        return tensors, {"active": self.active, "unrolls": self._unrolls, "last": self._last}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Take them back; a batch waits for the next call of the host, which has its arguments that are no tensors."""
        self.active, self._unrolls = bool(values["active"]), bool(values["unrolls"])
        self._last = int(values["last"])
        if unknown := [name for name in tensors if not name.startswith(("moments/", "batches/"))]:
            raise KeyError(unknown[0])
        self._batches.clear()
        self._pending = under("batches/", tensors)
        set_optimizer_state(self._optimizer, self.meta, under("moments/", tensors), "/")

    def _restore(self, call: HostCall, autocast: torch.dtype | None) -> None:
        pending, self._pending = self._pending, {}
        for index in range(2):
            kept = under(f"{index}/", pending)
            if not kept:
                break
            device = next(tensor for _, tensor in call.tensors()).device
            saved = iter([kept[f"call{number}"] for number in range(len(kept) - 2)])
            old = call.rebuild(lambda _, tensor, saved=saved: next(saved).to(tensor.device))  # type: ignore[misc]
            self._batches.append(Batch(old, kept["image"].to(device), kept["mask"].to(device), autocast))
