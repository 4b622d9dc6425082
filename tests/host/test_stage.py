"""A stage reads a feature out of any output, and what is written back is where it was read."""

import json
from collections import namedtuple
from dataclasses import asdict, dataclass

import pytest
import torch
from hosts import ZOO, batch, make_optimizer, train
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inpaint_distill
from inpaint_distill.errors import CaptureError, PlanError
from inpaint_distill.host.stage import Stage, level_of, token_grid
from inpaint_distill.host.taps import FeatureTaps

FIXED = {"warmup": 0, "balance": "none"}
Pair = namedtuple("Pair", ["local", "other"])


@dataclass
class Output:
    """An output with a name for everything."""

    sample: torch.Tensor
    skips: tuple = ()


sizes = st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9))

# How the wanted tensor lies in an output, beside others of its shape, and the path to it.
WRAPPED = {
    "alone": (lambda t: t, ()),
    "tuple": (lambda t: (torch.zeros_like(t), t), (1,)),
    "list": (lambda t: [t, None, 3], (0,)),
    "named tuple": (lambda t: Pair(torch.zeros_like(t), t), (1,)),
    "dict": (lambda t: {"mask": torch.ones_like(t), "feature": t}, ("feature",)),
    "dataclass": (lambda t: Output(torch.zeros_like(t), (t,)), ("skips", 0)),
    "nested": (lambda t: ({"skips": [torch.zeros_like(t), (t, "x")]}, None), (0, "skips", 1, 0)),
}


@pytest.mark.parametrize("wrap", WRAPPED.values(), ids=WRAPPED)
@given(size=sizes)
def test_what_is_written_is_read_again_and_everything_else_stays(wrap, size):
    make, path = wrap
    feature, other = torch.randn(size), torch.randn(size)
    output = make(feature)
    stage = Stage(name="m", select=path)
    assert stage.read(output) is feature
    written = stage.write(output, other)
    assert type(written) is type(output)
    assert torch.equal(stage.read(written), other)
    assert torch.equal(stage.read(output), feature)  # what the host holds is not changed
    restored = stage.write(written, feature)
    assert str(restored) == str(output)


@given(batch_size=st.integers(1, 3), channels=st.lists(st.integers(1, 6), min_size=2, max_size=4), last=st.booleans())
def test_tensors_that_are_concatenated_are_split_again(batch_size, channels, last):
    parts = [torch.randn(batch_size, 3, 5, c) if last else torch.randn(batch_size, c, 3, 5) for c in channels]
    stage = Stage(name="m", select=tuple((index, 0) for index in range(len(parts))), layout="NHWC" if last else "NCHW")
    output = [(part, "beside") for part in parts]
    feature = stage.read(output)
    assert torch.equal(feature, torch.cat(parts, 3 if last else 1))
    assert stage.as_map(feature, (3, 5)).shape == (batch_size, sum(channels), 3, 5)
    new = torch.randn_like(feature)
    written = stage.write(output, new)
    assert torch.equal(stage.read(written), new)
    assert [each[1] for each in written] == ["beside"] * len(parts)
    assert [each[0].shape for each in written] == [part.shape for part in parts]


def test_tokens_are_concatenated_along_their_channels_and_not_one_after_the_other():
    first, second = torch.randn(2, 25, 3), torch.randn(2, 25, 5)
    stage = Stage(name="m", select=((0,), (1,)), layout="tokens", prefix=1)
    feature = stage.read((first, second))
    assert torch.equal(feature, torch.cat([first, second], 2))
    assert stage.as_map(feature, (32, 48)).shape == (2, 8, 4, 6)
    new = torch.randn_like(feature)
    assert torch.equal(stage.read(stage.write((first, second), new)), new)


def test_the_order_of_what_is_concatenated_is_that_of_the_selection():
    first, second = torch.zeros(1, 2, 4, 4), torch.ones(1, 3, 4, 4)
    stage = Stage(name="m", select=((1,), (0,)))
    assert torch.equal(stage.read((first, second)), torch.cat([second, first], 1))
    written = stage.write((first, second), torch.cat([second * 5, first + 7], 1))
    assert torch.equal(written[0], first + 7)
    assert torch.equal(written[1], second * 5)


