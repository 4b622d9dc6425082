"""Two streams of partial convolutions, and what joins them."""

from __future__ import annotations

import pytest
import torch

from inpaint_distill import adapters, plan
from inpaint_distill.adapters.ctsdg import CTSDGGenerator
from inpaint_distill.adapters.ctsdg.layers import ContextualAggregation, GatedFusion
from inpaint_distill.errors import ConfigError, InputError


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_fresh_fusion_is_a_concatenation_and_opens_both_ways():
    fusion, texture, structure = GatedFusion(4), random(1, 4, 8, 8), random(1, 4, 8, 8, seed=1)
    both = torch.cat([texture, structure], dim=1)
    assert torch.equal(fusion(texture, structure), both)
    fusion.texture_factor.data.fill_(0.5)
    changed = fusion(texture, structure) != both
    assert not changed[:, :4].any()
    assert changed[:, 4:].any()


def test_scales_are_weighted_by_a_softmax_at_every_pixel():
    aggregation, seen = ContextualAggregation(4), []
    aggregation.weights.register_forward_hook(lambda module, args, output: seen.append(output))
    for scale in aggregation.scales:  # all alike: the weights must not matter
        torch.nn.init.zeros_(scale.weight)
        torch.nn.init.constant_(scale.bias, 3.0)
    output = aggregation(random(2, 4, 8, 12))
    assert seen[0].shape == (2, 4, 8, 12)
    torch.testing.assert_close(seen[0].sum(1), torch.ones(2, 8, 12))
    torch.testing.assert_close(output, torch.full((2, 4, 8, 12), 3.0))


def test_each_decoder_starts_from_the_other_encoder():
    host, seen = CTSDGGenerator(width=2, levels=3).eval(), {}
    for name, module in host.named_children():
        if name.endswith("encoder"):
            module[-1].register_forward_hook(lambda module, args, output, name=name: seen.update({name: output[0]}))
        elif name.endswith("decoder"):
            module[0].register_forward_pre_hook(lambda module, args, name=name: seen.update({name: args[0][0]}))
    host(random(1, 3, 16, 16), random(1, 2, 16, 16), torch.ones(1, 1, 16, 16))
    assert seen["texture_decoder"] is seen["structure_encoder"]
    assert seen["structure_decoder"] is seen["texture_encoder"]


def test_edges_reach_the_image_and_the_texture_stage_does_not_see_them():
    host = CTSDGGenerator(width=4, levels=3).eval()
    image, known = random(1, 3, 32, 32), torch.ones(1, 1, 32, 32)
    drawings = random(1, 2, 32, 32), random(1, 2, 32, 32, seed=1)
    kept = []
    host.texture_encoder[-1].register_forward_hook(lambda module, args, output: kept.append(output[0]))
    first, second = (host(image, drawing, known)[0] for drawing in drawings)
    assert not torch.equal(first, second)
    assert torch.equal(*kept)


def test_the_result_comes_last_after_the_image_of_the_texture():
    host, adapter = CTSDGGenerator(width=2, levels=3).eval(), adapters.get("ctsdg")
    image, hole = random(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    grey = image.mean(1, keepdim=True)
    restored, projected = host(image, torch.cat([torch.zeros_like(grey), grey], 1), 1 - hole)
    outputs = adapter.outputs(host, image, hole)
    assert torch.equal(outputs[0], projected)
    assert torch.equal(outputs[1], restored)


def test_the_weights_of_the_scales_are_not_taken_for_attention():
    host = CTSDGGenerator(width=4, levels=3)
    planned = plan(host, random(1, 3, 64, 64).tanh(), torch.zeros(1, 1, 64, 64).index_fill(3, torch.arange(9), 1))
    assert [site.name for site in planned.attention] == ["aggregation.attention"]
    assert [each.site.name for each in planned.candidates if not each.usable] == ["aggregation.weights"]


def test_a_wrong_size_or_setting_is_explained():
    with pytest.raises(InputError, match="multiples of 8"):
        CTSDGGenerator(width=2, levels=3)(
            torch.zeros(1, 3, 20, 16), torch.zeros(1, 2, 20, 16), torch.ones(1, 1, 20, 16)
        )
    with pytest.raises(ConfigError, match="levels=1"):
        CTSDGGenerator(levels=1)
