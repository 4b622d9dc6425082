"""Global-local attention: its formula, its identity start, and an attention that others can watch."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from inpaint_distill.double_backward import double_backward
from inpaint_distill.errors import ConfigError
from inpaint_distill.networks.fusion import GlobalLocalAttention


def trained(channels, heads=1, kernel_size=3):
    """Return a module whose every parameter has left its start."""
    module = GlobalLocalAttention(channels, heads, kernel_size)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return module


def by_loops(module, feature):
    """Compute the formula of the docstring for one pixel at a time."""
    _, channels, height, width = feature.shape
    heads, size = module.heads, module.kernel_size
    depth = channels // heads
    query, key, value = module.query(feature), module.key(feature), module.value(feature)
    scores = module.filter(feature)
    padded = F.pad(feature, [size // 2] * 4)
    everywhere, around = torch.zeros_like(feature), torch.zeros_like(feature)
    for b in range(len(feature)):
        for y in range(height):
            for x in range(width):
                for head in range(heads):
                    part = slice(head * depth, (head + 1) * depth)
                    row = query[b, part, y, x] @ key[b, part].flatten(1) / math.sqrt(depth)
                    everywhere[b, part, y, x] = value[b, part].flatten(1) @ row.softmax(0)
                patch = padded[b, :, y : y + size, x : x + size].flatten(1)
                around[b, :, y, x] = patch @ scores[b, :, y, x].softmax(0)
    share = module.gate(torch.cat((everywhere, around), 1)).sigmoid()
    return feature + module.project(share * everywhere + (1 - share) * around)


@settings(max_examples=15)
@given(
    batch=st.integers(1, 2),
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    kernel_size=st.sampled_from([1, 3, 5]),
    height=st.integers(1, 5),
    width=st.integers(1, 5),
)
def test_it_starts_as_the_identity_and_then_follows_the_formula(batch, depth, heads, kernel_size, height, width):
    channels = depth * heads
    feature = torch.randn(batch, channels, height, width)
    assert torch.equal(GlobalLocalAttention(channels, heads, kernel_size)(feature), feature)
    module = trained(channels, heads, kernel_size).double()
    with torch.no_grad():
        torch.testing.assert_close(module(feature.double()), by_loops(module, feature.double()))


def test_its_queries_and_keys_pass_through_torchs_own_attention(monkeypatch):
    seen = []
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *args: seen.append(args) or attend(*args))
    module = trained(6, heads=2)
    feature = torch.randn(2, 6, 4, 5)
    module(feature)
    ((query, key, value),) = seen
    for tokens, conv in ((query, module.query), (key, module.key), (value, module.value)):
        assert tokens.shape == (2, 2, 20, 3)
        assert torch.equal(tokens.transpose(2, 3).reshape(feature.shape), conv(feature))


def test_no_matrix_of_all_pairs_is_kept_for_the_backward():
    kept = []
    module, feature = trained(4), torch.randn(1, 4, 16, 16)
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()), lambda _: None):
        module(feature)
    assert max(kept) < 256 * 256


def test_it_can_be_differentiated_twice():
    module = trained(2).double()
    feature = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    names, parameters = zip(*module.named_parameters(), strict=True)

    def call(feature, *parameters):
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), (feature,))

    with double_backward():
        assert torch.autograd.gradcheck(call, (feature, *parameters))
        assert torch.autograd.gradgradcheck(call, (feature, *parameters), fast_mode=True)


def test_the_twice_differentiable_attention_gives_the_same_values_and_gradients():
    module = trained(4, heads=2)
    feature = torch.randn(2, 4, 5, 3, requires_grad=True)
    plain = module(feature)
    with double_backward():
        exact = module(feature)
    torch.testing.assert_close(exact, plain)
    wanted = [feature, *module.parameters()]
    torch.testing.assert_close(*(torch.autograd.grad(out.square().mean(), wanted) for out in (exact, plain)))


def test_the_gradient_reaches_every_parameter_after_one_step():
    module = GlobalLocalAttention(4, heads=2)
    feature, target = torch.randn(2, 2, 4, 6, 6)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        (module(feature) - target).square().mean().backward()
        assert module.project.weight.grad.any()
        optimizer.step()
    for name, parameter in module.named_parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_under_autocast_it_answers_in_the_features_dtype(dtype):
    feature = torch.randn(1, 4, 7, 5).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GlobalLocalAttention(4)(feature), feature)
        module = trained(4)
        out = module(feature)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), module(feature.float()), rtol=0.05, atol=0.1)


def test_the_memory_format_is_the_features():
    module = trained(4)
    feature = torch.randn(2, 4, 7, 5)
    assert module(feature).is_contiguous()
    out = module(feature.to(memory_format=torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, module(feature))


def test_copies_and_pickles_compute_the_same():
    module = trained(4, heads=2, kernel_size=5)
    feature = torch.randn(1, 4, 5, 5)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(feature), module(feature))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((0,), "channels=0"),
        ((4, 0), "heads=0"),
        ((4, 3), "channels=4, heads=3"),
        ((4, 1, 2), "kernel_size=2"),
        ((4, 1, 0), "kernel_size=0"),
    ],
)
def test_impossible_settings_are_refused(arguments, found):
    with pytest.raises(ConfigError, match=found):
        GlobalLocalAttention(*arguments)
