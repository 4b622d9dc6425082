"""The partial convolution against a loop over windows in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from inpaint_distill.adapters.partial_conv import PartialConvUNet
from inpaint_distill.adapters.partial_conv.layers import PartialConv
from inpaint_distill.errors import ConfigError, InputError


def reference(layer, x, mask):
    """Return feature and mask, one window and one output channel at a time."""
    kernel, stride = layer.conv.kernel_size[0], layer.conv.stride[0]
    border = kernel // 2
    padded_x, padded_mask = (F.pad(tensor, (border,) * 4) for tensor in (x, mask))
    height, width = ((side + 2 * border - kernel) // stride + 1 for side in x.shape[2:])
    output = x.new_zeros(x.shape[0], layer.conv.out_channels, height, width)
    updated = torch.zeros_like(output)
    for sample in range(x.shape[0]):
        for row in range(height):
            for column in range(width):
                rows, columns = (slice(i * stride, i * stride + kernel) for i in (row, column))
                window, known = padded_x[sample, :, rows, columns], padded_mask[sample, :, rows, columns]
                if known.sum() == 0:
                    continue
                ratio = known.numel() / known.sum()
                for channel, weight in enumerate(layer.conv.weight):
                    bias = 0 if layer.bias is None else layer.bias[channel, 0, 0]
                    output[sample, channel, row, column] = (weight * window * known).sum() * ratio + bias
                    updated[sample, channel, row, column] = 1
    return output, updated


@pytest.mark.parametrize(("kernel", "stride", "bias"), [(3, 1, True), (3, 2, False), (5, 2, True), (7, 2, True)])
def test_equals_a_loop_over_windows(kernel, stride, bias):
    generator = torch.Generator().manual_seed(0)
    layer = PartialConv(2, 3, kernel, stride, bias).double()
    if bias:
        torch.nn.init.normal_(layer.bias, generator=generator)
    x = torch.randn(2, 2, 8, 10, dtype=torch.float64, generator=generator)
    mask = (torch.rand(2, 2, 8, 10, generator=generator) < 0.15).double()
    output, updated = layer(x, mask)
    expected, expected_mask = reference(layer, x, mask)
    torch.testing.assert_close(output, expected)
    assert torch.equal(updated, expected_mask)


def test_without_a_hole_the_inside_is_a_plain_convolution():
    layer = PartialConv(3, 4, 3).double()
    x = torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    output, updated = layer(x, torch.ones_like(x))
    plain = F.conv2d(x, layer.conv.weight, layer.bias.flatten(), padding=1)
    torch.testing.assert_close(output[..., 1:-1, 1:-1], plain[..., 1:-1, 1:-1])
    torch.testing.assert_close(output[..., 0, 0], plain[..., 0, 0] * 9 / 4)
    assert updated.all()


def test_values_in_the_hole_do_not_matter_and_the_mask_grows_by_a_ring():
    layer = PartialConv(1, 1, 3)
    mask = torch.zeros(1, 1, 7, 7)
    mask[..., 3, 3] = 1
    x = torch.randn(1, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    output, updated = layer(x, mask)
    assert torch.equal(output, layer(x + 5 * (1 - mask), mask)[0])
    expected = torch.zeros_like(mask)
    expected[..., 2:5, 2:5] = 1
    assert torch.equal(updated, expected)
    assert torch.equal(output * (1 - expected), torch.zeros_like(output))


def test_one_and_three_channel_masks_are_the_same():
    torch.manual_seed(0)
    host = PartialConvUNet(width=4, levels=3).eval()
    image, known = torch.rand(1, 3, 16, 24), torch.ones(1, 1, 16, 24)
    known[..., 2:9, 3:12] = 0
    one, three = host(image, known), host(image, known.expand(-1, 3, -1, -1))
    assert torch.equal(one[0], three[0])
    assert one[1].shape == (1, 3, 16, 24)
    assert one[1].all()


def test_stages_return_a_feature_with_a_mask_of_its_shape():
    host = PartialConvUNet(width=4, levels=4)
    state = (torch.rand(2, 3, 32, 32), torch.ones(2, 3, 32, 32))
    for level, stage in enumerate(host.encoder, start=1):
        state = stage(state)
        assert state[0].shape == state[1].shape == (2, 4 * 2 ** (level - 1), 32 >> level, 32 >> level)


def test_the_paper_has_eight_levels():
    host = PartialConvUNet(width=2)
    assert [stage.conv.conv.kernel_size[0] for stage in host.encoder] == [7, 5, 5, 3, 3, 3, 3, 3]
    assert [stage.conv.conv.out_channels // 2 for stage in host.encoder] == [1, 2, 4, 8, 8, 8, 8, 8]


def test_a_wrong_size_or_setting_is_explained():
    with pytest.raises(InputError, match="multiples of 8"):
        PartialConvUNet(width=4, levels=3)(torch.zeros(1, 3, 36, 32), torch.ones(1, 1, 36, 32))
    with pytest.raises(ConfigError, match="levels=0"):
        PartialConvUNet(levels=0)
