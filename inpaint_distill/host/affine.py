"""Explain one plane by the mask or the image, up to an affine range (ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["equal", "fit_image", "fit_mask", "is_constant", "planes_of"]

_FIT_PIXELS = 65536  # enough for an affine fit; every pixel is checked


def planes_of(tensor: Tensor) -> Tensor:
    """Return a mask (B, H, W) as (B, 1, H, W), anything else as it is."""
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor


def equal(value: Tensor, expected: Tensor, where: Tensor) -> bool:
    """Compare at the precision of ``value``'s type, relative to the range of what is expected."""
    tolerance = 2e-2 if value.dtype in (torch.float16, torch.bfloat16) else 1e-4
    error = (value.double() - expected.double()).abs()[where]
    scale = expected.double().abs()[where]
    return error.numel() == 0 or bool(error.max() <= tolerance * (1 + scale.max()))


def is_constant(plane: Tensor) -> bool:
    """Tell whether each sample of a plane (B, 1, H, W) has one value everywhere."""
    values = plane.double().flatten(1)
    return bool((values.amax(1) - values.amin(1)).max() <= 1e-6 * (1 + values.abs().max()))


def fit_mask(plane: Tensor, mask: Tensor) -> tuple[Tensor, Tensor] | None:
    """Fit ``a * mask + b``, a not zero, the mask reduced to the plane's size where it is smaller; return a and b."""
    size = plane.shape[2:]
    reduced = (
        [mask]
        if size == mask.shape[2:]
        else [
            F.interpolate(mask, size, mode="nearest"),
            F.adaptive_max_pool2d(mask, (size[0], size[1])),
            F.adaptive_avg_pool2d(mask, (size[0], size[1])),
        ]
    )
    for hole in reduced:
        coefficients = _least_squares(plane.double().flatten()[:, None], hole.flatten()[:, None])
        if coefficients is not None:
            slope, bias = coefficients
            fitted = slope[0] * hole + bias
            if slope[0].abs() > 1e-3 and equal(plane, fitted, torch.ones_like(hole, dtype=torch.bool)):
                return slope[0], bias
    return None


def fit_image(plane: Tensor, image: Tensor, mask: Tensor, first: int) -> tuple[Tensor, Tensor] | None:
    """Fit one image channel, the expected one first, then a mixture of all (a grey image), on known pixels."""
    if plane.shape[2:] != image.shape[2:]:
        return None
    known = (mask == 0)[:, 0]
    values = plane.double()[:, 0][known][:, None]
    colours = image.movedim(1, -1)[known]
    count = image.shape[1]
    for columns in [*([(first + i) % count] for i in range(count)), list(range(count))]:
        coefficients = _least_squares(values, colours[:, columns])
        if coefficients is None:
            continue
        slopes, bias = coefficients
        fitted = colours[:, columns] @ slopes + bias
        if slopes.abs().max() > 1e-3 and equal(plane[:, 0][known], fitted, torch.ones_like(fitted, dtype=torch.bool)):
            weight = torch.zeros(count, dtype=torch.float64, device=image.device)
            weight[columns] = slopes
            return weight, bias
    return None


def _least_squares(values: Tensor, columns: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return (slopes, bias) of ``values`` (N, 1) on ``columns`` (N, K), or ``None`` where the columns do not vary."""
    stride = max(1, len(columns) // _FIT_PIXELS)
    values, columns = values[::stride], columns[::stride]
    if len(columns) < 2 or bool((columns.std(0) < 1e-6).any()):
        return None
    # The ridge only matters where channels are equal (a grey photograph): it picks the smallest of the equal fits.
    centred, mean = columns - columns.mean(0), values.mean(0)
    gram = centred.T @ centred
    gram = gram + 1e-10 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    slopes = torch.linalg.solve(gram, centred.T @ (values - mean))[:, 0]
    bias = mean[0] - columns.mean(0) @ slopes
    return slopes.round(decimals=6), bias.round(decimals=6)
