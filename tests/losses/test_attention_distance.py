"""Attention transfer on hole rows against a dense float64 reference: value, gradients, masks, unlike maps, memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from inpaint_distill.double_backward import double_backward
from inpaint_distill.errors import CaptureError, ConfigError, InputError
from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.losses.attention_distance import attention_distance
from inpaint_distill.losses.token_grids import hole_tokens, query_neighbours, resample_keys

DISTANCES = ["l2", "l1", "kl"]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def some_hole(maps, queries, share=0.4, seed=9):
    return torch.rand(maps, queries, generator=torch.Generator().manual_seed(seed)) < share


def qk(maps=2, heads=3, queries=6, keys=6, depth=4, seed=0, dtype=torch.float64, **more):
    query = draw(maps, heads, queries, depth, seed=seed, dtype=dtype)
    key = draw(maps, heads, keys, depth, seed=seed + 1, dtype=dtype)
    return AttentionMap(query=query, key=key, scale=0.7, **more)


def logits_of(seen):
    if seen.query is None:
        return seen.rows.double().log() if seen.logits is None else seen.logits.double()
    scores = seen.scale * seen.query.double() @ seen.key.double().transpose(-1, -2)
    return scores if seen.bias is None else scores + seen.bias.double()


def reference(student, teacher, hole, weight=None, distance="l2", student_rows=None, visible=None, teacher_rows=None):
    """Every row of every map, one by one; differentiable."""
    own = logits_of(student).softmax(-1) if student_rows is None else student_rows
    total = 0.0 * own.sum()
    for b, i in hole.nonzero().tolist():
        for h in range(own.shape[1]):
            seen = torch.ones(own.shape[-1], dtype=torch.bool) if visible is None else visible[b, h, i]
            if teacher_rows is None:
                scores = logits_of(teacher)[b, h, i].detach()[seen]
            else:
                scores = teacher_rows[b, h, i].detach()[seen].log()
            if not (scores > -math.inf).any():
                continue
            r, t = own[b, h, i][seen], scores.softmax(-1)
            each = {
                "l2": lambda r=r, t=t: (r - t).square().sum(),
                "l1": lambda r=r, t=t: (r - t).abs().sum(),
                "kl": lambda r=r, t=t: F.kl_div(r.log(), t, reduction="sum"),
            }[distance]()
            total = total + each * (1 if weight is None else weight[b, i]) / own.shape[1]
    return total / max(1, int(hole.sum()))


def agree(run, wanted, inputs, rtol=1e-9):
    """Compare value and gradients of two functions of no arguments."""
    value, expected = run(), wanted()
    torch.testing.assert_close(value.double(), expected.double(), rtol=rtol, atol=1e-12)
    found = torch.autograd.grad(value, inputs)
    right = torch.autograd.grad(expected, inputs, allow_unused=True, materialize_grads=True)
    for a, b in zip(found, right, strict=True):
        torch.testing.assert_close(a.double(), b.double(), rtol=rtol, atol=1e-10 if rtol < 1e-6 else 1e-7)


@pytest.fixture(params=[False, True], ids=["fused", "plain"])
def passes(request):
    """Run a test on both paths."""
    if request.param:
        with double_backward():
            yield
    else:
        yield


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["query and key", "rows"])
@pytest.mark.parametrize("chunk", [1, 40, None])
def test_value_and_gradients_equal_the_dense_reference(distance, kind, chunk):
    student, teacher, hole = qk(), qk(seed=5), some_hole(2, 6)
    weight = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    inputs = [student.query.requires_grad_(), student.key.requires_grad_(), weight]
    given_student = student
    if kind == "rows":
        given_student = AttentionMap(rows=logits_of(student).softmax(-1))
    agree(
        lambda: attention_distance(given_student, teacher, hole, weight, distance=distance, chunk=chunk),
        lambda: reference(student, teacher, hole, weight, distance),
        inputs,
    )


@given(
    maps=st.integers(1, 4),
    heads=st.integers(1, 3),
    queries=st.integers(1, 7),
    keys=st.integers(1, 7),
    share=st.sampled_from([0.0, 0.3, 0.8, 1.0]),
    chunk=st.sampled_from([1, 13, 64, 1 << 18]),
    distance=st.sampled_from(DISTANCES),
    seed=st.integers(0, 99),
)
def test_any_shape_hole_and_chunk_equals_the_reference(maps, heads, queries, keys, share, chunk, distance, seed):
    student = qk(maps, heads, queries, keys, seed=seed)
    teacher = qk(maps, heads, queries, keys, seed=seed + 5)
    hole = some_hole(maps, queries, share, seed)
    inputs = [student.query.requires_grad_(), student.key.requires_grad_()]
    agree(
        lambda: attention_distance(student, teacher, hole, distance=distance, chunk=chunk),
        lambda: reference(student, teacher, hole, distance=distance),
        inputs,
    )


@pytest.mark.parametrize("kind", ["qk", "logits", "rows"])
def test_the_teacher_may_show_queries_and_keys_or_logits_or_rows(kind):
    student, whole, hole = qk(), qk(seed=5), some_hole(2, 6)
    logits = logits_of(whole)
    teacher = {
        "qk": whole,
        "logits": AttentionMap(rows=torch.full_like(logits, torch.nan), logits=logits.requires_grad_()),
        "rows": AttentionMap(rows=logits.softmax(-1)),
    }[kind]
    value = attention_distance(student, teacher, hole)
    torch.testing.assert_close(value, reference(student, whole, hole))
    assert not value.requires_grad


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mask", [-math.inf, -1e4, -100.0])
@pytest.mark.parametrize("kind", ["query and key", "rows", "rows, bias beside"])
def test_keys_hidden_from_the_student_are_left_out_of_the_teachers_rows(distance, mask, kind):
    visible = torch.rand(2, 1, 6, 6) < 0.5
    visible[0, 0, 2] = False  # a row that sees nothing
    visible[0, 0, 3] = True
    bias = torch.zeros(2, 1, 6, 6, dtype=torch.float64).masked_fill(~visible, mask)
    student, teacher, hole = qk(bias=bias), qk(seed=5), some_hole(2, 6, 0.8)
    hole[0, 2] = True
    source = student.query.requires_grad_()

    def effective():
        finite = AttentionMap(query=source, key=student.key, scale=student.scale, bias=bias.clamp_min(-1e300))
        rows = logits_of(finite).softmax(-1)
        return torch.where(visible, rows, 0)

    def given_student():
        if kind == "query and key":
            return student
        if kind == "rows":
            return AttentionMap(rows=effective())
        return AttentionMap(rows=logits_of(AttentionMap(source, student.key, 0.7)).softmax(-1), bias=bias)

    def wanted():
        if kind == "rows, bias beside":
            rows = logits_of(AttentionMap(source, student.key, 0.7)).softmax(-1)
        else:
            rows = effective()
        return reference(None, teacher, hole, distance=distance, student_rows=rows, visible=visible.expand(2, 3, 6, 6))

    agree(lambda: attention_distance(given_student(), teacher, hole, distance=distance), wanted, [source])


def test_a_hole_that_sees_no_key_counts_nothing_and_gives_no_nan():
    for mask in (-math.inf, -100.0):
        student = qk(bias=torch.full((1, 1, 1, 6), mask, dtype=torch.float64))
        student.query.requires_grad_()
        for distance in DISTANCES:
            value = attention_distance(student, qk(seed=5), torch.ones(2, 6), distance=distance)
            value.backward()
            assert value == 0
            assert not student.query.grad.any()


def test_a_teacher_that_sees_none_of_the_students_keys_counts_nothing():
    own, other = (torch.zeros(1, 1, 1, 4, dtype=torch.float64) for _ in range(2))
    own[..., 2:] = -math.inf
    other[..., :2] = -math.inf
    student, teacher = qk(1, 1, 4, 4, bias=own), qk(1, 1, 4, 4, seed=5, bias=other)
    for seen in (teacher, AttentionMap(rows=logits_of(teacher).softmax(-1))):
        for distance in DISTANCES:
            assert attention_distance(student, seen, torch.ones(1, 4), distance=distance) == 0


def test_a_teacher_whose_mass_is_on_hidden_keys_is_renormalised_from_its_logits():
    bias = torch.zeros(1, 1, 1, 4)
    bias[..., 0] = -math.inf
    logits = torch.tensor([400.0, 0.0, 1.0, 2.0]).expand(1, 1, 4, 4)  # on the three others float32 leaves exactly 0
    student = qk(1, 1, 4, 4, bias=bias, dtype=torch.float32)
    student.query.zero_()
    teacher = AttentionMap(rows=logits.softmax(-1), logits=logits)
    wanted = (logits[0, 0, 0, 1:].softmax(0) - 1 / 3).square().sum()
    torch.testing.assert_close(attention_distance(student, teacher, torch.ones(1, 4)), wanted)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("kind", ["query and key", "rows"])
@pytest.mark.parametrize("own_heads", [1, 3])
def test_kl_is_finite_whatever_the_logits(kind, own_heads):
    student = qk(2, own_heads, 6, 6, dtype=torch.float32)
    student.query.mul_(1e3)
    student.query.requires_grad_()
    teacher = qk(2, 3, 6, 6, seed=5, dtype=torch.float32)
    teacher.query.mul_(1e3)
    seen = student if kind == "query and key" else AttentionMap(rows=logits_of(student).float().softmax(-1))
    value = attention_distance(seen, teacher, torch.ones(2, 6), distance="kl")
    value.backward()
    assert value.isfinite()
    assert student.query.grad.isfinite().all()


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("kind", ["query and key", "rows"])
def test_unlike_numbers_of_heads_are_averaged(distance, kind):
    student, teacher, hole = qk(heads=4), qk(heads=3, seed=5), some_hole(2, 6)
    inputs = [student.query.requires_grad_(), student.key.requires_grad_()]
    seen = student if kind == "query and key" else AttentionMap(rows=logits_of(student).softmax(-1))
    agree(
        lambda: attention_distance(seen, teacher, hole, distance=distance, chunk=50),
        lambda: reference(
            None,
            None,
            hole,
            distance=distance,
            student_rows=logits_of(student).softmax(-1).mean(1, keepdim=True),
            teacher_rows=logits_of(teacher).softmax(-1).mean(1, keepdim=True),
        ),
        inputs,
    )


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("masked", [False, True])
def test_unlike_numbers_of_tokens_are_resampled(distance, masked):
    own, other = (3, 4), (4, 6)
    bias = torch.zeros(1, 1, 1, 12).double()
    visible = torch.ones(2, 3, 12, 12, dtype=torch.bool)
    if masked:
        bias[..., 4:7] = -math.inf
        visible[..., 4:7] = False
    student, teacher = qk(queries=12, keys=12, bias=bias), qk(queries=24, keys=24, seed=5)
    rows = logits_of(teacher).softmax(-1)
    whole = F.interpolate(rows.transpose(2, 3).flatten(0, 1).unflatten(-1, other), own, mode="bilinear")
    whole = whole.flatten(2).unflatten(0, (2, 3)).transpose(2, 3)
    whole = resample_keys(whole, own, other)
    hole = some_hole(2, 12)
    agree(
        lambda: attention_distance(
            student, teacher, hole, distance=distance, student_grid=own, teacher_grid=other, chunk=99
        ),
        lambda: reference(
            None,
            None,
            hole,
            distance=distance,
            student_rows=logits_of(student).softmax(-1),
            teacher_rows=whole,
            visible=visible,
        ),
        [student.query.requires_grad_(), student.key.requires_grad_()],
    )


def test_fewer_keys_than_queries_keep_the_proportions_of_the_queries():
    student, teacher = qk(queries=24 * 4, keys=24), qk(queries=24, keys=24, seed=5)
    hole = some_hole(2, 96)
    value = attention_distance(student, teacher, hole, student_grid=(8, 12), teacher_grid=(4, 6))
    index, share = query_neighbours((8, 12), (4, 6))
    rows = (logits_of(teacher).softmax(-1)[:, :, index] * share[..., None]).sum(3)
    torch.testing.assert_close(value, reference(student, None, hole, teacher_rows=rows))


def test_a_square_number_of_tokens_needs_no_grid():
    student, teacher, hole = qk(queries=16, keys=16), qk(queries=4, keys=4, seed=5), some_hole(2, 16)
    torch.testing.assert_close(
        attention_distance(student, teacher, hole),
        attention_distance(student, teacher, hole, student_grid=(4, 4), teacher_grid=(2, 2)),
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_resampling_keys_keeps_sums_and_equals_repetition_where_it_divides(rows, columns, other_rows, other_columns):
    share = torch.rand(3, other_rows * other_columns, dtype=torch.float64)
    found = resample_keys(share, (rows, columns), (other_rows, other_columns))
    torch.testing.assert_close(found.sum(-1), share.sum(-1))
    fine = share.unflatten(-1, (other_rows, other_columns)).repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    coarse = F.avg_pool2d(fine, (other_rows, other_columns)) * other_rows * other_columns / (rows * columns)
    torch.testing.assert_close(found, coarse.flatten(-2))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 5), st.integers(1, 5))
def test_query_neighbours_are_bilinear_interpolation(rows, columns, other_rows, other_columns):
    index, share = query_neighbours((rows, columns), (other_rows, other_columns))
    image = torch.rand(1, 1, other_rows, other_columns, dtype=torch.float64)
    wanted = F.interpolate(image, (rows, columns), mode="bilinear", align_corners=False)
    torch.testing.assert_close((image.flatten()[index] * share).sum(1), wanted.flatten())


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_hole_tokens_are_the_maximum_over_every_pixel_that_a_cell_touches(height, width, rows, columns, seed):
    mask = (torch.rand(2, 1, height, width, generator=torch.Generator().manual_seed(seed)) < 0.2).float()
    found = hole_tokens(mask, (rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, left = i * height // rows, j * width // columns
            bottom, right = -(-(i + 1) * height // rows), -(-(j + 1) * width // columns)
            assert found[:, i, j].equal(mask[:, 0, top:bottom, left:right].amax((1, 2)))


@pytest.mark.parametrize("kind", ["query and key", "rows"])
@pytest.mark.parametrize("twice", [False, True])
def test_an_empty_hole_is_zero_with_zero_gradients(kind, twice):
    student, weight = qk(), torch.rand(2, 6, requires_grad=True)
    inputs = [student.query.requires_grad_(), student.key.requires_grad_()]
    if kind == "rows":
        inputs = [logits_of(student).softmax(-1).detach().requires_grad_()]
        student = AttentionMap(rows=inputs[0])
    value = attention_distance(student, qk(seed=5), torch.zeros(2, 6), weight)
    assert value == 0
    for gradient in torch.autograd.grad(value, [*inputs, weight], create_graph=twice):
        assert not gradient.any()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("twice", [False, True])
def test_a_learned_bias_gets_its_gradient(distance, twice):
    windows, heads, tokens = 6, 2, 4
    table = draw(1, heads, tokens, tokens, seed=3).requires_grad_()
    shift = torch.zeros(windows, 1, tokens, tokens).double()
    shift[2, :, :2, 2:] = -math.inf
    student, teacher = qk(windows, heads, tokens, tokens), qk(windows, heads, tokens, tokens, seed=5)
    student.bias = table + shift
    teacher.bias = shift
    hole, visible = some_hole(windows, tokens, 0.6), (shift == 0).expand(-1, heads, -1, -1)
    agree(
        lambda: attention_distance(student, teacher, hole, distance=distance),
        lambda: reference(
            student,
            teacher,
            hole,
            distance=distance,
            visible=visible,
            student_rows=logits_of(student).softmax(-1).clamp_min(1e-300),
        ),
        [table],
    )


def test_gradcheck_of_value_and_weight():
    student, teacher = qk(2, 2, 3, 2, depth=2), qk(2, 2, 3, 2, depth=2, seed=5)
    hole = torch.tensor([[True, False, True], [False, True, False]])
    weight = torch.rand(2, 3, dtype=torch.float64)
    for distance in DISTANCES:
        for function in (torch.autograd.gradcheck, _twice):
            assert function(
                lambda query, key, weight, distance=distance: attention_distance(
                    AttentionMap(query=query, key=key, scale=0.7), teacher, hole, weight, distance=distance, chunk=9
                ),
                [each.detach().requires_grad_() for each in (student.query, student.key, weight)],
            )


def _twice(function, inputs):
    with double_backward():
        return torch.autograd.gradgradcheck(function, inputs)


def test_the_fused_path_refuses_a_second_derivative():
    student = qk()
    value = attention_distance(AttentionMap(student.query.requires_grad_(), student.key), qk(seed=5), some_hole(2, 6))
    with pytest.raises(CaptureError, match="double_backward"):
        torch.autograd.grad(value, student.query, create_graph=True)


@pytest.mark.parametrize("chunk", [100, None])
def test_many_windows_equal_one_by_one_and_are_computed_together(chunk, monkeypatch):
    windows = 600
    student, teacher = qk(windows, 2, 4, 4), qk(windows, 2, 4, 4, seed=5)
    hole = some_hole(windows, 4, 0.3)
    hole[::3] = False
    value = attention_distance(student, teacher, hole, chunk=chunk)
    torch.testing.assert_close(value, reference(student, teacher, hole))
    calls = []
    real = torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda *args, **more: calls.append(1) or real(*args, **more))
    attention_distance(student, teacher, hole)
    assert len(calls) <= 4


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_inputs_are_computed_in_float32_whatever_the_autocast(dtype):
    student, teacher, hole = qk(dtype=dtype), qk(seed=5, dtype=dtype), some_hole(2, 6)
    inputs = [student.query.requires_grad_(), student.key.requires_grad_()]
    with torch.autocast("cpu", torch.bfloat16):
        value = attention_distance(student, teacher, hole)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), reference(student, teacher, hole), rtol=1e-5, atol=0)
    assert [each.dtype for each in torch.autograd.grad(value, inputs)] == [dtype, dtype]


def test_nothing_is_kept_for_frozen_students_and_under_no_grad():
    student = qk()
    with torch.no_grad():
        student.query.requires_grad_()
        assert not attention_distance(student, qk(seed=5), some_hole(2, 6)).requires_grad
    kept, _ = saved(lambda: attention_distance(qk(), qk(seed=5), some_hole(2, 6)))
    assert kept == []


def test_the_weights_get_their_gradient_where_the_student_gets_none():
    student, teacher, hole = qk(), qk(seed=5), some_hole(2, 6)
    weight = torch.rand(2, 6, dtype=torch.float64, requires_grad=True)
    agree(
        lambda: attention_distance(student, teacher, hole, weight),
        lambda: reference(student, teacher, hole, weight),
        [weight],
    )
    kept, _ = saved(lambda: attention_distance(student, teacher, hole, weight))
    assert [tuple(tensor.shape) for tensor in kept] == [(2, 6)]


def saved(run):
    """Run; return the tensors kept for backward and the bytes of their storages."""
    kept = []

    def pack(tensor):
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = run()
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in kept}
    assert value.requires_grad or not kept
    return kept, sum(storages.values())


def dense(student, teacher, rows):
    own, other = (
        (seen.query[:, :, rows] @ seen.key.transpose(-1, -2) * seen.scale).softmax(-1) for seen in (student, teacher)
    )
    return (own - other.detach()).square().sum(-1).mean()


@pytest.mark.parametrize("distance", DISTANCES)
def test_no_n_by_n_memory_is_kept_for_backward(distance):
    tokens, heads, depth = 1024, 4, 32
    student, teacher = (qk(1, heads, tokens, tokens, depth, seed=seed, dtype=torch.float32) for seed in (0, 5))
    student.query.requires_grad_()
    student.key.requires_grad_()
    hole = torch.zeros(1, tokens)
    hole[:, 300:556] = 1
    weight = torch.rand(1, tokens, requires_grad=True)
    kept, size = saved(lambda: attention_distance(student, teacher, hole, weight, distance=distance))
    number = int(hole.sum())
    assert max(tensor.numel() for tensor in kept) <= heads * tokens * depth < number * tokens
    assert size <= 4 * heads * (number + tokens) * depth + 8 * number + 8 * tokens
    _, size_dense = saved(lambda: dense(student, teacher, slice(None)))
    assert size * 40 <= size_dense


def test_of_the_hosts_rows_one_copy_of_the_holes_is_kept():
    rows = qk(1, 2, 64, 64).query @ draw(1, 2, 4, 64, seed=1)
    student = AttentionMap(rows=rows.softmax(-1).requires_grad_())
    hole = torch.zeros(1, 64)
    hole[:, :16] = 1
    _, size = saved(lambda: attention_distance(student, qk(1, 2, 64, 64, seed=5), hole))
    assert size == 16 * (2 * 64 * 8 + 8)


def test_an_unknown_distance_is_named_with_the_choices():
    with pytest.raises(ConfigError, match="cosine") as caught:
        attention_distance(qk(), qk(), some_hole(2, 6), distance="cosine")
    assert "l2, l1, kl" in str(caught.value)


@pytest.mark.parametrize(
    ("student", "teacher", "hole", "weight", "error", "text"),
    [
        (AttentionMap(), qk(), some_hole(2, 6), None, CaptureError, "neither"),
        (AttentionMap(query=qk().query), qk(), some_hole(2, 6), None, CaptureError, "student's query"),
        (qk(), AttentionMap(rows=torch.rand(2, 6, 6)), some_hole(2, 6), None, CaptureError, "teacher's query"),
        (AttentionMap(qk().query, draw(2, 3, 6, 5)), qk(), some_hole(2, 6), None, CaptureError, "student's query"),
        (qk(bias=torch.zeros(6, 5)), qk(), some_hole(2, 6), None, CaptureError, "student's bias"),
        (qk(), qk(maps=4), some_hole(2, 6), None, CaptureError, "4 of the teacher"),
        (qk(), qk(), some_hole(2, 5), None, InputError, "hole"),
        (qk(), qk(), some_hole(2, 6), torch.rand(2, 1, 6), InputError, "weight"),
        (qk(), qk(queries=9, keys=9), some_hole(2, 6), None, InputError, "student_grid"),
        (qk(queries=9, keys=9), qk(queries=16, keys=7), some_hole(2, 9), None, InputError, "teacher_grid"),
    ],
)
def test_maps_that_do_not_fit_are_refused(student, teacher, hole, weight, error, text):
    with pytest.raises(error, match=text):
        attention_distance(student, teacher, hole, weight)


@pytest.mark.usefixtures("passes")
@pytest.mark.parametrize("seed", range(20))
def test_between_almost_equal_rows_the_divergence_is_not_negative_and_keeps_its_gradient(seed):
    teacher = qk(queries=20, keys=20, seed=seed, dtype=torch.float32)
    query = (teacher.query + 1e-5 * draw(2, 3, 20, 4, seed=seed + 7).float()).requires_grad_()
    student, hole = AttentionMap(query=query, key=teacher.key, scale=0.7), some_hole(2, 20)
    value = attention_distance(student, teacher, hole, distance="kl")
    value.backward()
    assert value >= 0
    exact = AttentionMap(query=query.detach().double().requires_grad_(), key=teacher.key.double(), scale=0.7)
    reference(exact, teacher, hole, distance="kl").backward()
    assert F.cosine_similarity(query.grad.flatten().double(), exact.query.grad.flatten(), dim=0) > 0.99
