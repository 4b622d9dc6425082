"""The gated convolution and the network built of it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill.adapters.contextual_attention.network import ConvELU
from inpaint_distill.adapters.gated_conv import GatedConvGenerator
from inpaint_distill.adapters.gated_conv.layers import GatedConv
from inpaint_distill.errors import ConfigError


@pytest.mark.parametrize(("kernel_size", "stride", "dilation"), [(3, 1, 1), (3, 2, 1), (3, 1, 4), (5, 1, 1)])
def test_layer_is_elu_of_the_feature_times_sigmoid_of_the_gate(kernel_size, stride, dilation):
    layer = GatedConv(4, 6, kernel_size, stride, dilation).double()
    x = torch.randn(2, 4, 16, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    geometry = {"stride": stride, "dilation": dilation, "padding": dilation * (kernel_size // 2)}
    feature = F.conv2d(x, layer.conv.weight[:6], layer.conv.bias[:6], **geometry)
    gate = F.conv2d(x, layer.conv.weight[6:], layer.conv.bias[6:], **geometry)
    expected = torch.where(feature > 0, feature, feature.exp() - 1) / (1 + (-gate).exp())
    output = layer(x)
    assert output.shape == (2, 6, 16 // stride, 12 // stride)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("layer", [GatedConv, ConvELU])
def test_signal_survives_thirty_fresh_layers(layer):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 32, 16, 16, generator=generator)
    torch.manual_seed(0)
    for _ in range(30):
        x = layer(32, 32, kernel_size=1)(x)
    assert 0.1 < x.square().mean() < 10


def test_width_counts_features_and_gates():
    host = GatedConvGenerator(width=16)
    first = host.refine.encoder[0]
    assert first.conv.out_channels == 16
    assert first(torch.zeros(1, 5, 8, 8)).shape[1] == 8


@pytest.mark.parametrize("width", [0, 6, -4])
def test_a_wrong_width_is_explained(width):
    with pytest.raises(ConfigError, match=f"width={width}"):
        GatedConvGenerator(width=width)


def test_refinement_sees_known_pixels_and_the_coarse_result_in_the_hole():
    host, seen = GatedConvGenerator(width=8), []
    host.refine.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    image = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., 4:9, 2:7] = 1
    coarse, _ = host(torch.cat([image * (1 - hole), torch.ones_like(hole), hole], dim=1))
    torch.testing.assert_close(seen[0][:, :3], torch.where(hole > 0, coarse, image))
    assert torch.equal(seen[0][:, 3:], torch.cat([torch.ones_like(hole), hole], dim=1))