def test_a_function_may_choose_the_tensor_and_writing_finds_it_again():
    def largest(output):
        return max(output["maps"], key=lambda each: each.shape[1])

    maps = [torch.randn(1, 2, 4, 4), torch.randn(1, 6, 4, 4), torch.randn(1, 4, 4, 4)]
    stage = Stage(name="m", select=largest)
    new = torch.randn(1, 6, 4, 4)
    written = stage.write({"maps": maps, "step": 3}, new)
    assert stage.read({"maps": maps}) is maps[1]
    assert written["maps"][1] is new
    assert written["maps"][0] is maps[0]
    assert written["step"] == 3


@given(size=sizes)
def test_a_map_goes_back_to_the_layout_it_came_from(size):
    height, width = size[2:]
    image_size = (height * 4, width * 4)
    maps = torch.randn(size)
    last = Stage(name="m", layout="NHWC")
    first = Stage(name="m")
    assert torch.equal(first.as_output(first.as_map(maps, image_size), maps), maps)
    feature = maps.permute(0, 2, 3, 1)
    assert torch.equal(last.as_map(feature, image_size), maps)
    assert torch.equal(last.as_output(last.as_map(feature, image_size), feature), feature)


@given(size=sizes, prefix=st.integers(0, 5), explicit=st.booleans(), stride=st.sampled_from([1, 2, 8]))
def test_tokens_become_a_map_in_rows_and_keep_their_prefix(size, prefix, explicit, stride):
    count, channels, height, width = size
    maps = torch.randn(size)
    feature = torch.cat([torch.randn(count, prefix, channels), maps.flatten(2).mT], 1)
    grid = (height, width) if explicit else None
    stage = Stage(name="m", layout="tokens", prefix=prefix, grid=grid)
    # An explicit grid says so where no power-of-two stride does.
    image_size = (height * 7, width * 7) if explicit else (height * stride, width * stride)
    seen = stage.as_map(feature, image_size)
    if explicit or token_grid(height * width, image_size) == (height, width):
        assert torch.equal(seen, maps)
    assert torch.equal(stage.as_output(seen, feature), feature)
    changed = stage.as_output(seen + 1, feature)
    assert torch.equal(changed[:, :prefix], feature[:, :prefix])
    assert torch.equal(changed[:, prefix:], feature[:, prefix:] + 1)


SPECS = {
    "plain": Stage(name="enc.0", channels=8, size=(32, 48), stride=1),
    "path": Stage(name="enc", select=("skips", 2), layout="NHWC", clone=True),
    "concatenation": Stage(name="enc", select=((0,), (1,)), call=-1, mask=(2,)),
    "one of several": Stage(name="enc", select=((0, "x"),)),
    "tokens": Stage(name="blocks.3", layout="tokens", prefix=1, grid=(7, 5), channels=24, size=(7, 5), stride=16),
}


@pytest.mark.parametrize("stage", SPECS.values(), ids=SPECS)
def test_a_stage_survives_json(stage):
    again = Stage.from_spec(json.loads(json.dumps(asdict(stage))))
    assert again == stage
    assert hash(again) == hash(stage)
    assert again.label == stage.label


def choose(output):
    return output[0]


LABELS = {
    "enc.0": Stage(name="enc.0"),
    "enc[0]": Stage(name="enc", select=(0,)),
    "enc['skips'][2]": Stage(name="enc", select=("skips", 2)),
    "model.4[0]+[1]": Stage(name="model.4", select=((0,), (1,))),
    "bn2 (call 3)": Stage(name="bn2", call=3),
    "bn2[1] (call -1)": Stage(name="bn2", call=-1, select=(1,)),
    "enc by choose": Stage(name="enc", select=choose),
}


@pytest.mark.parametrize("label", LABELS)
def test_a_stage_is_named_as_its_output_would_be_indexed(label):
    assert LABELS[label].label == label


@pytest.mark.parametrize(
    ("select", "output", "missing"),
    [
        ((1,), [torch.zeros(1)], "no member 1 in a list"),
        (("deep",), {"feature": torch.zeros(1)}, "'deep'.*'feature'"),
        ((0, "x"), (torch.zeros(1),), "'x' in a Tensor"),
        ((0,), [None], "a NoneType instead of a tensor"),
        (((0,), (1,)), [torch.zeros(1, 2, 4, 4), 0], "int instead of a tensor"),
        (lambda output: "nothing", None, "a str instead of a tensor"),
    ],
    ids=["index", "key", "too deep", "none", "half of a pair", "function"],
)
def test_what_is_not_there_is_named(select, output, missing):
    stage = Stage(name="m", select=select)
    for use in (stage.read, lambda value: stage.write(value, torch.zeros(1))):
        with pytest.raises(LookupError, match=missing):
            use(output)


