"""The meta-networks' gradient, exactly: differentiate through the look-ahead."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from inpaint_distill.distributed import mean
from inpaint_distill.double_backward import double_backward

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from inpaint_distill.lookahead.problem import Parameters, Problem

__all__ = ["lacks_double_backward", "unroll"]

# How torch and torchvision say that an operation has no second derivative.
_REFUSALS = (
    "is not implemented",
    "double backward",
    "once_differentiable",
    "differentiate twice",
    "backwards is not supported",
)


def unroll(
    problem: Problem, theta: Parameters, meta: Parameters, *, lr: float, steps: int = 1
) -> tuple[Tensor, Parameters]:
    """Return ``L_inpaint(theta')`` and its exact gradient in ``meta``, through ``steps`` SGD steps (DGI).

    Args:
        problem: The two losses; twice differentiable.
        theta: Trained parameters; as before afterwards.
        meta: Parameters of the meta-networks; as before afterwards.
        lr: Learning rate of the steps, ``eta``.
        steps: Their number, ``T``.

    Raises:
        RuntimeError: An operation of the host has no second derivative; see :func:`lacks_double_backward`.
    """
    moving = {name: tensor.detach().requires_grad_() for name, tensor in theta.items()}
    trained = {name: tensor.detach().requires_grad_() for name, tensor in meta.items()}
    with double_backward(), sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
        for _ in range(steps):
            loss, _ = problem.distillation(moving, trained)
            gradients = torch.autograd.grad(
                loss, list(moving.values()), create_graph=True, allow_unused=True, materialize_grads=False
            )
            _check_second_derivative(gradients)
            reached = [name for name, gradient in zip(moving, gradients, strict=True) if gradient is not None]
            averages = mean([gradient for gradient in gradients if gradient is not None])
            moving |= {name: moving[name] - lr * each for name, each in zip(reached, averages, strict=True)}
        objective = problem.inpainting(moving)
        found = torch.autograd.grad(objective, list(trained.values()), allow_unused=True, materialize_grads=True)
    return objective.detach(), dict(zip(trained, found, strict=True))


def _check_second_derivative(gradients: Iterable[Tensor | None]) -> None:
    """Raise where a gradient comes from a backward marked as once differentiable.

    Asked for the gradient in given inputs, autograd does not visit such a node and returns zeros without a word.
    """
    open_nodes = [gradient.grad_fn for gradient in gradients if gradient is not None]
    seen = set()
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "Error":
            raise RuntimeError("an operation of its encoder is marked once_differentiable")
        open_nodes.extend(following for following, _ in node.next_functions)


def lacks_double_backward(error: RuntimeError) -> bool:
    """Tell whether an error means that an operation has no second derivative."""
    return any(refusal in str(error) for refusal in _REFUSALS)
