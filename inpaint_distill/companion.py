"""The user's optimizer, checked and given what stays in the host, and the optimizer of what does not (ours)."""

from __future__ import annotations

import inspect
import warnings
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.distributed import average_
from inpaint_distill.errors import OptimizerError, OptimizerWarning
from inpaint_distill.host.trace import RESERVED
from inpaint_distill.state import from_plain, set_optimizer_state, to_plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

    from inpaint_distill.injection import Injected

__all__ = ["CompanionOptimizer", "adopt", "check_optimizer", "disown"]

_STEPLESS = 256  # backwards without a step: more than anybody accumulates
_KEPT = (int, float, str, tuple, list, type(None), torch.Tensor)  # of an optimizer's group: no functions
_ASKED = 8  # gradients, the largest, that are looked at to know whether all have been cleared


class CompanionOptimizer:
    """Train the added parameters in step with the host, without entering the user's optimizer.

    Another parameter group there would break schedulers that count groups and change the user's checkpoints. So the
    added parameters have an optimizer of the same class and settings, whose learning rate follows the first group's.

    Args:
        parameters: What to train.
        model: The user's optimizer, or ``None`` for AdamW at 1e-3.
        host: Tells, by having no gradient, that what has arrived was thrown away with its own.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], model: torch.optim.Optimizer | None, host: nn.Module | None = None
    ) -> None:
        self.parameters = list(parameters)
        self.host = host
        self.model = model
        self.inner: torch.optim.Optimizer | None = None
        self.scale: Tensor | None = None
        self.arrived = 0  # backwards since the last step
        self.told = False
        if not self.parameters:
            return
        # The step of L-BFGS wants the closure that only the user has.
        alike = None if model is None or isinstance(model, torch.optim.LBFGS) else _alike(model, self.parameters)
        self.inner = alike or torch.optim.AdamW(self.parameters, lr=1e-3)
        train = getattr(self.inner, "train", None)
        if callable(train):  # an optimizer that averages (schedule-free) begins in its eval mode
            train()

    def arrive(self, gradient: Tensor) -> None:
        """Note the factor with which one backward enters: a GradScaler's, or that of gradient accumulation.

        Called as the backward begins. Where gradients are waiting for a step and the host's have been cleared
        (``zero_grad()`` after an error in backward, or in place of a step), they are cleared as well.
        """
        self.arrived += 1
        if self.arrived >= _STEPLESS and not self.told:
            self.told = True
            self._tell()
        waiting = [p.grad for p in self.host.parameters() if p.grad is not None] if self.host is not None else []
        if self.scale is not None and self.host is not None and not waiting:
            self.scale = None
            for parameter in self.parameters:
                parameter.grad = None
        if self.scale is None:
            self.scale = gradient.detach()
            return
        # A step that GradScaler skipped has left its gradients here: what overflowed is dropped, with its factor.
        before = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        good = torch.stack([self.scale.isfinite(), *(each.isfinite().all() for each in before)]).all()
        if waiting:  # all zero: cleared, by zero_grad(set_to_none=False); a few tell
            few = sorted(waiting, key=torch.Tensor.numel)[-_ASKED:]
            good &= torch.stack([each.any().to(good.device) for each in few]).any()
        for each in before:
            each.copy_(torch.where(good, each, 0))
        self.scale = torch.where(good, self.scale, 0) + gradient.detach()

    def step(self) -> None:
        """Step along the mean of the gradients that have arrived, in all processes, and clear them."""
        self.arrived = 0
        if self.inner is None or self.scale is None:
            return
        gradients = [parameter.grad.div_(self.scale) for parameter in self.parameters if parameter.grad is not None]
        average_(gradients)
        for gradient in gradients:
            # What overflowed counts as nothing: GradScaler skips such a step for the host.
            gradient.nan_to_num_(0.0, 0.0, 0.0)
        if self.model is not None:
            for group in self.inner.param_groups:
                group["lr"] = self.model.param_groups[0]["lr"]
        self.inner.step()
        self.inner.zero_grad()
        self.scale = None  # last: gradients that Ctrl-C has left here are then known to be waiting, and cleared

    def _tell(self) -> None:
        """Warn that no step follows: the teacher, the warm-up and what is added stand still."""
        if self.model is None:
            missed = "distiller.step() has not been called"
            fix = "call it after each step of your optimizer, or give that optimizer to attach()"
        else:
            missed = f"{type(self.model).__name__}.step(), of the optimizer given to attach(), has not been called"
            fix = "give it the one that steps (of SAM, its base_optimizer), or none and call distiller.step()"
        found = f"{self.arrived} backwards of the distillation loss, and {missed}: teacher and warm-up stand still"
        warnings.warn(f"{found}; {fix}", OptimizerWarning, stacklevel=3)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return all that the optimizer keeps, in its state and in its group, as tensors and JSON values."""
        tensors: dict[str, Tensor] = {}
        if self.inner is None:
            return tensors, {}
        whole = self.inner.state_dict()
        group = {key: value for key, value in whole["param_groups"][0].items() if isinstance(value, _KEPT)}
        del group["params"]
        return tensors, {"inner": to_plain({"state": whole["state"], "group": group}, tensors, "inner")}

    def load(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Take it back; the optimizer itself knows how, such as in which types it keeps its moments."""
        if self.inner is not None and "inner" in values:
            saved, own = from_plain(values["inner"], tensors), self.inner.state_dict()["param_groups"][0]
            self.inner.load_state_dict({"state": saved["state"], "param_groups": [{**own, **saved["group"]}]})
        else:  # a file of before, which has the moments alone
            numbered = {str(index): parameter for index, parameter in enumerate(self.parameters)}
            set_optimizer_state(self.inner, numbered, {**tensors, **values})


def _alike(model: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> torch.optim.Optimizer | None:
    """Make an optimizer of the same class and settings; ``None`` where that cannot be.

    But for the sign: what is added minimises its own loss, also beside a host that maximises the negative of its own.
    """
    accepted = inspect.signature(type(model)).parameters.keys() - {"maximize"}
    settings = {key: value for key, value in model.defaults.items() if key in accepted}
    try:
        return type(model)(parameters, **settings)
    except Exception:  # its arguments are not among its defaults, it wraps another one, or takes matrices alone
        return None


def check_optimizer(host: nn.Module, optimizer: torch.optim.Optimizer | None) -> torch.optim.Optimizer | None:
    """Check the user's optimizer and return the one that steps; accelerate wraps it.

    Raises:
        OptimizerError: It is not one, or holds none of the host's parameters.
    """
    if optimizer is None:
        return None
    optimizer = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(optimizer, torch.optim.Optimizer):
        found = f"a {type(optimizer).__name__}"
        raise OptimizerError("an optimizer", found, "give a torch.optim.Optimizer, or none and call distiller.step()")
    own = {id(parameter) for parameter in host.parameters()}
    if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
        raise OptimizerError(
            "the optimizer that trains the host",
            "an optimizer that holds none of the host's parameters",
            "make it from host.parameters() after the host is on its device, or give the generator's optimizer",
        )
    return optimizer


def adopt(optimizer: torch.optim.Optimizer, host: nn.Module, own: Injected) -> None:
    """Let the user's optimizer train what was injected, in the group that trains the stage it follows.

    A block at the host's input is trained in the first group. No group is added: schedulers count them.
    """
    groups = optimizer.param_groups
    at_input = [] if own.image_block is None else [(own.image_block, None)]
    for block, stage in [*zip(own.blocks, own.stages, strict=True), *at_input]:  # as named_parameters() has them
        beside = {id(p) for p in host.get_submodule(stage.name).parameters()} if stage else set()
        chosen = next((g for g in groups if any(id(p) in beside for p in g["params"])), groups[0])
        present = {id(parameter) for group in groups for parameter in group["params"]}
        wanted = {id(parameter) for parameter in block.parameters()} - present
        added = [(name, parameter) for name, parameter in own.named_parameters(RESERVED) if id(parameter) in wanted]
        values = [parameter for _, parameter in added]
        if added and isinstance(getattr(optimizer, "optim", None), torch.optim.Optimizer):
            raise OptimizerError(
                "to train the blocks that stay in the host",
                f"{type(optimizer).__name__}, which has shared the parameters out among the processes already",
                "attach(host, image=image, mask=mask), make the optimizer, and call distiller.step() after its steps",
            )
        if added and _alike(optimizer, values) is None and _alike(optimizer, chosen["params"]) is not None:
            raise OptimizerError(
                "to train the blocks that stay in the host",
                f"{type(optimizer).__name__}, which does not take parameters of their shapes",
                "give attach() the optimizer that trains the host's convolutions, or set completion=False",
            )
        chosen["params"].extend(values)
        if "param_names" in chosen:  # of an optimizer made from named_parameters()
            chosen["param_names"].extend(name for name, _ in added)


def disown(optimizer: torch.optim.Optimizer, own: Injected) -> None:
    """Take the injected parameters, and their moments, out of the user's optimizer."""
    gone = {id(parameter) for parameter in own.parameters()}
    for group in optimizer.param_groups:
        kept = [number for number, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        for key in ("params", "param_names"):
            if key in group:
                group[key] = [group[key][number] for number in kept]
    for parameter in own.parameters():
        optimizer.state.pop(parameter, None)
