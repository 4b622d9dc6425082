"""The adaptive convolution of the completion block: a kernel and offsets per pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from inpaint_distill.double_backward import needs_double_backward

__all__ = ["adaptive_convolution"]


def adaptive_convolution(
    feature: Tensor, weight: Tensor, offset: Tensor, kernel: Tensor, where: Tensor | None = None
) -> Tensor:
    """Compute ``F(x)_j = sum_k V_{j,k} * W_k * x_{j + k + D_{j,k}}`` (DGI, completion block).

    Samples bilinearly, with zeros outside the feature; stride 1, dilation 1, same size out. This is a modulated
    deformable convolution. On CUDA's default stream it is torchvision's, which keeps nothing for the backward but its
    inputs, on the CPU it is done at the pixels asked for alone; neither has a second derivative. Within
    :func:`~inpaint_distill.double_backward.double_backward`, and on other streams, the same sum is written in plain
    operations. Value and first derivative are the same, also where a sample falls on a pixel and the slope jumps: all
    take the side of the larger coordinate.

    Args:
        feature: ``x``, (B, C, H, W).
        weight: ``W``, (O, C, K, K), K odd.
        offset: ``D`` in pixels, (B, 2*K*K, H, W): down and right of the first kernel point, then of the second, in
            row-major order of the points (torchvision's order).
        kernel: ``V``, (B, K*K, H, W).
        where: Pixels ``j`` that are asked for, bool (B, 1, H, W); all by default. At others the result is not defined.

    Returns:
        (B, O, H, W), computed in float32 at least and returned in the feature's dtype.

    >>> image = torch.arange(12.0).view(1, 1, 3, 4)
    >>> right = torch.tensor([0.0, 0.5]).view(1, 2, 1, 1).expand(1, 2, 3, 4)
    >>> adaptive_convolution(image, torch.ones(1, 1, 1, 1), right, torch.ones(1, 1, 3, 4))[0, 0, 0]
    tensor([0.5000, 1.5000, 2.5000, 1.5000])
    """
    dtype = torch.promote_types(feature.dtype, torch.float32)
    arguments = (feature.to(dtype), weight.to(dtype), offset.to(dtype), kernel.to(dtype))
    with torch.autocast(feature.device.type, enabled=False):
        if needs_double_backward():
            out = _gathered(*arguments)
        elif feature.device.type == "cpu":  # torchvision's backward takes several times as long there
            out = _bagged(*arguments, where)
        else:
            out = (_fused if _runs_torchvision(feature) else _gathered)(*arguments)
    return out.to(feature.dtype)


def _runs_torchvision(tensor: Tensor) -> bool:
    """Tell whether torchvision's kernels may be used: on the default stream alone, and not in a graph.

    Its sources launched them there, whatever the current stream, before they took one. On another stream, with 0.26,
    they ran beside what computes their input: hosts with blocks went wrong, without any error.
    """
    if not tensor.is_cuda or torch.compiler.is_compiling():
        return False
    return torch.cuda.current_stream(tensor.device) == torch.cuda.default_stream(tensor.device)


def _fused(feature: Tensor, weight: Tensor, offset: Tensor, kernel: Tensor) -> Tensor:
    from torchvision.ops import deform_conv2d  # type: ignore[import-untyped]

    out: Tensor = deform_conv2d(feature, offset, weight, padding=weight.shape[-1] // 2, mask=kernel)
    return out


def _gathered(feature: Tensor, weight: Tensor, offset: Tensor, kernel: Tensor) -> Tensor:
    batch, channels, height, width = feature.shape
    size = weight.shape[-1]
    # Pixels as rows: one index then moves C neighbouring numbers, and the derivative of index_select is index_add.
    pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(batch, device=feature.device).view(-1, 1, 1) * (height * width)
    row = torch.arange(height, device=feature.device).view(-1, 1) - size // 2
    column = torch.arange(width, device=feature.device) - size // 2
    out = pixels.new_zeros(pixels.shape[0], len(weight))
    for k in range(size * size):  # a point at a time: no (B, C, K*K, H, W) tensor
        sample = torch.zeros_like(pixels)
        for y, share_y in _neighbours(offset[:, 2 * k] + (row + k // size), height):
            for x, share_x in _neighbours(offset[:, 2 * k + 1] + (column + k % size), width):
                share = kernel[:, k] * share_y * share_x
                sample = sample + share.reshape(-1, 1) * pixels.index_select(0, (first + y * width + x).flatten())
        out = out + F.linear(sample, weight[:, :, k // size, k % size])
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


def _bagged(feature: Tensor, weight: Tensor, offset: Tensor, kernel: Tensor, where: Tensor | None = None) -> Tensor:
    batch, channels, height, width = feature.shape
    size = weight.shape[-1]
    points = size * size
    pixels = feature.permute(0, 2, 3, 1).reshape(-1, channels)
    device = feature.device
    chosen = torch.arange(pixels.shape[0], device=device) if where is None else where.flatten().nonzero()[:, 0]

    def rows(values: Tensor, *last: int) -> Tensor:
        return values.permute(0, 2, 3, 1).reshape(pixels.shape[0], *last).index_select(0, chosen)

    shift, share = rows(offset, points, 2), rows(kernel, points)
    point = torch.arange(points, device=device)
    row = (chosen // width % height).unsqueeze(1) + point // size - size // 2
    column = (chosen % width).unsqueeze(1) + point % size - size // 2
    first = (chosen // (height * width) * (height * width)).unsqueeze(1)
    rows_around = _neighbours(shift[..., 0] + row, height)
    columns_around = _neighbours(shift[..., 1] + column, width)
    around = [(y, x) for y in rows_around for x in columns_around]
    index = [first + y * width + x for (y, _), (x, _) in around]
    part = [share * (share_y * share_x) for (_, share_y), (_, share_x) in around]
    # One bag for each sample: its four neighbours, weighed and added up in one pass over the memory.
    bags, weights = (torch.stack(each, -1).view(-1, len(index)) for each in (index, part))
    samples = _Bags.apply(pixels, bags, weights)
    out = F.linear(samples.view(len(chosen), points * channels), weight.permute(0, 2, 3, 1).flatten(1))
    if where is not None:
        out = out.new_zeros(pixels.shape[0], len(weight)).index_copy(0, chosen, out)
    return out.view(batch, height, width, -1).permute(0, 3, 1, 2)


class _Bags(torch.autograd.Function):
    """Weighed sums of a few rows each: rows (P, C), indices and weights (N, K) to (N, C).

    That of ``embedding_bag``, whose own backward sorts the indices, which takes longer than to add the rows up.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, index, weights)
        return F.embedding_bag(index, rows, mode="sum", per_sample_weights=weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        rows, index, weights = ctx.saved_tensors
        to_rows, _, to_weights = ctx.needs_input_grad
        grad_rows = grad_weights = None
        if to_rows:
            parts = (grad.unsqueeze(1) * weights.unsqueeze(2)).flatten(0, 1)
            grad_rows = torch.zeros_like(rows).index_add_(0, index.flatten(), parts)
        if to_weights:
            chosen = rows.index_select(0, index.flatten()).view(*index.shape, rows.shape[1])
            grad_weights = torch.bmm(chosen, grad.unsqueeze(2)).squeeze(2)
        return grad_rows, None, grad_weights


def _neighbours(position: Tensor, length: int) -> list[tuple[Tensor, Tensor]]:
    """Return, for the pixels before and after a position, their index and their share; 0 for a pixel outside."""
    before = position.detach().floor()
    share = position - before
    found = []
    for index, part in ((before, 1 - share), (before + 1, share)):
        inside = (index >= 0) & (index < length)
        # Clamped as an integer: a NaN or huge offset must not become an index.
        found.append((index.long().clamp(0, length - 1), part * inside))
    return found
