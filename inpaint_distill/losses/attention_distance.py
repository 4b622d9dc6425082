"""Attention transfer on hole rows: the distance, and its gradient without an N x N matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from inpaint_distill.double_backward import needs_double_backward
from inpaint_distill.errors import CaptureError, ConfigError, InputError
from inpaint_distill.losses.attention_rows import Distance, Groups, Pair, Side, cut_into_blocks

if TYPE_CHECKING:
    from inpaint_distill.host.attention import AttentionMap
    from inpaint_distill.losses.token_grids import Grid

__all__ = ["attention_distance"]

_CHUNK, _CHUNK_ACCELERATOR = 1 << 19, 1 << 24  # a few MiB, which a CPU's cache holds; enough work for one launch


def attention_distance(
    student: AttentionMap,
    teacher: AttentionMap,
    hole: Tensor,
    weight: Tensor | None = None,
    *,
    distance: Distance = "l2",
    student_grid: Grid | None = None,
    teacher_grid: Grid | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Compute ``L_AT = 1/|H| * sum_{i in H} t_i * mean_heads dist(r_i, r_i^AN)`` (DGI, attention transfer).

    ``dist`` (ours) is ``l2``: squared L2 over the keys, ``l1``: sum of absolute differences, or ``kl``:
    ``KL(r^AN || r)``. Rows outside the hole do not count; the teacher's rows take no gradient.

    What the student cannot see (ours). Its keys V_i are those of row i whose bias is above -50; where its rows are
    compared as the host's softmax gave them, or after an average over heads, also their share must exceed e^-50. The
    teacher, which has no hole, may attend elsewhere: its row is renormalised over V_i, and the student's counts on V_i
    as it is. A row of a head counts 0 where V_i is empty, and where the teacher sees none of V_i. ``kl`` is always
    finite. Beside ``student.rows`` only the mask in ``student.bias`` is read; beside ``teacher.rows`` or
    ``teacher.logits`` the teacher's bias is in them already and not read.

    Unlike maps (ours). With another number of heads both rows are averaged over heads. With another number of queries
    the teacher's rows are interpolated between its queries, with another number of keys its shares are spread by area
    (``token_grids``), before they are renormalised over V_i.

    Memory. Value and gradients are computed block by block in the forward, so that only gradients stay for backward:
    those of the hole's queries and of the keys, or of the hole's rows where the host's own rows are compared. Plain
    operations, which keep the hole's rows, are taken under
    :func:`~inpaint_distill.double_backward.double_backward`, and where ``student.bias`` requires a gradient: it is as
    large as the rows. Finding the hole's rows waits for the device once.

    Args:
        student: Queries and keys, or rows (B, heads, Nq, Nk).
        teacher: The same of the teacher; its ``logits`` are preferred to its ``rows``.
        hole: (B, Nq), which rows are in H: any value above 0.
        weight: ``t`` (B, Nq) in (0, 1); 1 where ``None``. It may require a gradient.
        distance: ``l2``, ``l1`` or ``kl``.
        student_grid: Rows and columns of the student's queries; ``None`` for square. Read only where the numbers of
            tokens differ. Keys of another number than the queries have the same proportions.
        teacher_grid: The same of the teacher.
        chunk: Shares of attention computed at a time, heads included; ``None``: 2^19 on a CPU, 2^24 elsewhere.

    Returns:
        Scalar, float32 whatever the inputs and autocast (float64 for a float64 student); 0 where H is empty.

    Raises:
        ConfigError: There is no such distance.
        CaptureError: A map lacks what is needed, or the two maps are of different batches.
        InputError: ``hole``, ``weight`` or a grid does not fit the maps.

    >>> from inpaint_distill.host.attention import AttentionMap
    >>> student = AttentionMap(rows=torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]]))
    >>> teacher = AttentionMap(rows=torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]]))
    >>> attention_distance(student, teacher, torch.tensor([[True, False]]))
    tensor(0.5000)
    """
    if distance not in get_args(Distance):
        choices = ", ".join(get_args(Distance))
        raise ConfigError(f"attention distance {distance!r}", "no such distance", f"use one of {choices}")
    own, other = Side.of(student, "student"), Side.of(teacher, "teacher")
    pair = Pair(own, other, distance, student_grid, teacher_grid)
    for name, values in (("hole", hole), ("weight", weight)):
        if values is not None and values.shape != (own.batch, own.queries):
            asked = f"{name} (B, Nq) = ({own.batch}, {own.queries})"
            raise InputError(asked, f"{tuple(values.shape)}", "give one value for each query of the student's map")
    if chunk is None:
        chunk = _CHUNK if hole.device.type == "cpu" else _CHUNK_ACCELERATOR
    plain = needs_double_backward() or (own.key is not None and own.bias is not None and own.bias.requires_grad)
    with torch.autocast(hole.device.type, enabled=False):
        groups = cut_into_blocks(hole > 0, max(1, chunk // pair.width), pair.dtype)
        if plain or not groups:
            return _plain(pair, groups, weight)
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in own.tensors)
        value: Tensor = _Fused.apply(pair, groups, learns, weight, *own.tensors)
        return value


def _plain(pair: Pair, groups: Groups, weight: Tensor | None) -> Tensor:
    """Compute the distance with operations that can be differentiated twice."""
    # Sums of nothing: where the hole is empty, a zero with a graph, and so zero gradients instead of none.
    inputs = pair.own.tensors if weight is None else (*pair.own.tensors, weight)
    total = torch.stack([each[:0].sum().to(pair.dtype) for each in inputs]).sum()
    for batch, blocks in groups:
        own_key, key = (side.take_keys(batch, pair.dtype) for side in (pair.own, pair.other))
        for block in blocks:
            own = pair.own_rows(own_key, block)
            other, sees = pair.other_rows(key, block, own.visible)
            distance = (pair.compare(own, other)[0] * sees[..., 0]).mean(1)
            total = total + (distance * block.factor(weight)).sum()
    return total


class _Fused(torch.autograd.Function):
    """The distance, with gradients that are computed in the forward, block by block, and only scaled in the backward.

    Saved are the gradients of the hole's queries and of the keys, or of the hole's rows, and each row's distance where
    the weights need it.
    """

    @staticmethod
    def forward(ctx: Any, pair: Pair, groups: Groups, learns: bool, weight: Tensor | None, *tensors: Tensor) -> Tensor:
        """Compute value and gradients."""
        maps, heads, queries, depth = tensors[0].shape
        distances = tensors[0].new_zeros(maps, queries, dtype=pair.dtype)
        key_gradient = torch.zeros_like(tensors[1], dtype=pair.dtype) if learns and len(tensors) == 2 else None
        indices, parts = [], []
        for batch, blocks in groups:
            own_key, key = (side.take_keys(batch, pair.dtype) for side in (pair.own, pair.other))
            # Contiguous: hosts keep their heads innermost, and the gradients of maps and heads are added as one batch.
            of_keys = None if own_key is None else torch.zeros_like(own_key, memory_format=torch.contiguous_format)
            for block in blocks:
                own = pair.own_rows(own_key, block)
                other, sees = pair.other_rows(key, block, own.visible)
                distance, gap = pair.compare(own, other)
                distances[batch[:, None], block.rows] = (distance * sees[..., 0]).mean(1) * block.share
                if learns:
                    # Both averages over heads, the distances' and the rows', come to one over the student's heads.
                    factor = block.factor(weight)[:, None, :, None] / heads * sees
                    part = pair.pull(own_key, of_keys, block, own, other, gap, factor)
                    parts.append(part.transpose(1, 2).reshape(-1, heads, depth))
                    indices.append((batch[:, None] * queries + block.rows).flatten())
            if key_gradient is not None and of_keys is not None:
                key_gradient[batch] = of_keys
        ctx.like = [(tensor.shape, tensor.dtype) for tensor in tensors]
        ctx.weight_dtype = None if weight is None else weight.dtype
        ctx.save_for_backward(
            distances if weight is not None and weight.requires_grad else None,
            *((torch.cat(indices), torch.cat(parts), key_gradient) if learns else ()),
        )
        return distances.sum() if weight is None else (distances * weight).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients."""
        # With create_graph=True. `once_differentiable` would leave the second derivative out without a word.
        if torch.is_grad_enabled():
            raise CaptureError(
                "a second derivative through attention transfer",
                "its first was computed without a graph, to save memory",
                "compute the loss within `inpaint_distill.double_backward.double_backward()`",
            )
        distances, *saved = ctx.saved_tensors
        of_weight = None if distances is None else (distances * gradient).to(ctx.weight_dtype)
        if not saved:
            return (None, None, None, of_weight, *(None for _ in ctx.like))
        index, parts, key_gradient = saved
        (maps, heads, queries, depth), dtype = ctx.like[0]
        first = parts.new_zeros(maps * queries, heads, depth).index_copy_(0, index, parts * gradient)
        first = first.view(maps, queries, heads, depth).transpose(1, 2).to(dtype)
        rest = () if key_gradient is None else ((key_gradient * gradient).to(ctx.like[1][1]),)
        return (None, None, None, of_weight, first, *rest)
