"""What a forward's events are read as: maps in a layout, with their masks and halves, and the stages made of them."""

import pytest
import torch
from torch import nn

from inpaint_distill.host.attention import AttentionSite, grids
from inpaint_distill.host.discovery import Encoder, choose_encoder, find_encoders, span_of
from inpaint_distill.host.maps import join, read_maps, single_maps
from inpaint_distill.host.named_stages import named_stages, output_stages
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.trace import Event, Trace, trace_forward
from inpaint_distill.host.watch import StopForward, Watch

SIZE = (32, 48)


def event(*shapes, name="m", call=0, identities=None, **rest):
    """Return an event with outputs of such shapes."""
    several = len(shapes) > 1
    outputs = [
        ((index,) if several else (), shape, (identities or range(1, 9))[index]) for index, shape in enumerate(shapes)
    ]
    kept = {"inputs": [], "pairs": set(), "overwritten": set(), "binary": set(), "leaf": True, "kind": "M"} | rest
    return Event(name=name, path=name, call=call, start=1, end=2, outputs=outputs, **kept)


def trace(*events, size=SIZE, batch=2):
    return Trace(list(events), size, size, {}, {}, batch, False, False, False, lambda: None)


def read(*shapes, named=False, size=SIZE, batch=2, **rest):
    each = event(*shapes, **rest)
    return [found.stage() for found in read_maps(each, trace(each, size=size, batch=batch), named=named)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 8, 16, 24), {"layout": "NCHW", "channels": 8, "size": (16, 24), "stride": 2}),
        ((2, 8, 12, 9), {"layout": "NHWC", "channels": 9, "size": (8, 12), "stride": 4}),
        ((2, 96, 10), {"layout": "tokens", "channels": 10, "size": (8, 12), "stride": 4}),
        ((2, 8, 32, 48), {"layout": "NCHW", "channels": 8, "size": (32, 48), "stride": 1}),
        ((2, 7, 16, 24), None),
        ((2, 8, 12, 7), None),
        ((2, 97, 10), None),
        ((3, 8, 16, 24), None),
        ((2, 8, 16, 16), None),
        ((2, 8, 1, 1), None),
        ((2, 8), None),
        ((2, 8, 4, 16, 24), None),
    ],
)
def test_a_tensor_is_read_as_a_map_in_the_layout_in_which_it_is_one(shape, expected):
    assert read(shape) == ([Stage(name="m", **expected)] if expected else [])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((2, 1, 16, 24), {"layout": "NCHW", "channels": 1, "size": (16, 24), "stride": 2}),
        ((2, 97, 1), {"layout": "tokens", "channels": 1, "size": (8, 12), "stride": 4, "prefix": 1}),
        ((2, 104, 8), {"layout": "tokens", "channels": 8, "size": (8, 12), "stride": 4, "prefix": 8}),
        ((2, 105, 8), None),
        ((2, 4, 1, 1), {"layout": "NCHW", "channels": 4, "size": (1, 1), "stride": 32}),
        ((3, 8, 16, 24), None),
    ],
)
def test_a_module_that_was_named_may_have_few_channels_and_tokens_before_its_map(shape, expected):
    assert read(shape, named=True) == ([Stage(name="m", **expected)] if expected else [])


def test_a_pooled_map_counts_on_a_square_image_alone_and_any_batch_where_the_host_s_is_unknown():
    assert [stage.stride for stage in read((2, 8, 1, 1), size=(32, 32))] == [32]
    assert [stage.stride for stage in read((5, 8, 16, 24), batch=0)] == [2]


def test_a_feature_has_its_call_its_path_and_a_copy_where_it_is_overwritten():
    found = read((2, 8, 16, 24), (2, 8, 8, 12), call=3, overwritten={(1,)})
    assert [(stage.call, stage.select, stage.clone) for stage in found] == [(3, (0,), False), (3, (1,), True)]


PAIR = ((2, 8, 16, 24), (2, 9, 16, 24))


def test_a_binary_second_tensor_is_the_mask_of_the_first():
    (stage,) = read(*PAIR, binary={(1,)})
    assert (stage.select, stage.mask, stage.channels) == ((0,), (1,), 8)
    assert [each.mask for each in read(*PAIR, binary={(0,)})] == [None, None]


