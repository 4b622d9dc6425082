"""What is particular to the networks of MONAI: levels inside levels, classes with common names, three dimensions."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from inpaint_distill import adapters
from inpaint_distill.errors import ConfigError
from inpaint_distill.plan import plan

nets = pytest.importorskip("monai.networks.nets")

MONAI = adapters.get("monai")
STRIDES = {
    "UNet": [2, 4, 8],
    "BasicUNet": [1, 2, 4, 8, 16],
    "BasicUNetPlusPlus": [1, 2, 4, 8, 16],
    "AttentionUnet": [1, 2, 4, 8],
    "DynUNet": [1, 2, 4, 8],
    "SwinUNETR": [2, 4, 8, 16, 32],
    "UNETR": [1, 2, 4, 8, 16],
}


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    hole = torch.zeros(2, 1, 64, 64)
    hole[:, :, 16:40, 8:32] = 1
    return torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1, hole


def test_every_network_that_can_be_built_is_tested():
    assert list(MONAI.networks) == list(STRIDES)


@pytest.mark.parametrize("network", STRIDES)
def test_each_network_is_known_and_tapped_once_at_each_resolution_of_its_encoder(network, picture):
    host = MONAI.build(network)
    assert adapters.find(host) is not None
    assert adapters.find(host).name == "monai"
    with torch.no_grad():
        assert MONAI.call(host, *picture).shape == (2, 3, 64, 64)
    planned = plan(host, *picture)
    assert [stage.stride for stage in planned.stages] == STRIDES[network]
    assert not any(stage.name.startswith(("up", "decoder")) for stage in planned.stages)


@pytest.mark.parametrize(
    ("strides", "expected"),
    [
        ((2, 2, 2), ["model.0", "model.1.submodule.0", "model.1.submodule.1.submodule.1.submodule"]),
        ((2, 1, 2), ["model.1.submodule.0", "model.1.submodule.1.submodule.1.submodule"]),
        ((1, 2, 2), ["model.0", "model.1.submodule.0", "model.1.submodule.1.submodule.1.submodule"]),
    ],
)
@pytest.mark.parametrize("units", [0, 2])
def test_of_two_levels_at_one_resolution_the_deeper_is_tapped(strides, expected, units):
    host = MONAI.build("UNet", strides=strides, num_res_units=units)
    assert MONAI.stages(host) == expected


def test_the_convolution_behind_the_attention_of_swin_is_left_to_discovery(picture):
    sites = plan(MONAI.build("SwinUNETR"), *picture).attention
    assert sites
    assert all(".attn" in site.name and site.kind == "softmax" for site in sites)


def test_a_class_of_that_name_from_elsewhere_is_a_stranger():
    host = MONAI.build("UNet")
    lookalike = type("UNet", (nn.Module,), {})()
    lookalike.model = host.model
    assert MONAI.matches(host)
    assert not MONAI.matches(lookalike)
    assert adapters.find(lookalike) is None


def test_a_class_derived_from_one_is_known():
    class Mine(nets.BasicUNet):
        pass

    assert MONAI.matches(Mine(**MONAI.networks["BasicUNet"]))


def test_volumes_and_other_channels_are_strangers():
    assert not MONAI.matches(MONAI.build("UNet", spatial_dims=3))
    assert not MONAI.matches(MONAI.build("UNet", in_channels=1))


def test_without_the_package_the_error_names_it_and_what_to_install(monkeypatch):
    for name in [each for each in sys.modules if each.startswith("monai.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "monai", None)
    with pytest.raises(ConfigError, match="no package monai") as caught:
        MONAI.build()
    assert "inpaint-distill[hosts]" in caught.value.fix
    assert adapters.find(nn.Linear(1, 1)) is None  # recognising needs no package


def test_an_unknown_network_is_answered_with_near_names():
    with pytest.raises(ConfigError, match="BasicUNet"):
        MONAI.build("BasicUnet")
