"""Encoder stages from one forward: the zoo, a package's U-Net, two networks in one, and what is no encoder."""

import itertools

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
from inpaint_distill.host.dry_run import trace_call
from inpaint_distill.host.named_stages import named_stages, output_stages
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.plan import Wanted, plan_call

smp = pytest.importorskip("segmentation_models_pytorch")


def call_of(toy, host, size=32):
    """Return the arguments with which a toy is called."""
    seen = []
    handle = host.register_forward_pre_hook(lambda m, a, k: seen.append(HostCall.of(a, k)), with_kwargs=True)
    with torch.no_grad():
        toy.call(host, *batch(size=size))
    handle.remove()
    return seen[0]


def labels(stages):
    return tuple(stage.label for stage in stages)


@pytest.mark.parametrize("name", ZOO_NAMES)
@pytest.mark.parametrize("size", [32, 48])
def test_the_stages_and_the_attention_of_every_toy_are_found(name, size):
    toy = ZOO[name]
    host = toy.build()
    plan = plan_call(host, call_of(toy, host, size), Wanted())
    assert labels(plan.stages) == toy.stages
    assert labels(plan.attention) == toy.attention


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


# -- where an encoder ends, and what is inside its blocks --------------------------------------------------------------


def planned(host, inputs=4, size=32):
    host.eval()
    return plan_call(host, HostCall((torch.randn(2, inputs, size, size),)), Wanted())


def conv(inputs, outputs, stride=1, dilation=1, kernel=3):
    padding = dilation * (kernel - 1) // 2
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation), nn.ELU())


class Residual(nn.Module):
    """Two convolutions around which the feature goes."""

    def __init__(self, inputs, outputs=None, dilation=1):
        super().__init__()
        outputs = outputs or inputs
        self.body = nn.Sequential(conv(inputs, outputs, dilation=dilation), nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x):
        return self.skip(x) + self.body(x)


class Chain(nn.Module):
    """Run all children in their order."""

    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        for part in self.children():
            x = part(x)
        return x


def decoder(width, factor):
    return nn.Sequential(nn.Upsample(scale_factor=factor), nn.Conv2d(width, 3, 3, padding=1))


class ConvolveThenDown(nn.Module):
    """A block of an autoencoder: residual blocks at one resolution, then to the next."""

    def __init__(self, inputs, outputs, down):
        super().__init__()
        self.resnets = nn.ModuleList([Residual(inputs, outputs), Residual(outputs)])
        self.down = nn.Conv2d(outputs, outputs, 3, 2, 1) if down else None

    def forward(self, x):
        for block in self.resnets:
            x = block(x)
        return x if self.down is None else self.down(x)


def test_blocks_that_convolve_and_then_go_down_give_the_last_feature_before_they_do():
    widths = (4, 8, 12, 16)
    blocks = [ConvolveThenDown(i, o, o < 16) for i, o in itertools.pairwise(widths)]
    plan = planned(Chain(blocks=nn.Sequential(*blocks), middle=Residual(16), up=decoder(16, 4)))
    assert [stage.name for stage in plan.stages] == ["blocks.0.resnets.1", "blocks.1.resnets.1", "blocks.2"]
    assert [(stage.stride, stage.channels) for stage in plan.stages] == [(1, 8), (2, 12), (4, 16)]


class Gated(nn.Module):
    """A bottleneck: widen, go down, weigh the channels by a gate of one pixel."""

    def __init__(self, inputs, outputs, stride=2):
        super().__init__()
        self.widen = conv(inputs, 2 * inputs, kernel=1)
        self.down = conv(2 * inputs, 2 * inputs, stride)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.gate = nn.Sequential(nn.Conv2d(2 * inputs, 8, 1), nn.ReLU(), nn.Conv2d(8, 2 * inputs, 1), nn.Sigmoid())
        self.project = nn.Conv2d(2 * inputs, outputs, 1)

    def forward(self, x):
        x = self.down(self.widen(x))
        return self.project(x * self.gate(self.pool(x)))


class Square(nn.Module):
    """Accepts one size only, and no other shape than square."""

    def __init__(self, inner, size):
        super().__init__()
        self.inner, self.size = inner, size

    def forward(self, x):
        assert tuple(x.shape[2:]) == self.size, "another size"
        return self.inner(x)