def test_two_halves_that_a_module_takes_as_one_argument_are_one_feature():
    each = event(*PAIR, overwritten={(0,)})
    taken = event(name="next", pairs={(1, 2)})
    (found,) = read_maps(each, trace(each, taken))
    assert (found.identity, found.mask) == (0, None)
    stage = found.stage()
    assert (stage.select, stage.channels, stage.clone, stage.size) == (((0,), (1,)), 17, False, (16, 24))
    for pairs in (set(), {(2, 1)}, {(1, 3)}):
        assert len(read_maps(each, trace(each, event(name="next", pairs=pairs)))) == 2


def test_maps_of_two_sizes_the_same_tensor_twice_and_three_maps_stay_apart():
    assert len(read((2, 8, 16, 24), (2, 8, 8, 12), binary={(1,)})) == 2
    assert len(read(*PAIR, binary={(1,)}, identities=[5, 5])) == 2
    assert len(read(*PAIR, (2, 8, 16, 24), binary={(1,)})) == 3


def test_joined_maps_are_in_the_order_given():
    each = event(*PAIR)
    first, second = single_maps(each, trace(each))
    joined = join([second, first])
    assert (joined.paths, joined.channels, joined.identity, joined.size) == (((1,), (0,)), 17, 0, (16, 24))


# -- named stages ------------------------------------------------------------------------------------------------------


def stages(each, wanted):
    return named_stages(trace(*each), [wanted])


def test_a_selected_map_is_joined_of_its_parts_only_where_they_are_all_there_and_alike():
    each = event((2, 4, 16, 24), (2, 5, 16, 24), (2, 6, 8, 12))
    (one,) = stages([each], Stage(name="m", select=(2,)))
    assert (one.select, one.channels, one.stride) == ((2,), 6, 4)
    (both,) = stages([each], Stage(name="m", select=((1,), (0,))))
    assert (both.select, both.channels, both.stride) == (((1,), (0,)), 9, 2)
    for select in (((0,), (2,)), ((0,), (3,)), (3,)):
        with pytest.raises(Exception, match="a feature map from stage"):
            stages([each], Stage(name="m", select=select))


def test_parts_in_two_layouts_are_not_joined():
    each = event((2, 4, 8, 12), (2, 96, 4))
    with pytest.raises(Exception, match="a feature map from stage"):
        stages([each], Stage(name="m", select=((0,), (1,))))


def test_what_a_stage_says_of_its_mask_its_grid_and_its_copy_is_kept():
    each = event(*PAIR, binary={(1,)})
    (plain,) = stages([each], "m")
    assert (plain.mask, plain.grid, plain.clone, plain.channels) == ((1,), None, False, 8)
    (said,) = stages([each], Stage(name="m", mask=(7,), grid=(4, 6), clone=True))
    assert (said.mask, said.grid, said.clone, said.channels) == ((7,), (4, 6), True, 8)
    (seen,) = stages([event((2, 8, 16, 24), overwritten={()})], "m")
    assert seen.clone


def test_the_call_of_a_stage_is_counted_from_either_end():
    calls = [event((2, 8 + call, 16, 24), call=call) for call in range(3)]
    for call, found in ((0, 0), (2, 2), (-1, 2), (-3, 0)):
        (stage,) = stages(calls, Stage(name="m", call=call))
        assert (stage.call, stage.channels) == (found, 8 + found)
        (said,) = stages(calls, Stage(name="?", call=call, channels=5, stride=3))
        assert (said.name, said.call, said.channels, said.stride) == ("m", found, 5, 3)


def test_the_outputs_of_the_root_are_stages_where_they_are_a_pyramid():
    levels = ((2, 12, 8, 12), (2, 8, 16, 24))
    assert [stage.stride for stage in output_stages(trace(event(*levels, name="")))] == [2, 4]
    assert output_stages(trace(event(*levels, name="part"))) == ()
    assert output_stages(trace(event(levels[0], name=""))) == ()
    assert output_stages(trace(event(*levels, levels[0], name=""))) == ()
    last = event((2, 8, 16, 24), name="", call=1)
    assert output_stages(trace(event(*levels, name=""), last)) == ()


# -- encoders ----------------------------------------------------------------------------------------------------------


def encoder(*strides):
    return Encoder(tuple(Stage(name=str(stride), stride=stride) for stride in strides))


@pytest.mark.parametrize(
    ("encoders", "expected"),
    [
        ([encoder(1, 2)], (0, "the only encoder")),
        ([encoder(1, 2, 4), encoder(1, 2)], (0, "encoder 1 of 2: the most levels, 3")),
        ([encoder(1, 2), encoder(1, 2, 4)], (1, "encoder 2 of 2: the most levels, 3")),
        ([encoder(1, 2), encoder(2, 4)], (1, "encoder 2 of 2: of the 2 with 2 levels the last to run")),
        ([encoder(1, 2), encoder(1, 8)], (0, "encoder 1 of 2: the most levels, 2")),
        (
            [encoder(1, 2, 4), encoder(1, 2), encoder(2, 4, 8)],
            (2, "encoder 3 of 3: of the 2 with 3 levels the last to run"),
        ),
    ],
)
def test_the_encoder_with_the_most_levels_and_no_gap_is_chosen_and_of_these_the_last(encoders, expected):
    assert choose_encoder(encoders) == expected


