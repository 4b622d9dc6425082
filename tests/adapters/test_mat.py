"""Masked attention in shifted windows against a dense map in float64, styles, and noise in evaluation."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill import adapters, plan
from inpaint_distill.adapters.mat import MATGenerator
from inpaint_distill.adapters.mat.attention import TransformerBlock
from inpaint_distill.adapters.mat.style import MappingNetwork, ModulatedConv
from inpaint_distill.errors import ConfigError, InputError


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def neighbours(grid, window, shift):
    """Return which tokens share a window, (N, N), by their places: wrapped ones stay apart."""
    number = {}
    for row, column in itertools.product(*map(range, grid)):
        place = [(at - moved) // window for at, moved in zip((row, column), shift, strict=True)]
        number[row, column] = tuple(place)
    places = list(number.values())
    return torch.tensor([[first == second for second in places] for first in places])


def dense(block, x, grid, valid, shift):
    """Return what a block's attention gives, from one map over all tokens."""
    attention = block.attention
    query, key, value = (
        part.unflatten(2, (attention.heads, -1)).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=2)
    )
    logits = attention.scale * F.normalize(query, dim=3) @ F.normalize(key, dim=3).transpose(2, 3)
    logits = logits - 100 * (1 - valid).transpose(1, 2).unsqueeze(1)
    logits = logits.masked_fill(~neighbours(grid, block.window_size, shift), -torch.inf)
    return attention.project((logits.softmax(3) @ value).transpose(1, 2).flatten(2))


@pytest.mark.parametrize(
    ("grid", "shift_size", "shift"), [((8, 8), 0, (0, 0)), ((8, 8), 2, (2, 2)), ((4, 8), 2, (0, 2))]
)
def test_attention_equals_a_dense_map(grid, shift_size, shift):
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 4, shift_size).double()
    x, valid = random(2, grid[0] * grid[1], 8), (random(2, grid[0] * grid[1], 1, seed=1) > 0).double()
    seen = []
    block.fuse.register_forward_pre_hook(lambda module, args: seen.append(args[0][..., :8]))
    block(x, grid, valid)
    torch.testing.assert_close(seen[0], dense(block, x, grid, valid, shift))


def test_invalid_tokens_are_not_looked_at_and_a_window_becomes_valid_as_a_whole():
    torch.manual_seed(0)
    block = TransformerBlock(8, 2, 4, 0).double()
    x, valid = random(1, 64, 8), torch.ones(1, 64, 1).double()
    valid[0, :4] = 0
    other = x.clone()
    other[0, :4] += 1
    first, second = block(x, (8, 8), valid), block(other, (8, 8), valid)
    assert torch.equal(first[0][:, 4:], second[0][:, 4:])
    assert first[1].all()
    lonely = torch.zeros(1, 64, 1).double()
    lonely[0, 0] = 1
    reached = block(x, (8, 8), lonely)[1].view(8, 8)
    assert reached[:4, :4].all()
    assert reached.sum() == 16


def test_modulation_equals_a_weight_of_its_own_for_every_sample():
    torch.manual_seed(0)
    conv = ModulatedConv(4, 6, 5).double()
    x, style = random(3, 4, 8, 8), random(3, 5, seed=1)
    expected = []
    for image, scales in zip(x, 1 + conv.scales(style), strict=True):
        weight = conv.weight * scales[None, :, None, None]
        weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        expected.append(F.leaky_relu(F.conv2d(image[None], weight, padding=1) + conv.bias, 0.2))
    torch.testing.assert_close(conv(x, style), torch.cat(expected))


def test_the_average_style_moves_in_training_only():
    mapping = MappingNetwork(4, 3, decay=0.9).double()
    latent = random(5, 4)
    style = mapping(latent)
    torch.testing.assert_close(mapping.average, 0.1 * style.mean(0))
    before = mapping.average.clone()
    mapping.eval()(latent)
    assert torch.equal(mapping.average, before)


def test_latent_and_chance_change_the_hole_only():
    torch.manual_seed(0)
    host = MATGenerator(width=8, heads=2).eval()
    image, known = random(1, 3, 32, 32).float().tanh(), torch.ones(1, 1, 32, 32)
    known[..., 4:20, 8:24] = 0
    latents = torch.zeros(1, 64), torch.ones(1, 64)
    (first, _), (again, _), (other, _) = (host(image, known, latents[index]) for index in (0, 0, 1))
    assert not torch.equal(first, again)
    assert not torch.equal(first, other)
    for restored in (first, again, other):
        assert torch.equal(restored * known, image * known)


def test_tokens_of_the_first_stage_are_tapped_with_shifted_windows():
    host = MATGenerator(width=8, heads=2)
    planned = plan(host, torch.rand(1, 3, 64, 64), torch.zeros(1, 1, 64, 64).index_fill(3, torch.arange(9), 1))
    assert [stage.layout for stage in planned.stages] == ["NCHW", "NCHW", "tokens", "tokens"]
    assert [stage.stride for stage in planned.stages] == [1, 2, 4, 8]
    assert planned.dry_run_size == (64, 128)  # 64 x 96 is refused
    shallow, deep = planned.attention
    assert (shallow.windows, shallow.window, shallow.shift) == ((2, 4), (8, 8), (4, 4))
    assert (deep.windows, deep.window, deep.shift) == ((1, 2), (8, 8), (0, 4))


def test_released_code_has_one_convolution_for_each_resolution_above_its_tokens():
    names = ["conv_first", *(f"enc_conv.{index}" for index in range(3)), "tran.4.blocks.1.attn.softmax"]
    host = type("Generator", (torch.nn.Module,), {})()
    for name in [*(f"synthesis.first_stage.{name}" for name in names), "synthesis.enc", "mapping.fc7"]:
        module = host
        for part in name.split("."):
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
    stages = adapters.find(host).stages(host)
    ends = [stage.name.removeprefix("synthesis.first_stage.") for stage in stages]
    assert ends == ["conv_first", "enc_conv.0", "enc_conv.1", "tran.0", "tran.1", "tran.2"]


def test_a_wrong_size_or_setting_is_explained():
    with pytest.raises(InputError, match="multiples of 64"):
        MATGenerator(width=8, heads=2)(torch.zeros(1, 3, 64, 96), torch.ones(1, 1, 64, 96), torch.zeros(1, 64))
    with pytest.raises(ConfigError, match="heads=3"):
        MATGenerator(width=8, heads=3)
