"""The U-Net over timm backbones."""

from __future__ import annotations

import pytest
import timm
import torch

from inpaint_distill.adapters.unet import InpaintUNet
from inpaint_distill.errors import ConfigError


@pytest.mark.parametrize(
    ("backbone", "strides"),
    [
        ("resnet10t", [2, 4, 8, 16]),
        ("mobilenetv3_small_050", [2, 4, 8, 16]),
        ("convnext_atto", [4, 8, 16, 32]),
    ],
)
def test_any_staged_backbone_is_followed_back_to_full_resolution(backbone, strides):
    host = InpaintUNet(backbone, levels=len(strides), width=4).eval()
    sizes = []
    for stage in host.encoder:
        stage.register_forward_hook(lambda module, args, output: sizes.append(tuple(output.shape[2:])))
    with torch.no_grad():
        assert host(torch.zeros(1, 4, 64, 96)).shape == (1, 3, 64, 96)
    assert sizes == [(64 // stride, 96 // stride) for stride in strides]


def test_stages_return_the_features_of_timm():
    host = InpaintUNet("resnet10t", width=4).eval()
    whole = timm.create_model("resnet10t", features_only=True, in_chans=4, pretrained=False, out_indices=(0, 1, 2, 3))
    # encoder.<stage>.<name> is <name> in timm.
    weights = {name.split(".", 1)[1]: tensor for name, tensor in host.encoder.state_dict().items()}
    whole.load_state_dict(weights)
    x = torch.rand(2, 4, 32, 48, generator=torch.Generator().manual_seed(0))
    feature = x
    with torch.no_grad():
        for stage, expected in zip(host.encoder, whole.eval()(x), strict=True):
            feature = stage(feature)
            assert torch.equal(feature, expected)


def test_sizes_that_no_stride_divides_are_restored():
    host = InpaintUNet("resnet10t", width=4).eval()
    with torch.no_grad():
        assert host(torch.zeros(1, 4, 37, 50)).shape == (1, 3, 37, 50)


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"backbone": "resnet81"}, "resnet18"),
        ({"backbone": "swin_tiny_patch4_window7_224"}, "NHWC"),
        ({"backbone": "hrnet_w18"}, "timm says"),
        ({"levels": 9}, "first 9 features"),
        ({"levels": 0}, "levels=0"),
    ],
)
def test_a_backbone_that_cannot_be_used_is_explained(settings, found):
    with pytest.raises(ConfigError, match=found):
        InpaintUNet(**settings)


def test_a_file_of_weights_is_loaded_and_its_first_convolution_takes_the_hole_as_well(tmp_path):
    trained = timm.create_model("resnet18", num_classes=0)
    file = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), file)
    host = InpaintUNet(levels=2, width=8, pretrained=file)
    first, second = host.encoder[0].conv1.weight, host.encoder[1].layer1[0].conv1.weight
    assert torch.equal(second, trained.layer1[0].conv1.weight)
    assert first.shape[1] == 4
    # timm repeats the three colours and keeps the size of the response.
    torch.testing.assert_close(first[:, 0], trained.conv1.weight[:, 0] * 3 / 4)
