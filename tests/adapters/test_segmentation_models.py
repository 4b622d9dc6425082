"""What is particular to segmentation_models_pytorch: many encoders, many decoders, three or four channels."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from inpaint_distill import adapters
from inpaint_distill.errors import ConfigError
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.plan import plan

pytest.importorskip("segmentation_models_pytorch")

SMP = adapters.get("segmentation-models")
SMALL = "tu-mobilenetv3_small_050"


@pytest.fixture
def picture():
    generator = torch.Generator().manual_seed(0)
    hole = torch.zeros(2, 1, 64, 64)
    hole[:, :, 16:40, 8:32] = 1
    return torch.rand(2, 3, 64, 64, generator=generator) * 2 - 1, hole


@pytest.mark.parametrize(
    ("network", "kwargs", "strides"),
    [
        ("Unet", {"encoder_name": "resnet18"}, [2, 4, 8, 16, 32]),
        ("Unet", {"encoder_name": "mit_b0", "in_channels": 3}, [4, 8, 16, 32]),
        ("Unet", {"encoder_name": "tu-convnext_atto"}, [4, 8, 16, 32]),
        ("Unet", {"encoder_name": "timm-efficientnet-b0"}, [2, 4, 8, 16, 32]),
        ("Unet", {"encoder_name": "mobilenet_v2"}, [2, 4, 8, 16, 32]),
        ("Unet", {"encoder_name": "densenet121"}, [2, 4, 8, 16, 32]),
        ("UnetPlusPlus", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
        ("MAnet", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
        ("Linknet", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
        ("FPN", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
        ("PSPNet", {"encoder_name": SMALL}, [2, 4, 8]),
        ("DeepLabV3", {}, [2, 4, 8]),
        ("DeepLabV3Plus", {}, [2, 4, 8, 16]),
        ("UPerNet", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
        ("Segformer", {"encoder_name": SMALL}, [2, 4, 8, 16, 32]),
    ],
)
def test_what_the_encoder_hands_to_the_decoder_is_tapped_once_at_each_resolution(network, kwargs, strides, picture):
    host = SMP.build(network, **kwargs).eval()
    assert adapters.find(host) is not None
    assert adapters.find(host).name == "segmentation-models"
    planned = plan(host, *picture)
    assert [stage.stride for stage in planned.stages] == strides
    handed = []
    handle = host.encoder.register_forward_hook(lambda module, args, output: handed.extend(output))
    taps = FeatureTaps(host, planned.stages)
    taps.begin()
    with torch.no_grad():
        assert SMP.call(host, *picture).shape == (2, 3, 64, 64)
    handle.remove()
    features = taps.take()
    taps.remove()
    by_size = {feature.shape[2:]: feature for feature in handed if feature.shape[1] > 4}
    assert [id(feature) for feature in features] == [id(feature) for feature in by_size.values()]


def test_channels_of_the_host_decide_how_it_is_called():
    four, three = (SMP.build(encoder_name=SMALL, in_channels=channels) for channels in (4, 3))
    assert str(SMP.convention(four)) == "host(cat[image, hole])"
    assert str(SMP.convention(three)) == "host(image), holes white"
    assert not SMP.matches(SMP.build(encoder_name=SMALL, in_channels=5))


def test_a_host_that_classifies_too_gives_its_image_first(picture):
    host = SMP.build(encoder_name=SMALL, aux_params={"classes": 5}).eval()
    with torch.no_grad():
        assert SMP.call(host, *picture).shape == (2, 3, 64, 64)


def test_a_transformer_of_one_resolution_is_left_to_discovery():
    host = SMP.build("DPT")
    assert SMP.matches(host)
    assert SMP.stages(host) is None


def test_a_class_of_that_name_from_elsewhere_is_a_stranger():
    host = SMP.build(encoder_name=SMALL)
    lookalike = type("SegmentationModel", (nn.Module,), {})()
    lookalike.encoder, lookalike.decoder = host.encoder, host.decoder
    lookalike.segmentation_head = host.segmentation_head
    assert not SMP.matches(lookalike)


def test_without_the_package_the_error_names_it_and_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ConfigError, match="no package segmentation_models_pytorch") as caught:
        SMP.build()
    assert "inpaint-distill[hosts]" in caught.value.fix
