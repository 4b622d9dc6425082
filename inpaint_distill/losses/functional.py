"""Pure functions over features: hole weights, normalisation, masked distance."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import torch
from torch.nn import functional as F

from inpaint_distill.distributed import mean, moments

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["channel_moments", "hole_weight", "masked_distance", "normalize"]

_VARIANCE_FLOOR = 0.1  # of the mean variance over the channels
_TINY = 1e-10


def hole_weight(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring a mask to a feature's resolution as the share of hole in each cell, ``M_l`` (area average: ours).

    Args:
        mask: (B, 1, H, W), 1 in the hole.
        size: Height and width of the feature.

    Returns:
        (B, 1, *size) in [0, 1].
    """
    return F.adaptive_avg_pool2d(mask.float(), size)


def channel_moments(reference: Tensor) -> tuple[Tensor, Tensor]:
    """Return variance and mean (1, C, 1, 1) of a feature over space and the batches of all processes."""
    return moments(*torch.var_mean(reference.detach(), (0, 2, 3), correction=0, keepdim=True))


def normalize(
    feature: Tensor,
    reference: Tensor,
    kind: Literal["channel", "layer", "none"],
    known: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Bring a feature to a scale on which levels and channels weigh alike (ours).

    Args:
        feature: (B, C, H, W).
        reference: The target (B, C, H', W') whose statistics ``channel`` uses; it takes no gradient.
        kind: ``channel``: subtract the reference's mean and divide by its standard deviation, per channel over batch
            and space; a channel that hardly varies is not blown up beyond the others. ``layer``: the feature's own
            mean and deviation over the channels, per pixel. ``none``.
        known: :func:`channel_moments` of the reference, where they are at hand.
    """
    if kind == "none":
        return feature
    if kind == "layer":
        return F.layer_norm(feature.movedim(1, -1), (feature.shape[1],)).movedim(-1, 1)
    variance, average = channel_moments(reference) if known is None else known
    floor = _VARIANCE_FLOOR * variance.mean() + _TINY
    return (feature - average) * (variance + floor).rsqrt()


def masked_distance(student: Tensor, target: Tensor, weight: Tensor, channel_weight: Tensor | None = None) -> Tensor:
    """Compute ``sum_c w_c / |M| * || M * (target_c - student_c) ||^2`` (DGI, cross- and self-distillation).

    Args:
        student: (B, C, H, W).
        target: (B, C, H, W).
        weight: ``M`` (B, 1, H, W) in [0, 1], taken linearly where a cell is partly hole (ours).
        channel_weight: ``rho`` or ``phi``, (B, C), each row summing to 1; uniform where ``None``.

    Returns:
        Scalar; 0 where ``weight`` is 0 everywhere.

    >>> import torch
    >>> hole = torch.zeros(1, 1, 2, 2); hole[..., 0, 0] = 1
    >>> masked_distance(torch.zeros(1, 3, 2, 2), torch.full((1, 3, 2, 2), 2.0), hole)
    tensor(4.)
    """
    squared = (target - student).square()
    if channel_weight is None:
        per_pixel = squared.mean(1, keepdim=True)
    else:
        per_pixel = (squared * channel_weight[:, :, None, None]).sum(1, keepdim=True)
    # The hole of all processes: in their mean every pixel of a hole then weighs alike.
    (area,) = mean([weight.sum()])
    return (weight * per_pixel).sum() / area.clamp_min(1e-6)
