"""Attention transfer on hole rows: the distance, and its gradient without an N x N matrix."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from inpaint_distill.double_backward import needs_double_backward
from inpaint_distill.errors import CaptureError, ConfigError, InputError

if TYPE_CHECKING:
    from inpaint_distill.host.attention import AttentionMap

__all__ = ["Distance", "attention_distance", "hole_tokens", "query_neighbours", "resample_keys"]

Distance = Literal["l2", "l1", "kl"]
Grid = tuple[int, int]

# e^-50 of a key's share, in fact nothing: hosts write a mask as -inf, -1e4 or -100, and a softmax may leave a trace.
_UNSEEN_BIAS = -50.0
_UNSEEN = math.exp(_UNSEEN_BIAS)
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
    the teacher's rows are interpolated between its queries (:func:`query_neighbours`), with another number of keys its
    shares are spread by area (:func:`resample_keys`), before they are renormalised over V_i.

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
    own, other = _Side.of(student, "student"), _Side.of(teacher, "teacher")
    pair = _Pair(own, other, distance, student_grid, teacher_grid)
    for name, values in (("hole", hole), ("weight", weight)):
        if values is not None and values.shape != (own.batch, own.queries):
            asked = f"{name} (B, Nq) = ({own.batch}, {own.queries})"
            raise InputError(asked, f"{tuple(values.shape)}", "give one value for each query of the student's map")
    if chunk is None:
        chunk = _CHUNK if hole.device.type == "cpu" else _CHUNK_ACCELERATOR
    plain = needs_double_backward() or (own.key is not None and own.bias is not None and own.bias.requires_grad)
    with torch.autocast(hole.device.type, enabled=False):
        groups = _groups(hole > 0, max(1, chunk // pair.width), pair.dtype)
        if plain or not groups:
            return _plain(pair, groups, weight)
        learns = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in own.tensors)
        value: Tensor = _Fused.apply(pair, groups, learns, weight, *own.tensors)
        return value


def hole_tokens(mask: Tensor, grid: Grid) -> Tensor:
    """Find the tokens that touch the hole: the mask's maximum over each token's cell (ours).

    Args:
        mask: (B, 1, H, W), 1 in the hole.
        grid: Rows and columns of tokens that tile the image; they need not divide H and W, and may exceed them.

    Returns:
        (B, rows, columns), the mask's values.

    >>> hole_tokens(torch.eye(4)[None, None], (2, 2))
    tensor([[[1., 0.],
             [0., 1.]]])
    """
    return F.adaptive_max_pool2d(mask.float(), grid)[:, 0]


def query_neighbours(student_grid: Grid, teacher_grid: Grid) -> tuple[Tensor, Tensor]:
    """Find the four teacher queries around each of the student's, bilinearly, both grids tiling the same image (ours).

    Returns:
        Indices (Nq, 4) of the teacher's queries, and their shares (Nq, 4), which sum to 1.

    >>> query_neighbours((1, 1), (2, 2))[1]
    tensor([[0.2500, 0.2500, 0.2500, 0.2500]], dtype=torch.float64)
    """
    axes = []
    for own, other in zip(student_grid, teacher_grid, strict=True):
        centre = ((torch.arange(own, dtype=torch.float64) + 0.5) * other / own - 0.5).clamp(0, other - 1)
        low = centre.floor()
        share = torch.stack([1 - (centre - low), centre - low], 1)
        axes.append((torch.stack([low, (low + 1).clamp_max(other - 1)], 1).long(), share))
    (y, y_share), (x, x_share) = axes
    index = y[:, None, :, None] * teacher_grid[1] + x[None, :, None, :]
    return index.reshape(-1, 4), (y_share[:, None, :, None] * x_share[None, :, None, :]).reshape(-1, 4)


def resample_keys(rows: Tensor, student_grid: Grid, teacher_grid: Grid) -> Tensor:
    """Spread each of the teacher's keys over the student's by the area they have in common; sums are kept (ours).

    Args:
        rows: (..., Nk*), shares of the teacher's keys.
        student_grid: Rows and columns of the student's keys.
        teacher_grid: Rows and columns of the teacher's.

    Returns:
        (..., Nk).

    >>> resample_keys(torch.tensor([0.2, 0.8]), (1, 4), (1, 2))
    tensor([0.1000, 0.1000, 0.4000, 0.4000])
    """
    vertical, horizontal = (
        _overlap(own, other).to(rows) for own, other in zip(student_grid, teacher_grid, strict=True)
    )
    on_grid = rows.reshape(*rows.shape[:-1], *teacher_grid)
    return (vertical.T @ (on_grid @ horizontal)).flatten(-2)


def _overlap(own: int, other: int) -> Tensor:
    """Return which share of each of ``other`` equal parts of a line lies in each of ``own`` equal parts."""
    edge, other_edge = (torch.linspace(0, 1, parts + 1, dtype=torch.float64) for parts in (own, other))
    high, low = (torch.minimum(other_edge[1:, None], edge[1:]), torch.maximum(other_edge[:-1, None], edge[:-1]))
    return (high - low).clamp_min(0) * other


@dataclass(frozen=True)
class _Block:
    """Some hole rows of some maps, which are computed at once."""

    batch: Tensor  # (n,), indices of maps
    rows: Tensor  # (n, R), indices of queries
    share: Tensor  # (n, R), 1/|H| for hole rows, 0 for those that fill up maps with fewer than R of them

    def take(self, tensor: Tensor) -> Tensor:
        """Take the block's rows (n, heads, R, X) of a (B or 1, heads, Nq or 1, X)."""
        batch = self.batch if tensor.shape[0] > 1 else torch.zeros_like(self.batch)
        rows = self.rows if tensor.shape[2] > 1 else torch.zeros_like(self.rows)
        return tensor[batch[:, None], :, rows].transpose(1, 2).to(self.share.dtype)

    def factor(self, weight: Tensor | None) -> Tensor:
        """Return what the distance of each row (n, R) counts."""
        return self.share if weight is None else self.share * weight[self.batch[:, None], self.rows]


