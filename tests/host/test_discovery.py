"""Encoder stages from one forward: the zoo, a package's U-Net, two networks in one, and what is no encoder."""

import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch
from hosts.base import Plain
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from inpaint_distill.errors import PlanError
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.discovery import Encoder, choose_encoder, find_encoders
from inpaint_distill.host.named_stages import named_stages, output_stages
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.host.trace import trace_call
from inpaint_distill.plan import Wanted, plan_call

smp = pytest.importorskip("segmentation_models_pytorch")


def call_of(toy, host, size=32):
    """Return the arguments with which a toy is called."""
    seen = []
    handle = host.register_forward_pre_hook(lambda m, a, k: seen.append(HostCall(a, k)), with_kwargs=True)
    with torch.no_grad():
        toy.call(host, *batch(size=size))
    handle.remove()
    return seen[0]


def labels(stages):
    return tuple(stage.label for stage in stages)


@pytest.mark.parametrize("name", ZOO_NAMES)
@pytest.mark.parametrize("size", [32, 48])
def test_the_stages_of_every_toy_are_found(name, size):
    toy = ZOO[name]
    host = toy.build()
    plan = plan_call(host, call_of(toy, host, size), Wanted())
    assert labels(plan.stages) == toy.stages


@pytest.mark.parametrize("name", ZOO_NAMES)
def test_what_is_found_can_be_tapped_and_read_as_a_map_of_the_planned_shape(name):
    toy = ZOO[name]
    host = toy.build()
    plan = plan_call(host, call_of(toy, host), Wanted())
    taps = FeatureTaps(host, plan.stages)
    taps.begin()
    image, mask = batch()
    toy.call(host, image, mask)
    for stage, feature in zip(plan.stages, taps.take(), strict=True):
        assert stage.as_map(feature, (32, 32)).shape == (2, stage.channels, 32 // stage.stride, 32 // stage.stride)
        assert feature.requires_grad


def test_a_stage_is_kept_as_a_copy_only_where_it_is_overwritten():
    clones = {}
    for name in ("in_place", "batch_norm", "concatenated"):
        host = ZOO[name].build()
        clones[name] = [stage.clone for stage in plan_call(host, call_of(ZOO[name], host), Wanted()).stages]
    assert clones == {"in_place": [True] * 3, "batch_norm": [False] * 3, "concatenated": [False] * 3}


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_unet_of_a_package_gives_its_gold_stages(mode):
    host = smp.Unet("resnet18", encoder_weights=None, in_channels=4, classes=3)
    getattr(host, mode)()
    image, mask = batch(size=64)
    plan = plan_call(host, HostCall((torch.cat([image * (1 - mask), mask], 1),)), Wanted())
    assert labels(plan.stages) == tuple(f"encoder.{name}" for name in ("relu", "layer1", "layer2", "layer3", "layer4"))
    assert [stage.stride for stage in plan.stages] == [2, 4, 8, 16, 32]
    assert [stage.channels for stage in plan.stages] == [64, 64, 128, 256, 512]


def test_of_two_networks_the_one_that_runs_last_is_taken_and_the_other_shown():
    toy = ZOO["two_stage"]
    host = toy.build()
    plan = plan_call(host, call_of(toy, host), Wanted())
    assert labels(plan.stages) == ("fine.enc0", "fine.enc1", "fine.enc2")
    assert len(plan.encoders) == 2
    assert "encoder 2 of 2" in plan.reason
    assert "coarse.enc2 (stride 4)" in str(plan)


def test_the_encoder_with_more_levels_wins_over_the_later_one():
    deep, late = (Encoder((Stage(name="a"),) * 3), Encoder((Stage(name="b"),) * 2))
    assert choose_encoder([deep, late]) == (0, "encoder 1 of 2: the most levels, 3")
    assert choose_encoder([deep, deep, late]) == (1, "encoder 2 of 3: of the 2 with 3 levels the last to run")
    assert choose_encoder([late]) == (0, "the only encoder")


class Attentive(Plain):
    """Its bottleneck attention puts out square maps and pooled keys, which are no stages."""

    def __init__(self):
        super().__init__(4)
        self.attn = nn.ModuleDict({"pool": nn.AvgPool2d(4), "soft": nn.Softmax(-1)})
        self.attention = _Block()

    def forward(self, *planes):
        feature = self.enc2(self.enc1(self.enc0(torch.cat(planes, 1))))
        return self.up(self.attention(feature))


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.pool, self.soft = nn.AvgPool2d(4), nn.Softmax(-1)

    def forward(self, x):
        flat = x.flatten(2)
        keys = self.pool(x).flatten(2)
        return (keys @ self.soft(flat.transpose(1, 2) @ keys).transpose(1, 2)).view_as(x)


def test_the_inside_of_attention_is_no_level():
    host = Attentive()
    image, mask = batch()
    stages = plan_call(host, HostCall((torch.cat([image, mask], 1),)), Wanted()).stages
    assert [stage.name for stage in stages] == ["enc0", "enc1", "enc2"]


def test_a_root_output_is_no_stage():
    toy = ZOO["returns_feature"]
    host = toy.build()
    assert all(
        stage.name for encoder in find_encoders(trace_call(host, call_of(toy, host))) for stage in encoder.stages
    )


def test_a_host_without_an_encoder_is_an_error_that_says_how_to_name_stages():
    host = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 3, 3, padding=1))
    with pytest.raises(PlanError, match=r"resolution falls(.|\n)*stages="):
        find_encoders(trace_call(host, HostCall((torch.zeros(1, 4, 16, 16),))))