class TwoStages(nn.Module):
    """A coarse network and its refinement, each with an encoder of two levels."""

    def __init__(self):
        super().__init__()
        self.enter, self.down = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 16, 2, 2)
        self.trunk, self.up = nn.Conv2d(16, 16, 1), nn.ConvTranspose2d(16, 8, 2, 2)
        self.out = nn.Conv2d(8, 3, 1)

    def once(self, image):
        return self.out(self.up(self.trunk(self.down(self.enter(image)))))

    def forward(self, image):
        return self.once(self.once(image))


def run(host):
    return trace_forward(host, lambda: host(torch.rand(2, 3, *SIZE)), SIZE)


def test_each_encoder_ends_where_the_resolution_rises_and_the_next_begins_at_the_image():
    written = run(TwoStages())
    first, second = find_encoders(written)
    assert [stage.label for stage in first.stages] == ["enter", "trunk"]
    assert [stage.label for stage in second.stages] == ["enter (call 1)", "trunk (call 1)"]
    assert [(stage.channels, stage.stride, stage.size) for stage in first.stages] == [
        (8, 1, (32, 48)),
        (16, 2, (16, 24)),
    ]
    positions = {(each.name, each.call): each for each in written.events}
    assert first.span == (positions["enter", 0].start, positions["trunk", 0].end)
    assert second.span == (positions["enter", 1].start, positions["trunk", 1].end)
    assert span_of(written, first.stages) == first.span
    assert span_of(written, second.stages[:1]) == second.span
    up = Stage(name="up", call=1)
    assert span_of(written, [up]) == (positions["up", 1].start, positions["up", 1].end)


def test_a_span_of_stages_without_an_encoder_is_that_of_the_stages():
    written = run(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))
    positions = {each.name: each for each in written.events}
    wanted = [Stage(name="0"), Stage(name="1")]
    assert span_of(written, wanted) == (positions["0"].start, positions["1"].end)
    assert span_of(written, wanted[:1]) == (positions["0"].start, positions["0"].end)


# -- attention sites ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("site", "label"),
    [
        ({}, "attn"),
        ({"call": 2}, "attn (call 2)"),
        ({"index": 1}, "attn (attention 1)"),
        ({"call": 1, "index": 3}, "attn (call 1) (attention 3)"),
    ],
)
def test_a_site_is_named_by_module_call_and_number(site, label):
    assert AttentionSite(name="attn", kind="sdpa", **site).label == label


def test_the_grids_of_an_image_are_halved_upwards_until_one_row_is_left():
    assert grids((5, 9)) == [(5, 9), (3, 5), (2, 3)]
    assert grids((8, 3)) == [(8, 3), (4, 2), (2, 1), (1, 1)]


@pytest.mark.parametrize("channels_first", [True, False])
@pytest.mark.parametrize("windowed", [True, False])
def test_a_map_that_enters_is_averaged_over_the_places_of_the_queries(channels_first, windowed):
    site = AttentionSite(name="attn", kind="softmax", window=(2, 3) if windowed else (0, 0), shift=(1, 2), channels=5)
    entering = torch.randn(2, 5, 16, 24)
    pooled = nn.functional.avg_pool2d(entering, 2)
    given = entering if channels_first else entering.permute(0, 2, 3, 1)
    count, batch = (6, 32) if windowed else (96, 2)
    found = site.entering_tokens(given, count, batch, SIZE)
    if windowed:
        rolled = pooled.roll((-1, -2), (2, 3))
        expected = [
            rolled[image, :, 2 * row : 2 * row + 2, 3 * column : 3 * column + 3].flatten(1).T
            for image in range(2)
            for row in range(4)
            for column in range(4)
        ]
        torch.testing.assert_close(found, torch.stack(expected))
    else:
        torch.testing.assert_close(found, pooled.flatten(2).mT)


