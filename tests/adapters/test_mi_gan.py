"""Re-parametrised separable convolutions, and blocks that put out the next resolution first."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill import plan
from inpaint_distill.adapters.mi_gan import MIGANGenerator
from inpaint_distill.adapters.mi_gan.layers import ReparametrisedConv, SeparableConv
from inpaint_distill.errors import ConfigError, InputError


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("kernel_size", "groups"), [(3, 4), (1, 1)])
def test_weights_summed_are_outputs_summed(kernel_size, groups):
    layer = ReparametrisedConv(4, 8, kernel_size, groups, branches=3).double()
    layer.bias.data.normal_()
    x = random(2, 4, 6, 6).double()
    apart = [F.conv2d(x, weight, padding=kernel_size // 2, groups=groups) for weight in layer.weights]
    torch.testing.assert_close(layer(x), sum(apart) + layer.bias[:, None, None])


def test_fresh_layers_keep_the_size_of_their_features():
    torch.manual_seed(0)
    x = random(4, 64, 16, 16)
    for _ in range(8):
        x = SeparableConv(64, 64)(x)
    assert 0.05 < x.square().mean() < 20


def test_noise_is_the_same_in_every_forward_and_starts_at_nothing():
    layer = SeparableConv(4, 4, resolution=8)
    x = random(1, 4, 8, 8)
    fresh = layer(x)
    layer.noise.normal_()
    assert torch.equal(layer(x), fresh)
    layer.strength.data.fill_(1.0)
    noisy = layer(x)
    assert not torch.equal(noisy, fresh)
    assert torch.equal(layer(x), noisy)


def test_stages_are_the_second_outputs_at_every_resolution():
    host = MIGANGenerator(width=8, resolution=32)
    planned = plan(host, random(1, 3, 32, 32).tanh(), torch.zeros(1, 1, 32, 32).index_fill(3, torch.arange(9), 1))
    assert [stage.select for stage in planned.stages] == [(1,)] * 4
    assert [stage.size for stage in planned.stages] == [(32, 32), (16, 16), (8, 8), (4, 4)]
    assert [stage.channels for stage in planned.stages] == [8, 16, 32, 32]


def test_another_size_or_a_wrong_setting_is_explained():
    with pytest.raises(InputError, match=r"\(B, 4, 16, 16\)"):
        MIGANGenerator(width=2, resolution=16)(torch.zeros(1, 4, 32, 32))
    for kwargs in ({"width": 0}, {"resolution": 48}, {"resolution": 4}):
        with pytest.raises(ConfigError, match=next(iter(kwargs))):
            MIGANGenerator(**kwargs)