@given(
    widths=st.lists(st.integers(8, 24), min_size=2, max_size=5),
    kernel_and_first=st.sampled_from([(3, 1), (5, 1), (2, 2), (3, 2), (4, 2), (5, 2)]),
    activation=st.sampled_from([nn.Identity, nn.ReLU, lambda: nn.ReLU(inplace=True)]),
)
def test_any_chain_of_strided_convolutions_is_an_encoder(widths, kernel_and_first, activation):
    kernel, first = kernel_and_first
    padding = (kernel - 1) // 2
    layers, inputs = [], 4
    for index, width in enumerate(widths):
        stride = first if index == 0 else 2
        layers.append(nn.Sequential(nn.Conv2d(inputs, width, kernel, stride, padding), activation()))
        inputs = width
    host = nn.Sequential(*layers, nn.Upsample(scale_factor=2 ** (len(widths) + first - 2)), nn.Conv2d(inputs, 3, 1))
    stages = plan_call(host, HostCall((torch.zeros(2, 4, 64, 64),)), Wanted()).stages
    assert [stage.name.split(".")[0] for stage in stages] == [str(index) for index in range(len(widths))]
    assert [stage.stride for stage in stages] == [first * 2**index for index in range(len(widths))]


# -- names -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def trace():
    host = ZOO["concatenated"].build()
    return trace_call(host, call_of(ZOO["concatenated"], host))


def test_names_globs_and_stages_resolve_in_the_order_given(trace):
    assert labels(named_stages(trace, ["enc2", "enc0"])) == ("enc2", "enc0")
    assert labels(named_stages(trace, ["enc[01]"])) == ("enc0", "enc1")
    (stage,) = named_stages(trace, [Stage(name="enc1")])
    assert (stage.channels, stage.stride, stage.layout) == (12, 2, "NCHW")


@pytest.mark.parametrize("wanted", [["enc_1"], ["enc0", "nope"], ["dec*"], [""]])
def test_a_name_that_matches_nothing_is_an_error_even_among_others(trace, wanted):
    with pytest.raises(PlanError, match="no module of that name ran"):
        named_stages(trace, wanted)


def test_near_names_are_at_most_five(trace):
    with pytest.raises(PlanError) as caught:
        named_stages(trace, ["enc"])
    assert 1 <= caught.value.fix.count(",") <= 5


def test_a_pyramid_of_outputs_is_read_as_stages():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Plain(3)

        def forward(self, image):
            first = self.inner.enc0(image)
            second = self.inner.enc1(first)
            return [self.inner.enc2(second), first, second]

    trace = trace_call(Pyramid(), HostCall((torch.zeros(2, 3, 32, 32),)))
    assert labels(output_stages(trace)) == ("[1]", "[2]", "[0]")
    one = trace_call(nn.Conv2d(3, 8, 1), HostCall((torch.zeros(2, 3, 32, 32),)))
    assert output_stages(one) == ()


def test_a_host_whose_class_is_named_after_attention_still_has_an_encoder():
    class AttentionHost(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 16, 3, stride=2, padding=1)

        def forward(self, x):
            return self.second(self.first(x))

    stages = plan_call(AttentionHost(), HostCall((torch.randn(2, 4, 32, 32),)), Wanted()).stages
    assert [stage.name for stage in stages] == ["first", "second"]
