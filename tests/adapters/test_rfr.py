"""Knowledge-consistent attention against loops in float64, and recurrence."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill import plan
from inpaint_distill.adapters.rfr import RFRGenerator
from inpaint_distill.adapters.rfr.attention import KnowledgeConsistentAttention
from inpaint_distill.errors import ConfigError, InputError


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def scores_of(feature, scale):
    """Return scores (keys, queries) of one map (C, h, w), one query at a time."""
    _, height, width = feature.shape
    tokens = feature.flatten(1).t()
    columns = []
    for row in range(height):
        for column in range(width):
            near = [
                F.cosine_similarity(feature[:, y, x], tokens, dim=1)
                for y in range(max(row - 1, 0), min(row + 2, height))
                for x in range(max(column - 1, 0), min(column + 2, width))
            ]
            columns.append((scale * torch.stack(near).mean(0)).softmax(0))
    return torch.stack(columns, 1)


def test_scores_equal_a_loop_over_queries_and_neighbours():
    attention = KnowledgeConsistentAttention(3).double()
    feature = random(2, 3, 4, 5)
    _, (scores, _) = attention(feature, torch.ones(2, 1, 8, 10).double(), None)
    expected = torch.stack([scores_of(each, attention.scale) for each in feature])
    torch.testing.assert_close(scores.flatten(2), expected)
    torch.testing.assert_close(scores.sum(1), torch.ones(2, 4, 5).double())


def test_scores_are_blended_where_the_query_was_known():
    attention = KnowledgeConsistentAttention(3).double()
    attention.share.data.fill_(0.7)
    feature, known = random(1, 3, 4, 4), torch.zeros(1, 1, 4, 4).double()
    known[..., :2] = 1
    _, memory = attention(random(1, 3, 4, 4, seed=1), known, None)
    fresh = attention(feature, known, None)[1][0]
    blended = attention(feature, known, memory)[1][0]
    share = torch.tensor(0.7).double().sigmoid()
    torch.testing.assert_close(blended[..., :2], share * fresh[..., :2] + (1 - share) * memory[0][..., :2])
    assert torch.equal(blended[..., 2:], fresh[..., 2:])


@pytest.mark.parametrize("iterations", [1, 2, 4])
def test_every_recurrence_runs_the_same_encoder_and_reaches_further(iterations):
    host, calls, reached = RFRGenerator(width=2, iterations=iterations), [], []
    host.reason.encoder[0].register_forward_hook(lambda *_: calls.append(1))
    host.identify.register_forward_hook(lambda module, args, output: reached.append(output[1].mean()))
    known = torch.ones(1, 1, 128, 128)
    known[..., 4:-4, 4:-4] = 0
    _, last = host(torch.zeros(1, 3, 128, 128), known)
    assert len(calls) == iterations
    assert reached == sorted(set(reached))
    assert last.shape == known.shape
    assert last.mean() == reached[-1]


def test_the_last_recurrence_is_tapped_its_overwritten_norm_as_a_copy():
    host = RFRGenerator(width=4, iterations=3)
    planned = plan(host, torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64).index_fill(3, torch.arange(9), 1))
    assert [(stage.call, stage.clone) for stage in planned.stages] == [(2, True), (2, False), (2, False), (2, False)]
    assert [(site.name, site.call) for site in planned.attention] == [("reason.attention", 2)]


@pytest.mark.parametrize("kwargs", [{"width": 0}, {"iterations": 0}])
def test_a_wrong_setting_is_explained(kwargs):
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        RFRGenerator(**kwargs)


def test_a_wrong_size_is_explained():
    with pytest.raises(InputError, match="multiples of 16"):
        RFRGenerator(width=2)(torch.zeros(1, 3, 40, 32), torch.ones(1, 1, 40, 32))
