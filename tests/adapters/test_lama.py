"""The fast Fourier convolution, and (local, global) pairs as stages."""

from __future__ import annotations

import pytest
import torch

from inpaint_distill import plan
from inpaint_distill.adapters.lama import LaMaGenerator
from inpaint_distill.adapters.lama.layers import FourierConv, FourierUnit
from inpaint_distill.errors import ConfigError, InputError


def random(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("size", [(8, 8), (6, 9)])
def test_unit_without_mixing_keeps_the_positive_part_of_the_spectrum(size):
    unit = FourierUnit(2).double().eval()
    unit.conv.weight.data = torch.eye(4).view(4, 4, 1, 1).double()
    unit.norm.running_var.fill_(1 - unit.norm.eps)
    x = random(1, 2, *size)
    spectrum = torch.fft.rfft2(x, norm="ortho")
    positive = torch.complex(spectrum.real.clamp(min=0), spectrum.imag.clamp(min=0))
    torch.testing.assert_close(unit(x), torch.fft.irfft2(positive, s=size, norm="ortho"))


def test_one_pixel_reaches_the_whole_map_through_the_global_branch_only():
    torch.manual_seed(0)
    conv = FourierConv((2, 2), (6, 6)).double().eval()
    local, spectral = random(1, 2, 16, 16), random(1, 6, 16, 16)

    def reached(parts, other):
        return [
            (first != second).any(1).double().mean() for first, second in zip(conv(parts), conv(other), strict=True)
        ]

    moved_local, moved_global = local.clone(), spectral.clone()
    moved_local[..., 4, 4] += 1
    moved_global[..., 4, 4] += 1
    assert max(reached((local, spectral), (moved_local, spectral))) <= 9 / 256
    to_local, to_global = reached((local, spectral), (local, moved_global))
    assert to_local <= 9 / 256
    assert to_global > 0.5


def test_without_global_channels_there_is_a_zero_in_their_place():
    local, spectral = FourierConv((4, 3), (0, 0))(torch.rand(1, 4, 8, 8))
    assert local.shape == (1, 3, 8, 8)
    assert spectral == 0


def test_the_last_stage_is_both_parts():
    host = LaMaGenerator(width=4, blocks=1)
    planned = plan(host, torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 32, 32).index_fill(3, torch.arange(8), 1))
    assert [stage.channels for stage in planned.stages] == [4, 8, 16, 32]
    assert [stage.label for stage in planned.stages] == ["model.1[0]", "model.2[0]", "model.3[0]", "model.4[0]+[1]"]


def test_half_precision_is_that_of_the_input():
    unit = FourierUnit(2).bfloat16()
    assert unit(torch.rand(1, 2, 6, 6).bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize("kwargs", [{"width": 0}, {"blocks": 0}, {"spectral": 0.0}, {"spectral": 1.0}])
def test_a_wrong_setting_is_explained(kwargs):
    with pytest.raises(ConfigError, match=next(iter(kwargs))):
        LaMaGenerator(**{"width": 2, "blocks": 1, **kwargs})


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 4, 36, 32), (1, 4, 8, 8)])
def test_a_wrong_shape_is_explained(shape):
    with pytest.raises(InputError, match="multiples of 8"):
        LaMaGenerator(width=2, blocks=1)(torch.zeros(shape))
