"""The parts of attention transfer: which rows are computed at once, how maps are laid out, what counts as unseen."""

import math

import pytest
import torch
from torch.overrides import TorchFunctionMode

from inpaint_distill.errors import InputError
from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.losses.attention_rows import UNSEEN_BIAS, Block, Pair, Side, cut_into_blocks

DISTANCES = ["l2", "l1", "kl"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def holes(*counts, queries=6):
    """Return a hole (B, Nq) whose maps have so many rows, the last ones of each."""
    return torch.stack([torch.arange(queries) >= queries - count for count in counts])


# -- blocks ------------------------------------------------------------------------------------------------------------


def test_maps_of_like_holes_are_computed_together_and_a_large_hole_in_parts():
    groups = cut_into_blocks(holes(3, 0, 5, 1, 2), 4, torch.float64)
    found = [(batch.tolist(), [block.rows.tolist() for block in blocks]) for batch, blocks in groups]
    assert found == [
        ([2], [[[1, 2, 3]], [[4, 5]]]),
        ([0], [[[3, 4, 5]]]),
        ([4, 3], [[[4, 5], [5, 0]]]),
    ]
    shares = [[block.share.tolist() for block in blocks] for _, blocks in groups]
    each = 1 / 11
    assert shares == [[[[each] * 3], [[each] * 2]], [[[each] * 3]], [[[each, each], [each, 0.0]]]]
    assert all(block.batch is batch for batch, blocks in groups for block in blocks)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize("counts", [(6, 6, 6), (1, 4, 0, 4, 2), (0, 0, 1), (5,)])
def test_every_row_of_the_hole_is_in_one_block_and_none_is_larger_than_asked(counts, size):
    hole = holes(*counts)
    taken = torch.zeros(hole.shape, dtype=torch.float64)
    for batch, blocks in cut_into_blocks(hole, size, torch.float64):
        for block in blocks:
            assert block.rows.numel() <= max(size, 1)
            assert block.rows.shape == block.share.shape == (len(batch), block.rows.shape[1])
            taken.index_put_((batch[:, None], block.rows), block.share, accumulate=True)
    torch.testing.assert_close(taken, hole.double() / hole.sum())


def test_no_hole_makes_no_blocks():
    assert cut_into_blocks(holes(0, 0), 4, torch.float32) == []


def test_a_block_takes_its_rows_of_a_tensor_that_may_be_alike_for_all_maps_or_queries():
    block = Block(torch.tensor([2, 0]), torch.tensor([[1, 3], [0, 2]]), torch.ones(2, 2, dtype=torch.float32))
    whole = draw(3, 2, 4, 5)
    wanted = torch.stack([whole[2][:, [1, 3]], whole[0][:, [0, 2]]]).float()
    assert torch.equal(block.take(whole), wanted)
    one = draw(1, 2, 4, 5)
    assert torch.equal(block.take(one), torch.stack([one[0][:, [1, 3]], one[0][:, [0, 2]]]).float())
    alike = draw(3, 1, 1, 5)
    assert torch.equal(block.take(alike), alike[[2, 0]].expand(-1, -1, 2, -1).float())


def test_a_rows_share_is_weighed_by_its_own_weight():
    block = Block(torch.tensor([1]), torch.tensor([[2, 0]]), torch.tensor([[0.5, 0.25]]))
    assert block.factor(None) is block.share
    weight = torch.tensor([[9.0, 9.0, 9.0], [2.0, 9.0, 4.0]])
    assert block.factor(weight).tolist() == [[2.0, 0.5]]


class Largest(TorchFunctionMode):
    """Notes the largest softmax that is computed."""

    numbers = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if function in (torch.Tensor.softmax, torch.Tensor.log_softmax):
            self.numbers = max(self.numbers, result.numel())
        return result


@pytest.mark.parametrize(("chunk", "wanted"), [(2 * 16 * 3, 2 * 16 * 3), (100, 96), (1, 32), (1 << 20, 512)])
def test_a_chunk_bounds_how_many_shares_are_computed_at_a_time(chunk, wanted):
    def one(seed):
        return AttentionMap(query=draw(1, 2, 16, 4, seed=seed), key=draw(1, 2, 16, 4, seed=seed + 1))

    with Largest() as seen:
        attention_distance(one(0), one(5), torch.ones(1, 16), chunk=chunk)
    assert seen.numbers == wanted


def test_on_a_cpu_half_a_million_shares_are_computed_at_a_time():
    one = AttentionMap(query=torch.ones(1, 2, 1024, 1), key=torch.ones(1, 2, 1024, 1))
    with Largest() as seen, torch.no_grad():
        attention_distance(one, one, torch.ones(1, 1024))
    assert seen.numbers == 1 << 19


# -- sides -------------------------------------------------------------------------------------------------------------


def test_a_side_counts_maps_heads_queries_and_keys_of_whatever_was_seen():
    for seen in (
        AttentionMap(query=draw(2, 3, 4, 7), key=draw(2, 3, 5, 7), scale=0.3),
        AttentionMap(rows=draw(2, 3, 4, 5), scale=0.3),
    ):
        side = Side.of(seen, "student")
        assert (side.batch, side.heads, side.queries, side.keys) == (2, 3, 4, 5)
        assert side.scale == 0.3
        assert side.key is seen.key


@pytest.mark.parametrize(("whose", "kept"), [("student", "rows"), ("teacher", "logits")])
def test_the_logits_are_preferred_of_the_teacher_alone(whose, kept):
    seen = AttentionMap(rows=draw(1, 1, 4, 4).softmax(-1), logits=draw(1, 1, 4, 4))
    side = Side.of(seen, whose)
    assert side.tensors[0] is getattr(seen, kept)
    assert side.logits == (kept == "logits")
    assert not Side.of(AttentionMap(rows=seen.rows), "teacher").logits
    assert not Side.of(AttentionMap(query=seen.rows, key=seen.rows), "teacher").logits


@pytest.mark.parametrize("shape", [(5,), (4, 5), (3, 1, 5), (2, 1, 1, 1), (1, 3, 4, 5)])
def test_a_bias_of_any_shape_that_broadcasts_is_brought_to_four_dimensions(shape):
    bias = draw(*shape)
    side = Side.of(AttentionMap(rows=draw(2, 3, 4, 5), bias=bias), "student")
    assert side.bias.ndim == 4
    assert torch.equal(side.bias.expand(2, 3, 4, 5), bias.expand(2, 3, 4, 5))


@pytest.mark.parametrize(
    ("queries", "keys", "grid", "wanted"),
    [
        (16, 16, None, ((4, 4), (4, 4))),
        (12, 12, (3, 4), ((3, 4), (3, 4))),
        (12, 48, (3, 4), ((3, 4), (6, 8))),
        (48, 12, (6, 8), ((6, 8), (3, 4))),
        (64, 4, None, ((8, 8), (2, 2))),
    ],
)
def test_queries_and_keys_are_laid_out_in_the_same_proportions(queries, keys, grid, wanted):
    assert Side.of(AttentionMap(rows=torch.ones(1, 1, queries, keys)), "student").grids(grid) == wanted


@pytest.mark.parametrize(("queries", "keys", "grid"), [(12, 12, None), (12, 12, (4, 4)), (16, 12, None), (16, 2, None)])
def test_tokens_that_tile_no_grid_are_refused(queries, keys, grid):
    side = Side.of(AttentionMap(rows=torch.ones(1, 1, queries, keys)), "teacher")
    with pytest.raises(InputError, match=r"give teacher_grid=\(rows, columns\)"):
        side.grids(grid)


# -- pairs -------------------------------------------------------------------------------------------------------------


def pair(own, other, own_grid=None, grid=None):
    """Pair rows of (heads, queries, keys)."""
    sides = [Side.of(AttentionMap(rows=torch.ones(1, *shape)), "student") for shape in (own, other)]
    return Pair(*sides, "l2", own_grid, grid)


@pytest.mark.parametrize(
    ("own", "other", "width"),
    [((2, 16, 16), (2, 16, 16), 32), ((1, 16, 16), (3, 16, 16), 48), ((2, 16, 16), (3, 4, 4), 48)],
)
def test_the_width_of_a_row_is_the_larger_sides_with_all_neighbours_and_heads(own, other, width):
    found = pair(own, other)
    assert found.width == width
    assert found.merged == (own[0] != other[0])
    assert (found.neighbours is not None) == (own[1] != other[1])


def test_keys_alone_may_differ_in_number():
    found = pair((1, 16, 16), (1, 16, 4))
    assert found.neighbours is None
    assert found.key_grids == ((4, 4), (2, 2))
    assert pair((1, 16, 16), (1, 4, 16)).key_grids is None


@pytest.mark.parametrize(
    ("kind", "wanted"),
    [(torch.float16, torch.float32), (torch.bfloat16, torch.float32), (torch.float64, torch.float64)],
)
def test_it_is_computed_in_single_precision_or_better(kind, wanted):
    side = Side.of(AttentionMap(rows=torch.ones(1, 1, 4, 4, dtype=kind)), "student")
    assert Pair(side, side, "l2", None, None).dtype == wanted


# -- what the student cannot see ---------------------------------------------------------------------------------------


def distance_over(own, other, distance):
    """Compare one row with another over all of its keys."""
    if distance == "kl":
        return (other * (other / own).log()).sum()
    return (own - other).square().sum() if distance == "l2" else (own - other).abs().sum()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("bias", "seen"), [(UNSEEN_BIAS, False), (UNSEEN_BIAS + 1e-9, True), (-49.0, True)])