# Indices (n,) of maps, with their blocks.
_Groups = list[tuple[Tensor, list[_Block]]]


def _groups(hole: Tensor, size: int, dtype: torch.dtype) -> _Groups:
    """Cut the hole's rows into blocks of at most ``size`` rows: of many small maps, or a part of one.

    Args:
        hole: (B, Nq), boolean.
        size: Rows in a block.
        dtype: What the blocks are computed in.
    """
    counts, ranking = hole.sum(1).sort(descending=True, stable=True)  # as many rows to each map of a block
    order = hole.byte().argsort(dim=1, descending=True, stable=True)
    lengths, start = counts.tolist(), 0
    total = sum(lengths)
    groups: _Groups = []
    while start < len(lengths) and lengths[start]:
        longest = lengths[start]
        batch = ranking[start : start + max(1, size // longest)]
        parts = order[batch, :longest].chunk(math.ceil(longest / size), dim=1)
        blocks = [_Block(batch, rows, hole[batch].gather(1, rows).to(dtype) / total) for rows in parts]
        groups.append((batch, blocks))
        start += len(batch)
    return groups


@dataclass(frozen=True)
class _Side:
    """The student's or the teacher's map, checked.

    Attributes:
        whose: ``student`` or ``teacher``.
        tensors: Query (B, heads, Nq, d) and key (B, heads, Nk, d), or what was kept of the softmax (B, heads, Nq, Nk).
        scale: Factor on ``query @ key^T``.
        bias: Of four dimensions.
        logits: What was kept is the softmax's input.
    """

    whose: str
    tensors: tuple[Tensor, ...]
    scale: float
    bias: Tensor | None
    logits: bool

    @classmethod
    def of(cls, seen: AttentionMap, whose: str) -> _Side:
        """Take what is there: queries and keys, else a teacher's logits, else rows."""
        kept = seen.logits if whose == "teacher" and seen.logits is not None else seen.rows
        tensors = tuple(
            each for each in ((kept,) if seen.query is None else (seen.query, seen.key)) if each is not None
        )
        shapes = [tuple(each.shape) for each in tensors]
        fits = all(len(shape) == 4 for shape in shapes) and len(tensors) == (1 if seen.query is None else 2)
        if not fits or shapes[0][:2] != shapes[-1][:2] or shapes[0][3] != shapes[-1][3]:
            raise CaptureError(
                f"the {whose}'s query (B, heads, Nq, d) and key (B, heads, Nk, d), or its rows (B, heads, Nq, Nk)",
                " and ".join(map(str, shapes)) or "neither",
                "tap another attention layer, or have the adapter give the map in this layout",
            )
        bias = None if seen.bias is None else seen.bias[(None,) * (4 - seen.bias.ndim)]
        side = cls(whose, tensors, seen.scale, bias, kept is not None and kept is seen.logits)
        shape = (side.batch, side.heads, side.queries, side.keys)
        if bias is not None and any(found not in (1, whole) for found, whole in zip(bias.shape, shape, strict=True)):
            fix = "have the adapter give the bias as it is added to the logits"
            raise CaptureError(f"the {whose}'s bias, broadcastable to {shape}", f"{tuple(bias.shape)}", fix)
        return side

    @property
    def key(self) -> Tensor | None:
        """The keys, where queries and keys were seen."""
        return self.tensors[1] if len(self.tensors) == 2 else None

    @property
    def batch(self) -> int:
        """Number of maps."""
        return self.tensors[0].shape[0]

    @property
    def heads(self) -> int:
        """Number of heads."""
        return self.tensors[0].shape[1]

    @property
    def queries(self) -> int:
        """Number of queries."""
        return self.tensors[0].shape[2]

    @property
    def keys(self) -> int:
        """Number of keys."""
        return self.tensors[0].shape[3] if self.key is None else self.key.shape[2]

    def grids(self, grid: Grid | None) -> tuple[Grid, Grid]:
        """Lay out queries and keys as rows and columns of the same proportions."""
        side = math.isqrt(self.queries)
        rows, columns = grid or (side, side)
        ratio = math.sqrt(self.keys / self.queries)
        keys = (round(rows * ratio), round(columns * ratio))
        if (rows * columns, keys[0] * keys[1]) != (self.queries, self.keys):
            raise InputError(
                f"rows and columns of the {self.whose}'s {self.queries} queries and {self.keys} keys",
                f"{rows} x {columns} queries and {keys[0]} x {keys[1]} keys",
                f"give {self.whose}_grid=(rows, columns), or tap layers of as many tokens in both networks",
            )
        return (rows, columns), keys

    def take_keys(self, batch: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Take the keys (n, heads, Nk, d) of some maps, where queries and keys were seen."""
        return None if self.key is None else self.key[batch].to(dtype)

    def take_logits(self, key: Tensor | None, block: _Block, bias: Tensor | None) -> Tensor:
        """Take or compute the softmax's input for a block (n, heads, R, Nk)."""
        taken = block.take(self.tensors[0])
        if key is None:
            return taken if self.logits else taken.log()
        scores = (taken * self.scale) @ key.transpose(-1, -2)
        return scores if bias is None else scores + bias


@dataclass(frozen=True)
class _Rows:
    """The student's rows of a block.

    Attributes:
        heads: (n, heads, R, Nk), 0 where a bias hides the key.
        share: What is compared: the same, or its average (n, 1, R, Nk); 0 where the student does not see the key.
        log: Its logarithm, for ``kl``; 0 where the student does not see the key.
        visible: Which keys the student sees; ``None`` for all.
        exact: ``log`` is of each head's own logits: the derivative by them is the difference of the rows.
    """

    heads: Tensor
    share: Tensor
    log: Tensor | None
    visible: Tensor | None
    exact: bool


class _Pair:
    """How the rows of the two maps are brought together and compared.

    Attributes:
        dtype: What they are computed in.
        merged: Both are averaged over heads.
        width: Shares that one row takes, heads included.
    """

    def __init__(self, own: _Side, other: _Side, distance: Distance, own_grid: Grid | None, grid: Grid | None) -> None:
        if own.batch != other.batch:
            found = f"{own.batch} of the student, {other.batch} of the teacher"
            fix = "tap the same layer of both; where it is windowed, both need as many windows"
            raise CaptureError("as many attention maps of the teacher as of the student", found, fix)
        self.own, self.other, self.distance = own, other, distance
        self.dtype = torch.promote_types(own.tensors[0].dtype, torch.float32)
        self.merged = own.heads != other.heads
        self.neighbours: tuple[Tensor, Tensor] | None = None
        self.key_grids: tuple[Grid, Grid] | None = None
        if (own.queries, own.keys) != (other.queries, other.keys):
            own_grids, grids = own.grids(own_grid), other.grids(grid)
            if own.queries != other.queries:
                device = own.tensors[0].device
                index, share = query_neighbours(own_grids[0], grids[0])
                self.neighbours = index.to(device), share.to(device, self.dtype)
            if own.keys != other.keys:
                self.key_grids = own_grids[1], grids[1]
        taken = 1 if self.neighbours is None else 4
        self.width = max(own.heads * own.keys, other.heads * other.keys * taken)

    def own_rows(self, key: Tensor | None, block: _Block) -> _Rows:
        """Compute the student's rows of a block."""
        bias = None if self.own.bias is None else block.take(self.own.bias)
        visible = None if bias is None else bias > _UNSEEN_BIAS
        log = None
        exact = self.distance == "kl" and key is not None and not self.merged
        if key is None:
            heads = block.take(self.own.tensors[0])
        else:
            logits = self.own.take_logits(key, block, bias)
            if visible is not None:
                logits = logits.masked_fill(~visible.any(-1, keepdim=True), 0)
            log = logits.log_softmax(-1) if exact else None
            heads = logits.softmax(-1) if log is None else log.exp()
        if visible is not None:
            heads = heads.where(visible, 0)
            log = None if log is None else log.where(visible, 0)
        share = heads.mean(1, keepdim=True) if self.merged else heads
        if self.merged or key is None:
            visible = share > _UNSEEN
            share = share.where(visible, 0)
            log = share.where(visible, 1).log() if self.distance == "kl" else None
        return _Rows(heads, share, log, visible, exact)

    @torch.no_grad()
    def other_rows(self, key: Tensor | None, block: _Block, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the teacher's rows for a block of the student's queries, over the keys that the student sees.

        Returns:
            Rows (n, heads, R, Nk), and whether the teacher sees any such key (n, heads, R, 1); where not, the row is 0.
        """
        share = None
        if self.neighbours is not None:
            index, share = (each[block.rows] for each in self.neighbours)
            block = _Block(block.batch, index.flatten(1), block.share)
        bias = None if self.other.bias is None or key is None else block.take(self.other.bias)
        logits = self.other.take_logits(key, block, bias)
        alike = share is None and self.key_grids is None
        if alike and visible is not None:
            logits = logits.masked_fill(~visible, -math.inf)
        if key is not None and bias is None and (visible is None or not alike):
            rows, sees = logits.softmax(-1), logits.new_ones(1, 1, 1, 1, dtype=torch.bool)
        else:
            sees = logits.amax(-1, keepdim=True) != -math.inf
            rows = logits.masked_fill(~sees, 0).softmax(-1) * sees
        if share is not None:
            around = rows.reshape(*rows.shape[:2], -1, 4, rows.shape[3])
            rows = (around * share[:, None, ..., None]).sum(3)
        if self.key_grids is not None:
            rows = resample_keys(rows, *self.key_grids)
        if self.merged:
            rows = rows.mean(1, keepdim=True)
        if self.merged or not alike:
            rows = rows if visible is None else rows.where(visible, 0)
            total = rows.sum(-1, keepdim=True)
            sees = total > _UNSEEN
            rows = (rows / total).where(sees, 0)
        return rows, sees

    def compare(self, own: _Rows, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance of each row (n, heads, R), and the difference of the rows."""
        gap = own.share - other
        if own.log is not None:
            return (torch.xlogy(other, other) - other * own.log).sum(-1), gap
        return (gap.square() if self.distance == "l2" else gap.abs()).sum(-1), gap

    def pull(
        self,
        key: Tensor | None,
        of_keys: Tensor | None,
        block: _Block,
        own: _Rows,
        other: Tensor,
        gap: Tensor,
        factor: Tensor,
    ) -> Tensor:
        """Differentiate ``factor`` times the distance of each row; ``gap`` is used up.

        Args:
            key: The student's keys (n, heads, Nk, d), where its rows come from queries and keys.
            of_keys: Where their gradient is added.
            block: Which rows.
            own: The student's.
            other: The teacher's.
            gap: The difference of the two.
            factor: (n, heads or 1, R, 1).

        Returns:
            The gradient of the queries or of the rows (n, heads, R, d or Nk).
        """
        if own.log is None:
            slope = gap.mul_(2) if self.distance == "l2" else gap.sign_()
        else:
            slope = gap if own.exact else -other / own.share.clamp_min(_UNSEEN)
        if key is None or of_keys is None:
            return (slope * factor).expand_as(own.heads)
        if not own.exact:
            slope = own.heads * slope
            slope.addcmul_(own.heads, slope.sum(-1, keepdim=True), value=-1)
        factor = factor * self.own.scale
        query = (block.take(self.own.tensors[0]) * factor).flatten(0, 1)
        of_keys.view(-1, *of_keys.shape[2:]).baddbmm_(slope.flatten(0, 1).transpose(1, 2), query)
        return slope @ key * factor


def _plain(pair: _Pair, groups: _Groups, weight: Tensor | None) -> Tensor:
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
    def forward(
        ctx: Any, pair: _Pair, groups: _Groups, learns: bool, weight: Tensor | None, *tensors: Tensor
    ) -> Tensor:
        """Compute value and gradients."""
        maps, heads, queries, depth = tensors[0].shape
        distances = tensors[0].new_zeros(maps, queries, dtype=pair.dtype)
        key_gradient = torch.zeros_like(tensors[1], dtype=pair.dtype) if learns and len(tensors) == 2 else None
        indices, parts = [], []
        for batch, blocks in groups:
            own_key, key = (side.take_keys(batch, pair.dtype) for side in (pair.own, pair.other))
            of_keys = None if own_key is None else torch.zeros_like(own_key)
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
