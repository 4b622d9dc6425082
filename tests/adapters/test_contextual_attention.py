"""Contextual attention against a loop over samples, queries and keys in float64."""

from __future__ import annotations

import math

import pytest
import torch

from inpaint_distill.adapters.contextual_attention import ContextualAttention, ContextualAttentionGenerator
from inpaint_distill.errors import ConfigError, InputError


def reference(feature, hole, patch_size=3, rate=2, scale=10.0, propagate=True):
    """Return the rebuilt feature and the attention rows, one pair of tokens at a time."""
    results, maps = [], []
    for x, m in zip(feature, hole, strict=True):
        full_height, full_width = x.shape[1:]
        height, width = full_height // rate, full_width // rate
        grid = [(row, column) for row in range(height) for column in range(width)]
        cell = {(r, c): x[:, r * rate : (r + 1) * rate, c * rate : (c + 1) * rate].mean(dim=(1, 2)) for r, c in grid}
        in_hole = {
            (r, c): bool(
                m[
                    0,
                    r * m.shape[1] // height : math.ceil((r + 1) * m.shape[1] / height),
                    c * m.shape[2] // width : math.ceil((c + 1) * m.shape[2] / width),
                ].any()
            )
            for r, c in grid
        }
        around = range(-(patch_size // 2), patch_size // 2 + 1)

        def token(r, c, cell=cell, around=around, x=x):
            return torch.cat([cell.get((r + i, c + j), x.new_zeros(x.shape[0])) for i in around for j in around])

        tokens = {place: token(*place) for place in grid}
        similarity = {
            (q, k): float(tokens[q] @ tokens[k] / max(tokens[q].norm(), 1e-4) / max(tokens[k].norm(), 1e-4))
            for q in grid
            for k in grid
        }
        for step in ((0, 1), (1, 0)) if propagate else ():
            similarity = {
                (q, k): sum(
                    similarity.get(
                        (
                            (q[0] + i * step[0], q[1] + i * step[1]),
                            (k[0] + i * step[0], k[1] + i * step[1]),
                        ),
                        0.0,
                    )
                    for i in (-1, 0, 1)
                )
                for q, k in similarity
            }
        usable = [k for k in grid if not in_hole[k]]
        rows = torch.zeros(len(grid), len(grid), dtype=x.dtype)
        for index, q in enumerate(grid):
            if not usable:
                rows[index] = 1 / len(grid)
                continue
            weights = torch.tensor([scale * similarity[q, k] for k in usable], dtype=x.dtype).softmax(0)
            rows[index, [grid.index(k) for k in usable]] = weights
        total = torch.zeros_like(x)
        count = torch.zeros(full_height, full_width, dtype=x.dtype)
        reach = range(-(rate // 2), 2 * rate - rate // 2)
        for index, (qr, qc) in enumerate(grid):
            for i in reach:
                for j in reach:
                    row, column = qr * rate + i, qc * rate + j
                    if not (0 <= row < full_height and 0 <= column < full_width):
                        continue
                    count[row, column] += 1
                    for weight, (kr, kc) in zip(rows[index], grid, strict=True):
                        source = kr * rate + i, kc * rate + j
                        if 0 <= source[0] < full_height and 0 <= source[1] < full_width:
                            total[:, row, column] += weight * x[:, source[0], source[1]]
        results.append(total / count)
        maps.append(rows)
    return torch.stack(results), torch.stack(maps)


@pytest.fixture
def scene():
    """Return a float64 feature (3, 2, 6, 8) and masks (3, 1, 12, 16): two different holes and a full one."""
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(3, 2, 6, 8, dtype=torch.float64, generator=generator)
    hole = torch.zeros(3, 1, 12, 16, dtype=torch.float64)
    hole[0, :, 4:8, 4:9] = 1
    hole[1, :, 0, 15] = 1
    hole[2] = 1
    return feature, hole


@pytest.fixture
def softmax_calls(monkeypatch):
    """Return a list that fills with (rows, dim) of every torch.softmax call."""
    calls, softmax = [], torch.softmax

    def spy(logits, dim):
        calls.append((softmax(logits, dim), dim))
        return calls[-1][0]

    monkeypatch.setattr(torch, "softmax", spy)
    return calls


@pytest.mark.parametrize("propagate", [True, False])
def test_equals_a_loop_over_samples_queries_and_keys(scene, softmax_calls, propagate):
    expected, rows = reference(*scene, propagate=propagate)
    output = ContextualAttention(propagate=propagate)(*scene)
    torch.testing.assert_close(softmax_calls[0][0], rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(output, expected, rtol=1e-9, atol=1e-12)


def test_rows_are_batch_queries_keys_and_skip_the_hole_of_their_own_sample(scene, softmax_calls):
    ContextualAttention()(*scene)
    ((rows, dim),) = softmax_calls
    assert rows.shape == (3, 12, 12)
    assert dim == -1
    torch.testing.assert_close(rows.sum(-1), torch.ones(3, 12, dtype=torch.float64))
    ignored = (rows == 0).all(dim=1)
    assert [sample.nonzero().flatten().tolist() for sample in ignored] == [[5, 6], [3], []]


def test_samples_do_not_see_each_other(scene):
    feature, hole = scene
    together = ContextualAttention()(feature, hole)
    alone = torch.cat([ContextualAttention()(f[None], m[None]) for f, m in zip(feature, hole, strict=True)])
    torch.testing.assert_close(together, alone)


def test_a_constant_feature_stays_constant_inside():
    feature = torch.ones(1, 4, 16, 16)
    hole = torch.zeros(1, 1, 16, 16)
    hole[:, :, 4:12, 4:12] = 1
    output = ContextualAttention(propagate=False)(feature, hole)
    assert output.shape == feature.shape
    assert output.max() <= 1 + 1e-5
    assert output.min() > 0.5


@pytest.mark.parametrize("feature", [torch.zeros(1, 2, 8, 8), torch.full((1, 2, 8, 8), 1e3)])
@pytest.mark.parametrize("fill", [0.0, 1.0])
def test_is_finite_with_gradients_for_degenerate_features_and_holes(feature, fill):
    feature = feature.clone().requires_grad_()
    output = ContextualAttention()(feature, torch.full((1, 1, 32, 32), fill))
    output.sum().backward()
    assert output.isfinite().all()
    assert feature.grad.isfinite().all()


def test_gradient_is_exact_twice_over(scene):
    feature, hole = scene[0][:, :, :4, :4].contiguous().requires_grad_(), scene[1][:, :, :8, :8]
    attention = ContextualAttention()
    assert torch.autograd.gradcheck(lambda x: attention(x, hole), feature)
    one = feature[:1].detach().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda x: attention(x, hole[:1]), one)


@pytest.mark.parametrize("shape", [(1, 5, 36, 32), (1, 4, 32, 32), (5, 32, 32)])
def test_a_wrong_input_is_explained(shape):
    with pytest.raises(InputError, match="multiples of 8"):
        ContextualAttentionGenerator(width=4)(torch.zeros(shape))


@pytest.mark.parametrize("width", [0, 3, -2])
def test_a_wrong_width_is_explained(width):
    with pytest.raises(ConfigError):
        ContextualAttentionGenerator(width=width)