def test_a_key_is_unseen_from_a_bias_of_minus_fifty_on(distance, bias, seen):
    query, key = draw(1, 1, 1, 3), draw(1, 1, 4, 3, seed=1)
    whole = torch.tensor([bias, 0.0, 0.0, 0.0], dtype=torch.float64)
    student = AttentionMap(query=query, key=key, bias=whole)
    other = torch.tensor([0.7, 0.1, 0.15, 0.05], dtype=torch.float64)
    own = ((query @ key.mT).flatten() + whole).softmax(-1)
    if not seen:
        own, other_seen = own[1:], other[1:] / other[1:].sum()
    else:
        other_seen = other
    value = attention_distance(student, AttentionMap(rows=other.view(1, 1, 1, 4)), torch.ones(1, 1), distance=distance)
    torch.testing.assert_close(value, distance_over(own, other_seen, distance))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize(("share", "seen"), [(math.exp(-50), False), (math.exp(-49.9), True)])
def test_a_key_of_the_hosts_own_rows_is_unseen_up_to_a_share_of_e_to_the_minus_fifty(distance, share, seen):
    own = torch.tensor([share, 0.2, 0.3, 0.5], dtype=torch.float64)
    other = torch.tensor([0.7, 0.1, 0.15, 0.05], dtype=torch.float64)
    expected = distance_over(own, other, distance) if seen else None
    if not seen:
        expected = distance_over(own[1:], other[1:] / other[1:].sum(), distance)
    maps = [AttentionMap(rows=each.view(1, 1, 1, 4)) for each in (own, other)]
    torch.testing.assert_close(attention_distance(*maps, torch.ones(1, 1), distance=distance), expected)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("other_heads", [1, 2])
def test_a_row_counts_nothing_where_the_teacher_sees_none_of_its_keys(distance, other_heads):
    own = torch.tensor([[0.0, 0.0, 0.4, 0.6], [0.1, 0.2, 0.3, 0.4]], dtype=torch.float64)
    other = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.4, 0.3, 0.2, 0.1]], dtype=torch.float64)
    teacher = AttentionMap(rows=other.expand(1, other_heads, 2, 4))
    value = attention_distance(AttentionMap(rows=own.view(1, 1, 2, 4)), teacher, torch.ones(1, 2), distance=distance)
    torch.testing.assert_close(value, distance_over(own[1], other[1], distance) / 2)