@pytest.mark.parametrize("square", [False, True], ids=["any size", "square only"])
@pytest.mark.parametrize("size", [32, 64])
def test_gates_of_one_pixel_are_no_levels(square, size):
    inner = Chain(stem=conv(4, 8), one=Gated(8, 12), two=Gated(12, 16), three=Gated(16, 20), up=decoder(20, 8))
    plan = planned(Square(inner, (size, size)) if square else inner, size=size)
    prefix = "inner." if square else ""
    assert labels(plan.stages) == tuple(prefix + name for name in ("stem", "one", "two", "three"))
    assert plan.dry_run_size == ((size, size) if square else (size, size * 3 // 2))


class Halves(nn.Module):
    """A block on a local and a global half that are taken together."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.local, self.other = conv(inputs, outputs, stride), conv(inputs, outputs, stride)

    def forward(self, pair):
        local, other = pair if isinstance(pair, tuple) else (pair, pair)
        return self.local(local) + 0.5, self.other(other) - 0.5


class KnownHalf(Halves):
    """Its second half is where the first one is known, as wide as the first."""

    def forward(self, pair):
        feature, known = pair if isinstance(pair, tuple) else (pair, torch.ones_like(pair))
        feature = self.local(feature)
        known = nn.functional.interpolate(known[:, :1], feature.shape[2:])
        return feature + 0.5, (known > 0.5).float().expand(-1, feature.shape[1], -1, -1).contiguous()


class Apart(Halves):
    """Its halves are taken one by one."""

    def forward(self, pair):
        feature = pair[0] if isinstance(pair, tuple) else pair
        return self.local(feature) + 0.5, self.other(feature) - 0.5


class Halved(nn.Module):
    """A host of such blocks."""

    def __init__(self, kind):
        super().__init__()
        self.enc0, self.enc1, self.enc2 = kind(4, 8), kind(8, 12, 2), kind(12, 16, 2)
        self.separate = kind is Apart
        self.up = decoder(16, 4)

    def forward(self, x):
        for block in (self.enc0, self.enc1, self.enc2):
            x = block(x)
            if self.separate:
                x = x[0] + x[1]
        return self.up(x if self.separate else x[0])


def test_two_halves_that_are_taken_as_one_argument_are_one_feature():
    plan = planned(Halved(Halves))
    names = [stage.label for stage in plan.stages]
    assert names[:2] == ["enc0[0]+[1]", "enc1[0]+[1]"]
    assert [stage.channels for stage in plan.stages[:2]] == [16, 24]
    assert plan.stages[2].name == "enc2"  # whose halves nobody takes together
    assert plan.stages[2].paths == ((0,),)


def test_a_second_half_of_zeros_and_ones_is_the_mask_of_the_first():
    plan = planned(Halved(KnownHalf))
    assert [stage.label for stage in plan.stages] == ["enc0[0]", "enc1[0]", "enc2[0]"]
    assert [stage.mask for stage in plan.stages] == [(1,)] * 3
    assert [stage.channels for stage in plan.stages] == [8, 12, 16]
    assert "[0], mask [1]" in str(plan)


def test_two_maps_that_are_taken_one_by_one_are_not_joined():
    plan = planned(Halved(Apart))
    assert [stage.name for stage in plan.stages] == ["enc0", "enc1", "enc2"]
    assert [(stage.paths, stage.mask) for stage in plan.stages] == [(((0,),), None)] * 3


class NextAndThis(nn.Module):
    """Hands the next level on, and this one to the skip connection."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.work, self.pool = conv(inputs, outputs), nn.MaxPool2d(2)

    def forward(self, x):
        this = self.work(x)
        return self.pool(this), this


class Skips(nn.Module):
    """A U-Net out of such blocks."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.last = NextAndThis(4, 8), NextAndThis(8, 12), conv(12, 16)
        self.up = nn.Conv2d(16, 12, 1)
        self.out = nn.Conv2d(12, 3, 1)

    def forward(self, x):
        x, _ = self.one(x)
        x, skip = self.two(x)
        return self.out(self.up(nn.functional.interpolate(self.last(x), scale_factor=2)) + skip)


def test_a_pair_of_two_levels_is_what_goes_on_and_what_is_skipped():
    plan = planned(Skips())
    assert [(stage.stride, stage.channels) for stage in plan.stages] == [(1, 8), (2, 12), (4, 16)]
    assert plan.stages[2].name == "last"
    assert [stage.name.partition(".")[0] for stage in plan.stages] == ["one", "two", "last"]


class Window(nn.Module):
    """Works on windows of 4 x 4 that lie in the batch."""

    def __init__(self, width):
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, x):
        width = x.shape[1]
        parts = x.unflatten(3, (-1, 4)).unflatten(2, (-1, 4)).permute(0, 2, 4, 3, 5, 1)
        mixed = self.mix(self.norm(parts.reshape(-1, 16, width))).view(parts.shape)
        return x + mixed.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


def test_windows_in_the_batch_are_no_features():
    host = Chain(
        stem=conv(4, 8), a=Window(8), down=conv(8, 16, 2), b=Window(16), low=conv(16, 24, 2), up=decoder(24, 4)
    )
    plan = planned(host)
    assert [(stage.stride, stage.layout) for stage in plan.stages] == [(1, "NCHW"), (2, "NCHW"), (4, "NCHW")]
    assert labels(plan.stages) == ("a", "b", "low")


def flat_encoder(normalise=nn.InstanceNorm2d):
    return nn.Sequential(
        nn.ReflectionPad2d(3),
        nn.Conv2d(4, 8, 7),
        normalise(8),
        nn.ReLU(True),
        nn.Conv2d(8, 12, 4, 2, 1),
        normalise(12),
        nn.ReLU(True),
        nn.Conv2d(12, 16, 4, 2, 1),
        normalise(16),
        nn.ReLU(True),
    )


@pytest.mark.parametrize("blocks", [1, 4])
def test_a_flat_encoder_ends_before_the_residual_trunk_that_follows_it(blocks):
    middle = nn.Sequential(*(Residual(16, dilation=2) for _ in range(blocks)))
    plan = planned(Chain(encoder=flat_encoder(), middle=middle, decoder=decoder(16, 4)), size=64)
    assert [(stage.stride, stage.channels) for stage in plan.stages] == [(1, 8), (2, 12), (4, 16)]
    assert all(stage.name.startswith("encoder.") for stage in plan.stages)
    assert int(plan.stages[-1].name.partition(".")[2]) >= 7
    assert plan.deeper
    assert all(stage.name.startswith("middle") and stage.stride == 4 for stage in plan.deeper)
    assert f"as deep, later: {', '.join(stage.label for stage in plan.deeper)}" in str(plan)


def test_what_is_as_deep_and_later_can_be_named_instead():
    host = Chain(encoder=flat_encoder(), middle=nn.Sequential(Residual(16)), decoder=decoder(16, 4)).eval()
    call = HostCall((torch.randn(2, 4, 64, 64),))
    found = plan_call(host, call, Wanted())
    wanted = [*found.stages[:-1], found.deeper[-1]]
    assert plan_call(host, call, Wanted(stages=wanted, named=True)).stages == tuple(wanted)


def test_dilated_layers_beside_those_of_the_encoder_come_after_it():
    host = Chain(
        conv1=conv(4, 8),
        conv2=conv(8, 12, 2),
        conv3=conv(12, 12),
        conv4=conv(12, 16, 2),
        conv5=conv(16, 16),
        conv6=conv(16, 16),
        atrous1=conv(16, 16, dilation=2),
        atrous2=conv(16, 16, dilation=4),
        conv7=conv(16, 16),
        up=decoder(16, 4),
    )
    plan = planned(host)
    assert labels(plan.stages) == ("conv1", "conv3", "conv6")
    assert [stage.name for stage in plan.deeper] == ["atrous1", "atrous2", "conv7"]


class Wide(nn.Module):
    """A bottleneck of a class of its own."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.body = nn.Sequential(conv(inputs, outputs), conv(outputs, outputs))

    def forward(self, x):
        return self.body(x)


def test_where_pooling_comes_first_the_bottleneck_is_a_stage_of_any_class():
    host = Chain(
        one=conv(4, 8),
        pool1=nn.MaxPool2d(2),
        two=conv(8, 12),
        pool2=nn.MaxPool2d(2),
        bottleneck=Wide(12, 16),
        up=decoder(16, 4),
    )
    plan = planned(host)
    assert labels(plan.stages) == ("one", "two", "bottleneck")
    assert [stage.channels for stage in plan.stages] == [8, 12, 16]
    assert not plan.deeper


def test_an_encoder_alone_in_its_module_keeps_what_is_of_its_own_kind():
    parts = [Residual(4, 8), conv(8, 12, 2), Residual(12), conv(12, 16, 2), Residual(16), Residual(16)]
    plan = planned(Chain(down=nn.Sequential(*parts), mid=Wide(16, 16), up=decoder(16, 4)))
    assert [stage.stride for stage in plan.stages] == [1, 2, 4]
    assert labels(plan.stages) == ("down.0", "down.2", "down.5")
    assert [stage.name for stage in plan.deeper][-1] == "mid"


def test_an_encoder_with_a_gap_in_its_levels_yields_to_one_without():
    def of(*strides):
        return Encoder(tuple(Stage(name=f"s{stride}", stride=stride) for stride in strides))

    whole, gapped = of(1, 2, 4), of(1, 2, 8)
    assert choose_encoder([whole, gapped]) == (0, "encoder 1 of 2: the most levels, 3")
    assert choose_encoder([gapped, whole])[0] == 1
    assert choose_encoder([whole, whole, gapped]) == (1, "encoder 2 of 3: of the 2 with 3 levels the last to run")
    assert choose_encoder([gapped, of(1, 2)])[0] == 0