def test_tokens_that_enter_lose_their_prefix_and_are_none_where_they_do_not_fit():
    site = AttentionSite(name="attn", kind="softmax", prefix=1, channels=5)
    tokens = torch.randn(2, 97, 5)
    assert torch.equal(site.entering_tokens(tokens, 96, 2, SIZE), tokens[:, 1:])
    for other in (tokens[:, 1:], tokens[:1], tokens[..., 1:]):
        assert site.entering_tokens(other, 96, 2, SIZE) is None
    assert AttentionSite(name="attn", kind="softmax").entering_tokens(tokens, 96, 2, SIZE) is None


def test_a_window_planned_for_another_size_is_read_as_a_square():
    site = AttentionSite(name="attn", kind="softmax", window=(7, 7))
    assert site.grid(16, 12, 2, SIZE) == (8, 12)
    value = torch.arange(2 * 96.0).view(2, 1, 8, 12)
    found = site.tokens(value, 16, 12, SIZE)
    assert found.shape == (12, 16, 1)
    assert torch.equal(found[7, :, 0], value[1, 0, :4, 4:8].flatten())


# -- all taps together -------------------------------------------------------------------------------------------------


class Attending(nn.Module):
    """A feature, its attention, and a layer that a teacher does not need."""

    def __init__(self):
        super().__init__()
        self.stem, self.layer, self.last = nn.Conv2d(3, 4, 2, 2), nn.Identity(), nn.Conv2d(4, 3, 1)

    def attend(self, feature):
        tokens = feature.flatten(2).mT
        return ((tokens @ tokens.mT).softmax(-1) @ tokens).mT.unflatten(2, feature.shape[2:])

    def forward(self, image):
        return self.last(self.layer(self.attend(self.stem(image))))


STAGES = (Stage(name="stem"), Stage(name="layer"))
SITES = (AttentionSite(name="", kind="softmax"),)


def test_a_forward_shows_features_as_maps_and_attention_and_ends_at_the_last_tap():
    host, image = Attending(), torch.rand(1, 3, 8, 8)
    ran = []
    host.last.register_forward_hook(lambda *_: ran.append(True))
    watch = Watch(host, STAGES)
    for size in ((8, 8), lambda: (8, 8)):
        views = watch.run(lambda: host(image), size)
        assert ran == []
        assert [tuple(each.shape) for each in views.features] == [(1, 4, 4, 4)] * 2
        assert views.attention == []
        assert torch.equal(views.features[0], host.stem(image))
    watch.run(lambda: host(image), (8, 8), stop=False)
    assert ran == [True]
    watch.remove()


def test_what_runs_after_the_end_or_after_an_error_is_not_kept():
    host, image = Attending(), torch.rand(1, 3, 8, 8)
    watch = Watch(host, STAGES, SITES)
    watch.begin()
    host(image)
    watch.end()
    host(image * 0)
    views = watch.take((8, 8))
    assert torch.equal(views.features[0], host.stem(image))
    tokens = views.features[0].flatten(2).mT
    torch.testing.assert_close(views.attention[0].rows[:, 0], (tokens @ tokens.mT).softmax(-1))
    assert views.features[0].requires_grad
    bare = views.detached()
    assert torch.equal(bare.features[1], views.features[1])
    assert torch.equal(bare.attention[0].rows, views.attention[0].rows)
    assert not any(each.requires_grad for each in (*bare.features, bare.attention[0].rows))

    def fail():
        host(image)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        watch.run(fail, (8, 8), stop=False)
    host(image)
    with pytest.raises(Exception, match="stem, layer"):
        watch.take((8, 8))
    watch.remove()
    assert not host.stem._forward_hooks


def test_what_was_put_aside_is_taken_in_place_of_what_was_kept_since():
    host, image = Attending(), torch.rand(1, 3, 8, 8)
    watch = Watch(host, STAGES, SITES)
    told = {}
    watch.begin(told.__setitem__)
    host(image)
    first = watch.put_aside()
    assert watch.take_edges() == {}
    watch.begin()
    host(image * 0)
    watch.end()
    watch.put_back(first)
    assert {place[:2] for place in watch.take_edges()} == {("features", 0), ("features", 1), ("attention", 0)}
    views = watch.take((8, 8))
    assert torch.equal(views.features[0], host.stem(image))
    assert len(told) == 3


def test_a_stop_comes_once_features_and_attention_are_all_seen():
    host, image = Attending(), torch.rand(1, 3, 8, 8)
    watch = Watch(host, STAGES[:1], (AttentionSite(name="", kind="softmax"),))
    for _ in range(2):
        watch.begin(stop=True)
        with pytest.raises(StopForward):
            host(image)
        views = watch.take((8, 8))
        assert views.attention[0].rows.shape == (1, 1, 16, 16)
