"""Attention rows of student and teacher, taken block by block and compared over the keys that the student sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

import torch
from torch import Tensor

from inpaint_distill.distributed import mean
from inpaint_distill.errors import CaptureError, InputError
from inpaint_distill.losses.token_grids import Grid, query_neighbours, resample_keys

if TYPE_CHECKING:
    from inpaint_distill.host.attention import AttentionMap

__all__ = ["UNSEEN_BIAS", "Block", "Distance", "Groups", "OwnRows", "Pair", "Side", "cut_into_blocks"]

Distance: TypeAlias = Literal["l2", "l1", "kl"]

# e^-50 of a key's share, in fact nothing: hosts write a mask as -inf, -1e4 or -100, and a softmax may leave a trace.
UNSEEN_BIAS = -50.0
_UNSEEN = math.exp(UNSEEN_BIAS)


@dataclass(frozen=True)
class Block:
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
Groups = list[tuple[Tensor, list[Block]]]


def cut_into_blocks(hole: Tensor, size: int, dtype: torch.dtype) -> Groups:
    """Cut the hole's rows into blocks of at most ``size`` rows: of many small maps, or a part of one.

    Args:
        hole: (B, Nq), boolean.
        size: Rows in a block.
        dtype: What the blocks are computed in.
    """
    counts, ranking = hole.sum(1).sort(descending=True, stable=True)  # as many rows to each map of a block
    order = hole.byte().argsort(dim=1, descending=True, stable=True)
    lengths, start = counts.tolist(), 0
    (total,) = mean([counts.sum().to(dtype)])  # of all processes: in their mean every row then weighs alike
    groups: Groups = []
    while start < len(lengths) and lengths[start]:
        longest = lengths[start]
        batch = ranking[start : start + max(1, size // longest)]
        parts = order[batch, :longest].chunk(math.ceil(longest / size), dim=1)
        blocks = [Block(batch, rows, hole[batch].gather(1, rows).to(dtype) / total) for rows in parts]
        groups.append((batch, blocks))
        start += len(batch)
    return groups


@dataclass(frozen=True)
class Side:
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
    def of(cls, seen: AttentionMap, whose: str) -> Side:
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

    def take_logits(self, key: Tensor | None, block: Block, bias: Tensor | None) -> Tensor:
        """Take or compute the softmax's input for a block (n, heads, R, Nk)."""
        taken = block.take(self.tensors[0])
        if key is None:
            return taken if self.logits else taken.log()
        scores = (taken * self.scale) @ key.transpose(-1, -2)
        return scores if bias is None else scores + bias


@dataclass(frozen=True)
class OwnRows:
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


class Pair:
    """How the rows of the two maps are brought together and compared.

    Attributes:
        dtype: What they are computed in.
        merged: Both are averaged over heads.
        width: Shares that one row takes, heads included.
    """

    def __init__(self, own: Side, other: Side, distance: Distance, own_grid: Grid | None, grid: Grid | None) -> None:
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

    def own_rows(self, key: Tensor | None, block: Block) -> OwnRows:
        """Compute the student's rows of a block."""
        bias = None if self.own.bias is None else block.take(self.own.bias)
        visible = None if bias is None else bias > UNSEEN_BIAS
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
        return OwnRows(heads, share, log, visible, exact)

    @torch.no_grad()
    def other_rows(self, key: Tensor | None, block: Block, visible: Tensor | None) -> tuple[Tensor, Tensor]:
        """Compute the teacher's rows for a block of the student's queries, over the keys that the student sees.

        Returns:
            Rows (n, heads, R, Nk), and whether the teacher sees any such key (n, heads, R, 1); where not, the row is 0.
        """
        share = None
        if self.neighbours is not None:
            index, share = (each[block.rows] for each in self.neighbours)
            block = Block(block.batch, index.flatten(1), block.share)
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

    def compare(self, own: OwnRows, other: Tensor) -> tuple[Tensor, Tensor]:
        """Return the distance of each row (n, heads, R), and the difference of the rows."""
        gap = own.share - other
        if own.log is not None:
            divergence = (torch.xlogy(other, other) - other * own.log).sum(-1)
            return divergence - divergence.detach().clamp_max(0), gap  # below 0 is rounding; the gradient stays
        return (gap.square() if self.distance == "l2" else gap.abs()).sum(-1), gap

    def pull(
        self,
        key: Tensor | None,
        of_keys: Tensor | None,
        block: Block,
        own: OwnRows,
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
