"""The meta-networks' gradient by a finite difference: no second derivative is taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inpaint_distill.distributed import mean

if TYPE_CHECKING:
    from torch import Tensor

    from inpaint_distill.lookahead.problem import Parameters, Problem

__all__ = ["finite_difference"]

# Length of the displacement of theta, and its least part of theta's own length. On the gated-conv host the cosine with
# the exact gradient is 0.9988 at 1e-2, DARTS' choice, where the attention's softmax bends, and 0.9999998 at 1e-3.
_RADIUS = 1e-3
_RELATIVE = 1.5e-5
_TINY = 1e-20


def finite_difference(problem: Problem, theta: Parameters, meta: Parameters, *, lr: float) -> tuple[Tensor, Parameters]:
    """Return ``L_inpaint(theta')`` and ``-lr / 2e * (grad_meta L(theta + e g) - grad_meta L(theta - e g))`` (ours).

    Here ``theta' = theta - lr * grad L(theta)``, ``g`` is the gradient of the inpainting loss at ``theta'``, and ``L``
    the distillation loss, whose detached parts stay those of ``theta``. The scheme is that of DARTS (Liu et al., ICLR
    2019) with a displacement ``e |g|`` ten times as short. Beside the step itself it takes two forwards to the last tap
    and no backward through the host: the meta-networks lie behind it.

    Args:
        problem: The two losses.
        theta: Trained parameters; as before afterwards.
        meta: Parameters of the meta-networks; as before afterwards.
        lr: Step of the look-ahead, ``eta``.
    """
    own = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
    fixed = {name: tensor.detach() for name, tensor in meta.items()}
    loss, anchor = problem.distillation(own, fixed)
    first = _average(_gradient(loss, own))
    with torch.no_grad():
        ahead = {name: own[name] - lr * first[name] if name in first else own[name] for name in own}
    ahead = {name: tensor.detach().requires_grad_() for name, tensor in ahead.items()}
    objective = problem.inpainting(ahead)
    gradient = _average(_gradient(objective, ahead))
    # What the distillation loss does not depend on need not be displaced.
    direction = {name: gradient[name] for name in first if name in gradient}
    if not direction:
        return objective.detach(), {name: torch.zeros_like(tensor) for name, tensor in fixed.items()}
    size = _norm({name: own[name].detach() for name in direction})
    step = (_RELATIVE * size).clamp_min(_RADIUS) / _norm(direction).clamp_min(_TINY)
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            moved = {
                name: own[name] + sign * step * direction[name] if name in direction else own[name] for name in own
            }
        moved = {name: tensor.detach() for name, tensor in moved.items()}
        trained = {name: tensor.detach().requires_grad_() for name, tensor in fixed.items()}
        sides.append(_gradient(problem.distillation(moved, trained, anchor)[0], trained))
    with torch.no_grad():
        found = {
            name: (sides[0][name] - sides[1][name]) * (-lr / (2 * step))
            if name in sides[0]
            else torch.zeros_like(tensor)
            for name, tensor in fixed.items()
        }
    return objective.detach(), found


def _gradient(loss: Tensor, inputs: Parameters) -> Parameters:
    """Return the gradient in those inputs that the loss depends on."""
    if not loss.requires_grad:
        return {}
    gradients = torch.autograd.grad(loss, list(inputs.values()), allow_unused=True)
    return {name: each for name, each in zip(inputs, gradients, strict=True) if each is not None}


def _average(gradients: Parameters) -> Parameters:
    return dict(zip(gradients, mean(list(gradients.values())), strict=True))


def _norm(tensors: Parameters) -> Tensor:
    return torch.stack([tensor.float().square().sum() for tensor in tensors.values()]).sum().sqrt()