@pytest.mark.parametrize(
    ("size", "image_size", "level"),
    [
        ((32, 48), (32, 48), 0),
        ((8, 12), (32, 48), 2),
        ((2, 3), (32, 48), 4),
        ((6, 6), (32, 48), None),
        ((0, 1), (8, 8), None),
    ],
)
def test_the_level_of_a_map_is_its_number_of_halvings(size, image_size, level):
    assert level_of(size, image_size) == level


@pytest.mark.parametrize(
    ("size", "image_size", "level"),
    [
        ((1, 1), (64, 64), 6),
        ((1, 1), (64, 96), 6),
        ((64, 64), (32, 32), None),
        ((33, 33), (32, 32), 0),
        ((15, 15), (32, 32), 1),
        ((14, 14), (32, 32), 1),
        ((11, 11), (32, 32), None),
        ((18, 18), (32, 32), 1),
        ((19, 19), (32, 32), None),
        ((8, 8), (32, 48), None),
        ((5, 7), (17, 25), 2),
        ((4, 6), (17, 25), 2),
        ((4, 0), (16, 16), None),
    ],
)
def test_the_level_of_odd_and_cropped_maps_is_that_of_the_nearest_halving(size, image_size, level):
    assert level_of(size, image_size) == level


@given(size=st.tuples(st.integers(1, 70), st.integers(1, 70)), times=st.integers(0, 5), up=st.booleans())
def test_the_grid_of_tokens_is_found_for_sizes_halved_up_or_down(size, times, up):
    grid = tuple(-(-side // 2**times) if up else side // 2**times for side in size)
    if not grid[0] * grid[1]:
        return
    found = token_grid(grid[0] * grid[1], size)
    if times < size[0].bit_length():
        assert found is not None
        assert found[0] * found[1] == grid[0] * grid[1]


@pytest.mark.parametrize(
    ("tokens", "image_size", "grid"),
    [
        (30, (18, 20), None),
        (20, (18, 20), (4, 5)),
        (25, (18, 20), (5, 5)),
        (90, (18, 20), (9, 10)),
        (360, (18, 20), (18, 20)),
        (6, (18, 20), None),
        (4, (18, 20), (2, 2)),
        (9, (18, 20), (3, 3)),
        (2, (18, 20), None),
        (1, (18, 20), (1, 1)),
        (12, (7, 12), None),
        (18, (7, 12), (3, 6)),
        (24, (7, 12), (4, 6)),
        (0, (16, 16), None),
        (1, (16, 16), (1, 1)),
        (4, (7, 5), (2, 2)),
        (2, (7, 5), None),
        (6, (7, 5), (3, 2)),
        (12, (7, 5), (4, 3)),
    ],
)
def test_the_grid_of_tokens_of_odd_sides(tokens, image_size, grid):
    assert token_grid(tokens, image_size) == grid


def test_tokens_of_no_grid_are_a_column_and_one_tensor_keeps_its_identity():
    feature = torch.randn(2, 7, 3)
    assert torch.equal(Stage(name="m", layout="tokens").as_map(feature, (32, 32)), feature.mT.unsqueeze(3))
    assert Stage(name="m").join([feature]) is feature
    assert Stage(name="m").as_map(feature, (1, 1)) is feature


# -- attached ----------------------------------------------------------------------------------------------------------


class Features(nn.Module):
    """An encoder whose features lie in one object, and as tokens with a class token and a grid of its own."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(4, 8, 2, 2)
        self.second = nn.Conv2d(8, 12, 2, 2)

    def forward(self, x):
        first = self.first(x)
        second = self.second(first)
        pooled = nn.functional.adaptive_avg_pool2d(second, (6, 6)).flatten(2).mT
        tokens = torch.cat([pooled.mean(1, keepdim=True), pooled], 1)
        return {"skips": (first.relu(), second.permute(0, 2, 3, 1)), "tokens": tokens, "pair": (second, second.sin())}


class Bundled(nn.Module):
    """A host around such an encoder."""

    def __init__(self):
        super().__init__()
        self.encoder = Features()
        self.up = nn.ConvTranspose2d(12, 3, 4, 4)
        self.extra = nn.Linear(12, 3)

    def forward(self, x):
        found = self.encoder(x)
        deep = found["skips"][1].permute(0, 3, 1, 2) + found["pair"][1]
        return self.up(deep) + self.extra(found["tokens"].mean(1))[:, :, None, None] + found["skips"][0].mean()


def second(output):
    return output["skips"][1]


DESCRIBED = {
    "paths": [Stage(name="encoder", select=("skips", 0)), Stage(name="encoder", select=("skips", 1))],
    "function": [
        Stage(name="encoder", select=("skips", 0)),
        Stage(name="encoder", select=second, layout="NHWC", channels=12, size=(8, 8), stride=4),
    ],
    "concatenation": [
        Stage(name="encoder", select=("skips", 0)),
        Stage(name="encoder", select=(("pair", 0), ("pair", 1))),
    ],
    "tokens": [
        Stage(name="encoder", select=("skips", 0)),
        Stage(
            name="encoder",
            select=("tokens",),
            layout="tokens",
            prefix=1,
            grid=(6, 6),
            channels=12,
            size=(6, 6),
            stride=5,
        ),
    ],
}
_CHANNELS = {"paths": 12, "function": 12, "concatenation": 24, "tokens": 12}


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_host_trains_on_stages_described_in_any_way(name):
    host, toy = Bundled(), ZOO["concatenated"]
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, stages=DESCRIBED[name], config=FIXED)
    for seed in range(2):
        (loss,) = train(toy, host, optimizer, [batch(seed)], distiller)
        assert loss.isfinite()
        assert distiller.log["loss"] > 0
    assert [stage.channels for stage in distiller.plan.stages] == [8, _CHANNELS[name]]
    assert str(distiller.plan)
    assert distiller.detach() is host


@pytest.mark.parametrize("name", ["concatenation", "tokens"])
def test_a_described_feature_is_tapped_as_it_is(name):
    host = Bundled()
    stage = DESCRIBED[name][1]
    taps = FeatureTaps(host, [stage])
    taps.begin()
    x = torch.randn(2, 4, 32, 32)
    host(x)
    (feature,) = taps.take()
    output = host.encoder(x)
    expected = (
        torch.cat(output["pair"], 1) if name == "concatenation" else output["tokens"][:, 1:].mT.unflatten(2, (6, 6))
    )
    assert torch.equal(stage.as_map(feature, (32, 32)), expected)


def test_the_last_call_is_settled_when_it_is_planned():
    toy = ZOO["recurrent"]
    host = toy.build()
    optimizer = make_optimizer(host)
    stages = [Stage(name=f"down.enc{level}", call=-1) for level in range(3)]
    distiller = inpaint_distill.attach(host, optimizer, stages=stages)
    train(toy, host, optimizer, [batch(0), batch(1)], distiller)
    assert tuple(stage.label for stage in distiller.plan.stages) == toy.stages
    other = toy.build()
    optimizer = make_optimizer(other)
    named = inpaint_distill.attach(other, optimizer, stages=[Stage(name="down.enc0", call=-3), "down.enc2"])
    train(toy, other, optimizer, [batch(0)], named)
    assert [stage.label for stage in named.plan.stages] == ["down.enc0", "down.enc2"]


@pytest.mark.parametrize(
    ("stage", "words"),
    [
        (Stage(name="down.enc1", call=3), "call 3"),
        (Stage(name="down.enc1", call=-4), "call -4"),
        (Stage(name="down.enc1", select=(0,)), r"down.enc1\[0\]"),
        (Stage(name="down.enc1", call=7, channels=12, stride=2), "use a call below 3"),
        (Stage(name="down.enc1", select=len), r"down.enc1 by len(.|\n)*channels=\.\.\., stride="),
    ],
    ids=["after the last", "before the first", "no such member", "described, after the last", "of unknown shape"],
)
def test_a_stage_that_is_not_there_is_refused_by_name(stage, words):
    toy = ZOO["recurrent"]
    host = toy.build()
    distiller = inpaint_distill.attach(host, stages=[stage, "down.enc2"])
    with pytest.raises(PlanError, match=words):
        toy.call(host, *batch())
    assert distiller.plan is None


def test_a_selection_that_fails_in_a_later_forward_names_stage_and_member():
    host = Bundled()
    taps = FeatureTaps(host, [Stage(name="encoder", select=("skips", 2), channels=1, stride=1)])
    taps.begin()
    with pytest.raises(CaptureError, match=r"encoder\['skips'\]\[2\](.|\n)*no member 2"):
        host(torch.randn(1, 4, 32, 32))
