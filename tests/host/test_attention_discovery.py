"""What is found to be attention over the image, what is not and why, and in which order its tokens lie."""

import copy

import pytest
import segmentation_models_pytorch as smp
import timm
import torch
import torch.nn.functional as F
from hosts import batch, footprint, same
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, overrides

import inpaint_distill
from inpaint_distill.adapters.contextual_attention.adapter import ContextualAttentionAdapter
from inpaint_distill.adapters.gated_conv.adapter import GatedConvAdapter
from inpaint_distill.errors import PlanError
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.attention_choice import AttentionCandidate, choose_attention, named_attention
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.attention_taps import AttentionTaps

SIZE = (32, 48)
GRID = (8, 12)


class Attention(nn.Module):
    """Attention on a map; ``weigh(q, k)`` gets (B, heads, N, d) and gives whatever replaces the queries."""

    def __init__(self, weigh, width=8, heads=2):
        super().__init__()
        self.weigh, self.heads = weigh, heads
        self.query, self.key = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)

    def forward(self, feature, context=None):
        q = self.query(feature).flatten(2).unflatten(1, (self.heads, -1)).mT
        k = (self.key(feature).flatten(2) if context is None else context.mT).unflatten(1, (self.heads, -1)).mT
        self.weigh(q, k)
        return feature


class Host(nn.Module):
    """An image at a quarter of its size goes through one layer."""

    def __init__(self, layer, stride=4):
        super().__init__()
        self.stem, self.layer, self.stride = nn.Conv2d(3, 8, 1), layer, stride

    def forward(self, image, *rest):
        return self.layer(F.avg_pool2d(self.stem(image), self.stride), *rest)


def found(host, size=SIZE, *rest, images=2):
    return find_attention(host, lambda: host(torch.rand(images, 3, *size), *rest), size)


def only(host, *args, **kwargs):
    (candidate,) = found(host, *args, **kwargs)
    return candidate


def product(q, k):
    return q @ k.mT


KINDS = {
    "softmax": (lambda q, k: product(q, k).softmax(-1), "softmax", 2),
    "masked": (lambda q, k: (product(q, k) * 0.5).masked_fill(torch.eye(96).bool(), -9.0).softmax(-1), "softmax", 2),
    "einsum": (lambda q, k: torch.einsum("bhqd,bhkd->bhqk", q, k).softmax(-1), "softmax", 2),
    "folded": (lambda q, k: torch.bmm(q.flatten(0, 1), k.flatten(0, 1).mT).softmax(-1), "softmax", 2),
    "one head": (lambda q, k: product(q[:, 0], k[:, 0]).softmax(-1), "softmax", 1),
    "keys first": (lambda q, k: product(k[:, 0], q[:, 0]).unflatten(2, GRID).softmax(1), "softmax", 1),
    "module": (lambda q, k: nn.Softmax(dim=-1)(product(q, k)), "softmax", 2),
    "fused": (lambda q, k: F.scaled_dot_product_attention(q, k, k), "sdpa", 2),
    "fused folded": (lambda q, k: F.scaled_dot_product_attention(*[q.flatten(0, 1)] * 3), "sdpa", 2),
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("images", [1, 3])
def test_global_attention_is_found_in_every_form(name, images):
    weigh, kind, heads = KINDS[name]
    candidate = only(Host(Attention(weigh)), images=images)
    assert candidate.usable, candidate.reason
    assert candidate.site == AttentionSite(name="layer", kind=kind, heads=heads, queries=96, keys=96, channels=8)


def softmax_of_channels(q, k):
    (q.mT @ k).softmax(-1)


def linear_attention(q, k):
    q.softmax(-1) @ (k.softmax(-2).mT @ k)


NOT_ATTENTION = {
    "softmax of channels": (softmax_of_channels, 32, "channels of one of 2 heads"),
    "linear attention": (linear_attention, 32, "something else than a product"),
    "five dimensions": (lambda q, k: F.scaled_dot_product_attention(q[None], k[None], k[None]), 8, "not (B, heads"),
    "grouped queries": (
        lambda q, k: F.scaled_dot_product_attention(q, k[:, :1], k[:, :1], enable_gqa=True),
        8,
        "grouped queries",
    ),
    "over samples": (lambda q, k: product(q, k).softmax(0), 8, "over dimension 0"),
    "weights of branches": (lambda q, k: product(q, k[:, :, :3]).softmax(-1), 8, "3 keys only"),
    "words": (lambda q, k: product(q, k[:, :, :7]).softmax(-1), 8, "7 keys do not tile"),
    "windows of unknown size": (
        lambda q, k: product(
            q.unflatten(2, (6, 16)).transpose(1, 2).flatten(0, 1), k.unflatten(2, (6, 16)).transpose(1, 2).flatten(0, 1)
        ).softmax(-1),
        8,
        "`window_size`",
    ),
}


if "enable_gqa" not in F.scaled_dot_product_attention.__doc__:  # came with torch 2.5
    del NOT_ATTENTION["grouped queries"]


@pytest.mark.parametrize("name", NOT_ATTENTION)
def test_what_is_no_attention_over_the_image_is_listed_with_the_reason(name):
    weigh, width, reason = NOT_ATTENTION[name]
    host = Host(Attention(weigh, width))
    host.stem = nn.Conv2d(3, width, 1)
    size = (64, 64) if width == 32 else SIZE  # 16 channels of a head look like a grid of 4 x 4 on a square image
    candidates = found(host, size)
    assert candidates
    for candidate in candidates:
        assert not candidate.usable
        assert reason in candidate.reason
    assert choose_attention(candidates) == ()


def test_words_as_many_as_a_grid_of_places_are_told_by_the_argument():
    layer = Attention(lambda q, k: F.scaled_dot_product_attention(q, k, k))
    candidate = only(Host(layer), SIZE, torch.rand(2, 24, 8))
    assert not candidate.usable
    assert "another argument" in candidate.reason


def test_keys_on_a_coarser_grid_are_usable():
    def reduced(q, k):
        (q @ F.avg_pool2d(k.flatten(0, 1).mT.unflatten(2, GRID), 2).flatten(2).unflatten(0, (-1, 2))).softmax(-1)

    candidate = only(Host(Attention(reduced)))
    assert candidate.usable
    assert (candidate.site.queries, candidate.site.keys) == (96, 24)


def test_a_grid_that_is_too_small_says_nothing():
    candidate = only(Host(Attention(KINDS["softmax"][0]), stride=16))
    assert "6 queries" in candidate.reason


class TwoHeads(nn.Module):
    """``nn.MultiheadAttention`` on a map."""

    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **{"batch_first": True, **options})

    def forward(self, feature):
        tokens = feature.flatten(2).mT if self.attention.batch_first else feature.flatten(2).permute(2, 0, 1)
        self.attention(tokens, tokens, tokens)
        return feature


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
def test_multihead_attention_is_one_layer_with_nothing_inside(training, batch_first):
    candidate = only(Host(TwoHeads(batch_first=batch_first)).train(training))
    assert candidate.usable
    assert candidate.site == AttentionSite(name="layer.attention", kind="mha", heads=2, queries=96, keys=96, channels=8)


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_multihead_attention_with_keys_of_its_own_is_refused(options):
    assert "add_bias_kv or add_zero_attn" in only(Host(TwoHeads(**options))).reason


class Loop(nn.Module):
    """DeepFill's: two attentions for each sample, one sample at a time."""

    def forward(self, feature):
        for sample in feature.split(1):
            score = F.conv2d(sample, sample[0].flatten(1).T[:, :, None, None])
            F.softmax(score, dim=1)
            F.softmax(2 * score, dim=1)
        return feature


@pytest.mark.parametrize("images", [1, 3])
def test_a_loop_over_the_samples_is_one_attention(images):
    candidates = found(Host(Loop()), images=images)
    assert [(each.site.index, each.usable, each.site.heads) for each in candidates] == [(0, True, 1), (1, True, 1)]


class Root(nn.Module):
    """Attention in a method of the root, around a layer called twice."""

    def __init__(self):
        super().__init__()
        self.layer = Attention(KINDS["softmax"][0])
        self.stem = nn.Conv2d(3, 8, 4, 4)

    def attend(self, feature):
        tokens = feature.flatten(2)
        return (tokens @ (tokens.mT @ tokens).softmax(-1)).unflatten(2, feature.shape[2:])

    def forward(self, image):
        return self.layer(self.attend(self.layer(self.stem(image))))


def test_attention_of_the_root_and_repeated_calls_are_told_apart_in_order_of_running():
    host = Root()
    candidates = found(host)
    assert [(each.site.name, each.site.call, each.site.index) for each in candidates] == [
        ("layer", 0, 0),
        ("", 0, 1),
        ("layer", 1, 0),
    ]
    image = torch.rand(2, 3, *SIZE)
    taps = AttentionTaps(host, [each.site for each in candidates])
    taps.begin()
    host(image)
    first, root, second = taps.take()
    tokens = host.stem(image).flatten(2)
    torch.testing.assert_close(root.rows[:, 0], (tokens.mT @ tokens).softmax(-1))
    assert first.rows.shape == second.rows.shape == (2, 2, 96, 96)


class Windows(nn.Module):
    """Swin's: roll, cut into windows, attend within, and remember the tokens of every window."""

    def __init__(self, window, shift=(0, 0), told=True):
        super().__init__()
        self.size, self.shift = window, shift
        if told:
            self.window_size, self.shift_size = window, shift

    def forward(self, feature):
        height, width = self.size
        value = torch.roll(feature, (-self.shift[0], -self.shift[1]), (2, 3))
        value = F.pad(value, (0, -value.shape[3] % width, 0, -value.shape[2] % height))
        value = value.permute(0, 2, 3, 1).unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)
        self.tokens = value.reshape(-1, height * width, feature.shape[1])
        self.weights = (self.tokens @ self.tokens.mT).softmax(-1)
        return feature


@given(
    window=st.tuples(st.sampled_from([2, 4, 8]), st.sampled_from([2, 3, 4, 6])),
    shift=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    images=st.integers(1, 3),
)
def test_tokens_of_windows_lie_in_the_order_of_the_windows(window, shift, images):
    host = Host(Windows(window, shift))
    candidate = only(host, images=images)
    assert candidate.usable, candidate.reason
    site = candidate.site
    assert site.windows == (8 // window[0], 12 // window[1])
    image = torch.rand(images, 3, *SIZE)
    taps = AttentionTaps(host, [site])
    taps.begin()
    feature = host(image)
    (seen,) = taps.take()
    lead, heads, count, _ = seen.rows.shape
    assert heads == 1
    assert site.grid(count, lead, images, SIZE) == GRID
    # One window along an axis has nothing to be shifted against: the hosts do not shift it, and the toy's roll is moot.
    moved = [0 if number > 1 else by for number, by in zip(site.windows, shift, strict=True)]
    expected = site.tokens(torch.roll(feature, [-by for by in moved], (2, 3)), count, lead, SIZE)
    assert torch.equal(host.layer.tokens, expected)


@given(side=st.sampled_from([3, 5, 7]), images=st.integers(1, 2))
def test_windows_over_a_padded_map_are_usable_unless_shifted(side, images):
    host = Host(Windows((side, side)))
    site = only(host, images=images).site
    feature = host(torch.rand(images, 3, *SIZE))
    lead = images * site.windows[0] * site.windows[1]
    assert torch.equal(site.tokens(feature, side * side, lead, SIZE), host.layer.tokens)
    assert "padded or shifted first" in only(Host(Windows((side, side), (1, 1)))).reason


def test_windows_can_be_described_where_nothing_tells_their_size():
    host = Host(Windows((4, 4), told=False))
    candidates = found(host)
    with pytest.raises(PlanError, match="window"):
        named_attention(candidates, ["layer"])
    stated = AttentionSite(name="layer", kind="softmax", queries=16, keys=16, windows=(2, 3), window=(4, 4))
    assert named_attention(candidates, [stated]) == (stated,)
    feature = host(torch.rand(2, 3, *SIZE))
    assert torch.equal(stated.tokens(feature, 16, 12, SIZE), host.layer.tokens)


@given(
    size=st.tuples(st.integers(9, 40), st.integers(9, 40)),
    stride=st.sampled_from([1, 2, 4]),
    images=st.integers(1, 3),
)
def test_tokens_of_global_attention_are_row_major(size, stride, images):
    site = AttentionSite(name="layer", kind="sdpa")
    grid = -(-size[0] // stride), -(-size[1] // stride)
    feature = torch.rand(images, 4, *grid)
    count = grid[0] * grid[1]
    assert site.grid(count, images, images, size) == grid
    assert torch.equal(site.tokens(feature, count, images, size), feature.flatten(2).mT)


def test_tokens_that_do_not_work_out_are_refused():
    site = AttentionSite(name="layer", kind="softmax", window=(4, 4))
    for count, lead in ((95, 2), (96, 3), (16, 10), (15, 12), (96, 0)):
        with pytest.raises(PlanError, match="layer"):
            site.grid(count, lead, 2, SIZE)
    with pytest.raises(PlanError, match="8 x 12"):
        site.tokens(torch.rand(2, 1, 4, 6), 96, 2, SIZE)


def sites_of(host, size):
    return {each.site.label: each for each in found(host.eval(), size)}


def test_timm_s_swin_and_the_order_of_its_windows():
    host = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=(64, 96),
        window_size=4,
        embed_dim=8,
        depths=(2, 2, 2, 2),
        num_heads=(1, 2, 2, 4),
    )
    image = torch.rand(2, 3, 64, 96)
    candidates = sites_of(host, (64, 96))
    assert [each.site.windows for each in candidates.values()] == [(4, 6)] * 2 + [(2, 3)] * 2 + [(1, 2)] * 2 + [
        (1, 1)
    ] * 2
    shifted = candidates["layers.1.blocks.1.attn"].site
    assert (shifted.shift, shifted.heads, shifted.window, shifted.kind) == ((2, 2), 2, (4, 4), "softmax")
    entered = []
    host.layers[1].blocks[1].norm1.register_forward_hook(lambda module, args, output: entered.append(output))
    taps = AttentionTaps(host, [shifted])
    taps.begin()
    host(image)
    (seen,) = taps.take()
    expected = shifted.tokens(entered[0].permute(0, 3, 1, 2), 16, 12, (64, 96))
    assert torch.equal(seen.entering, expected)
    assert shifted.channels == 16
    assert torch.equal(shifted.entering_tokens(seen.entering, 16, 12, (64, 96)), expected)
    chosen = choose_attention(list(candidates.values()))
    assert [site.name for site in chosen] == [
        "layers.0.blocks.1.attn",
        "layers.1.blocks.1.attn",
        "layers.2.blocks.0.attn",
    ]


def test_the_encoder_of_a_segmentation_model_has_fewer_keys_than_queries():
    host = smp.Unet("mit_b0", encoder_weights=None, classes=3, decoder_attention_type="scse")
    candidates = sites_of(host, (64, 96))
    usable = {name: (each.site.queries, each.site.keys) for name, each in candidates.items() if each.usable}
    assert usable == {
        f"encoder.block{level}.{block}.attn": (queries, 6)
        for level, queries in ((1, 384), (2, 96), (3, 24))
        for block in range(2)
    }
    chosen = choose_attention(list(candidates.values()))
    assert [site.heads for site in chosen] == [1, 2, 5]


def test_the_class_token_of_a_vision_transformer_is_a_prefix():
    host = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=1, embed_dim=24)
    (candidate,) = found(host.eval(), (64, 64))
    assert candidate.usable
    assert (candidate.site.queries, candidate.site.keys, candidate.site.prefix) == (16, 17, 1)
    assert candidate.site.channels == 24


class NHWC(nn.Module):
    """Attention on a map with the channels last."""

    def forward(self, feature):
        tokens = feature.flatten(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).unflatten(1, feature.shape[1:3])


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_the_feature_that_enters_is_read_in_the_order_of_the_queries(layout):
    layer = Attention(KINDS["softmax"][0]) if layout == "NCHW" else NHWC()
    host = nn.Sequential(nn.Conv2d(3, 10, 4, 4), layer if layout == "NCHW" else Last(layer))
    if layout == "NCHW":
        layer.query, layer.key = nn.Conv2d(10, 8, 1), nn.Conv2d(10, 8, 1)
    site = only(host).site
    assert site.channels == 10
    image = torch.rand(2, 3, *SIZE)
    taps = AttentionTaps(host, [site])
    taps.begin()
    host(image)
    (seen,) = taps.take()
    assert torch.equal(site.entering_tokens(seen.entering, 96, 2, SIZE), host[0](image).flatten(2).mT.detach())


class Last(nn.Module):
    """Show a layer the map with the channels last."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, feature):
        return self.layer(feature.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("adapter", [ContextualAttentionAdapter(), GatedConvAdapter()], ids=lambda each: each.name)
def test_the_attention_of_our_own_hosts(adapter):
    image, mask = batch(size=64)
    host = adapter.build()
    candidates = find_attention(host, lambda: adapter.outputs(host, image, mask), (64, 64))
    (site,) = choose_attention(candidates)
    assert named_attention(candidates, adapter.attention(host)) == (site,)
    taps = AttentionTaps(host, [site], logits=True)
    taps.begin()
    adapter.outputs(host, image, mask)
    (seen,) = taps.take()
    torch.testing.assert_close(seen.logits.softmax(-1), seen.rows)
    assert site.grid(seen.rows.shape[2], len(image), len(image), (64, 64)) == (8, 8)


def test_the_last_of_each_grid_is_chosen_at_most_four():
    class Many(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                Host(Attention(KINDS["softmax"][0]), stride) for stride in (1, 2, 4, 4, 8, 2, 4)
            )

        def forward(self, image):
            for layer in self.layers:
                layer(image)
            return image

    chosen = choose_attention(found(Many(), (16, 24)))
    assert [site.name for site in chosen] == ["layers.0.layer", "layers.5.layer", "layers.6.layer"]


def test_names_globs_and_sites_are_resolved_in_the_order_given():
    host = nn.Sequential(Host(Attention(KINDS["softmax"][0])), nn.Conv2d(8, 3, 1), Host(Attention(linear_attention), 1))
    candidates = found(host)
    site = candidates[0].site
    assert named_attention(candidates, ["0.*"]) == named_attention(candidates, ["0.layer", "*layer"]) == (site,)
    assert named_attention(candidates, [site]) == (site,)
    assert named_attention(candidates, [AttentionSite(name="0.layer", kind="softmax")]) == (site,)
    with pytest.raises(PlanError, match=r"2\.layer: a softmax of something else"):
        named_attention(candidates, ["0.layer", "2.layer"])
    with pytest.raises(PlanError, match=r"such as 0\.layer"):
        named_attention(candidates, ["0.laier"])
    with pytest.raises(PlanError, match="no attention was computed"):
        named_attention(candidates, [AttentionSite(name="0.layer", kind="softmax", index=3)])


def test_a_dry_run_leaves_nothing_behind():
    host = nn.Sequential(Host(nn.Sequential(nn.BatchNorm2d(8), Attention(KINDS["softmax"][0]), nn.Dropout())))
    before, notes, random = copy.deepcopy(host.state_dict()), footprint(host), torch.get_rng_state()
    assert found(host)
    assert same(dict(host.state_dict()), dict(before))
    assert footprint(host) == notes
    assert torch.equal(torch.get_rng_state(), random)
    with pytest.raises(RuntimeError):
        find_attention(host, lambda: host(torch.rand(2, 5, *SIZE)), SIZE)
    assert footprint(host) == notes
    assert not overrides._get_current_function_mode_stack()


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="needs torch 2.6, which runs a graph as written")
def test_a_compiled_host_is_read_as_it_was_written():
    host = Host(Attention(KINDS["softmax"][0]))
    compiled = torch.compile(host, backend="eager")
    compiled(torch.rand(2, 3, *SIZE))
    (candidate,) = found(compiled)
    assert candidate.usable
    assert candidate.site.name == "_orig_mod.layer"


# -- before the decoder ------------------------------------------------------------------------------------------------


def candidate(name, queries, call=0, *, usable=True):
    site = AttentionSite(name=name, call=call, kind="softmax", queries=queries, keys=queries)
    return AttentionCandidate(site, usable)


def test_of_one_grid_a_layer_before_the_decoder_goes_before_those_of_the_decoder():
    layers = [candidate(name, queries) for name, queries in (("a", 64), ("b", 64), ("c", 16), ("d", 64), ("e", 256))]

    def chosen(*before):
        return [site.name for site in choose_attention(layers, {(name, 0) for name in before})]

    assert [site.name for site in choose_attention(layers)] == ["c", "d", "e"]
    assert chosen("a", "b", "c") == ["b", "c", "e"]
    assert chosen("a") == ["a", "c", "e"]
    assert chosen() == ["c", "d", "e"]


def test_a_layer_before_the_decoder_that_cannot_be_used_makes_room_for_a_later_one():
    layers = [candidate("early", 64, usable=False), candidate("late", 64)]
    assert [site.name for site in choose_attention(layers, {("early", 0)})] == ["late"]


def test_calls_of_one_layer_before_and_in_the_decoder_are_told_apart():
    layers = [candidate("shared", 64), candidate("shared", 64, call=1)]
    assert [site.call for site in choose_attention(layers, {("shared", 0)})] == [0]
    assert [site.call for site in choose_attention(layers)] == [1]


class AttentiveUNet(nn.Module):
    """Attends at two resolutions on the way down, and at the same ones on the way up."""

    def __init__(self, down=True):
        super().__init__()
        weigh = KINDS["softmax"][0]
        self.one, self.two, self.three = nn.Conv2d(4, 8, 3, 1, 1), nn.Conv2d(8, 8, 2, 2), nn.Conv2d(8, 8, 2, 2)
        self.down = Attention(weigh) if down else nn.Identity()
        self.bottom, self.up = Attention(weigh), Attention(weigh)
        self.out = nn.ConvTranspose2d(8, 3, 2, 2)

    def forward(self, x):
        x = self.down(self.two(self.one(x)))
        x = self.bottom(self.three(x))
        return self.out(self.up(F.interpolate(x, scale_factor=2)))


@pytest.mark.parametrize(("down", "expected"), [(True, ["down", "bottom"]), (False, ["bottom", "up"])])
def test_a_plan_taps_attention_of_the_encoder_and_that_of_the_decoder_only_where_there_is_no_other(down, expected):
    image, mask = batch()
    plan = inpaint_distill.plan(AttentiveUNet(down), image, mask)
    assert [site.name for site in plan.attention] == expected
    assert len(plan.candidates) == 2 + down
    assert ("attention not tapped: up" in str(plan)) is down


def test_the_stages_of_a_plan_given_back_by_name_tap_the_same_attention():
    image, mask = batch()
    found = inpaint_distill.plan(AttentiveUNet(), image, mask)
    again = inpaint_distill.plan(AttentiveUNet(), image, mask, stages=found.stages)
    assert again.stages == found.stages
    assert again.attention == found.attention


def test_a_teacher_s_forward_ends_before_the_decoder_where_all_attention_is_before_it():
    host = AttentiveUNet()
    image, mask = batch()
    distiller = inpaint_distill.attach(host, image=image, mask=mask, config={"warmup": 0, "balance": "none"})
    ran = []
    teacher = distiller._teacher.module
    for name in ("bottom", "up"):
        getattr(teacher, name).register_forward_pre_hook(lambda module, args, name=name: ran.append(name))
    for _ in range(2):
        ran.clear()  # at the first loss it is also looked up what the teacher need not run
        host(torch.cat([image * (1 - mask), mask], 1))
        assert distiller.loss(image, mask) > 0
    assert ran == ["bottom"]


# -- where attention sits, and what of it is written down --------------------------------------------------------------


def swin(window, shift, told, size=SIZE, images=2):
    """Return the candidate of Swin's attention whose window and shift are said by attributes as in ``told``."""
    host = Host(Windows(window, shift, told=False))
    for owner, attributes in told.items():
        for name, value in attributes.items():
            setattr(host.get_submodule(owner), name, value)
    return only(host, size, images=images)


@pytest.mark.parametrize(
    ("window", "shift", "windows", "expected"),
    [
        ((4, 4), (2, 1), (2, 3), (2, 1)),
        ((8, 4), (2, 1), (1, 3), (0, 1)),
        ((4, 12), (2, 1), (2, 1), (2, 0)),
        ((2, 6), (1, 3), (4, 2), (1, 3)),
        ((4, 4), (0, 0), (2, 3), (0, 0)),
    ],
)
def test_windows_are_shifted_only_along_an_axis_that_has_several(window, shift, windows, expected):
    candidate = swin(window, shift, {"layer": {"window_size": window, "shift_size": shift}})
    assert candidate == AttentionCandidate(
        AttentionSite(
            name="layer",
            kind="softmax",
            queries=window[0] * window[1],
            keys=window[0] * window[1],
            windows=windows,
            window=window,
            shift=expected,
            channels=8,
        ),
        True,
    )


@pytest.mark.parametrize(
    ("told", "usable"),
    [
        ({"layer": {"window_size": 4}}, True),
        ({"layer": {"window_size": [4, 4]}}, True),
        ({"": {"window_size": (4, 4)}}, True),
        ({"layer": {"window_size": "4"}, "": {"window_size": 4}}, True),
        ({"layer": {"window_size": (4, 4, 4)}, "": {"window_size": 4}}, True),
        ({"layer": {"window_size": (4, 4.0)}}, False),
        ({"layer": {"window_size": (2, 8)}}, False),
        ({"layer": {"window_size": 2}, "": {"window_size": 4}}, False),
        ({"stem": {"window_size": 4}}, False),
    ],
)
def test_the_size_of_windows_is_read_from_the_module_or_the_nearest_one_above(told, usable):
    candidate = swin((4, 4), (0, 0), told)
    assert candidate.usable is usable
    assert candidate.site.windows == ((2, 3) if usable else (1, 1))
    if not usable:
        assert candidate.reason == "16 queries do not tile an image of 32 x 48"


def test_windows_may_tile_a_grid_of_as_few_tokens_as_a_map_may_have():
    host = Host(Windows((2, 2)), stride=8)
    assert only(host, (32, 32)).usable  # 4 x 4
    assert only(host, (32, 24)).reason == "a grid of 4 x 3 only"


def attending(weigh):
    host = Host(Attention(weigh))
    return only(host)


def pooled(keys):
    return lambda q, k: product(q, F.adaptive_avg_pool1d(k.flatten(0, 1).mT, keys).mT.unflatten(0, (-1, 2))).softmax(-1)


@pytest.mark.parametrize(("keys", "usable"), [(24, True), (6, True), (96, True), (48, False), (95, False), (3, False)])
def test_keys_may_be_as_many_as_the_places_of_any_coarser_grid(keys, usable):
    candidate = attending(pooled(keys))
    assert candidate.usable is usable
    assert (candidate.site.queries, candidate.site.keys, candidate.site.prefix) == (96, keys, 0)


def test_four_keys_are_enough_and_sixteen_queries():
    host = Host(Attention(pooled(4)), stride=4)
    candidate = only(host, (16, 16))
    assert candidate.usable
    assert (candidate.site.queries, candidate.site.keys) == (16, 4)


@pytest.mark.parametrize("prefix", range(10))
def test_up_to_eight_tokens_may_come_before_those_of_the_image(prefix):
    class Prefixed(nn.Module):
        def forward(self, feature):
            tokens = feature.flatten(2).mT
            return self.layer(torch.cat([tokens.new_zeros(len(tokens), prefix, 8), tokens], 1)).mean()

    class Layer(nn.Module):
        def forward(self, tokens):
            product(tokens, tokens).softmax(-1)
            return tokens

    outer = Prefixed()
    outer.layer = Layer()
    candidate = only(Host(outer))
    assert candidate.site.name == "layer.layer"
    assert candidate.usable is (prefix <= 8)
    if prefix <= 8:
        assert (candidate.site.queries, candidate.site.keys, candidate.site.prefix) == (96, 96 + prefix, prefix)
        assert candidate.site.channels == 8
    else:
        assert candidate.reason == "105 queries do not tile an image of 32 x 48"
        assert (candidate.site.queries, candidate.site.prefix) == (105, 0)


class Shaped(nn.Module):
    """Attends over 96 places whatever it is given."""

    def forward(self, value):
        tokens = torch.rand(2, 96, 4)
        product(tokens, tokens).softmax(-1)
        return value


@pytest.mark.parametrize(
    ("shape", "channels"),
    [
        ((2, 96, 5), 5),
        ((2, 95, 5), 0),
        ((1, 96, 5), 0),
        ((2, 5, 8, 12), 5),
        ((2, 8, 12, 5), 5),
        ((2, 5, 16, 24), 5),
        ((2, 9, 9, 5), 0),
        ((2, 8, 12, 8), 0),
        ((2, 5), 0),
    ],
)
def test_the_channels_of_what_enters_are_known_where_it_is_a_map_or_the_queries_tokens(shape, channels):
    host = nn.Sequential(Shaped())
    candidates = find_attention(host, lambda: (host[0](torch.zeros(2, 3, *SIZE)), host[0](torch.zeros(shape))), SIZE)
    assert [each.usable for each in candidates] == [True, True]
    assert [each.site.call for each in candidates] == [0, 1]
    assert [each.site.channels for each in candidates] == [3, channels]


def test_a_layer_without_arguments_has_no_channels():
    class Source(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Shaped()

        def forward(self, image):
            self.inner(None)
            return image

    (candidate,) = found(Source())
    assert candidate.usable
    assert candidate.site == AttentionSite(name="inner", kind="softmax", queries=96, keys=96)


def test_attention_belongs_to_the_innermost_module_that_is_no_softmax():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.softmax = Attention(KINDS["module"][0]), nn.Softmax(-1)

        def forward(self, feature):
            tokens = feature.flatten(2).mT
            self.softmax(product(tokens, tokens))
            self.inner(feature)
            self.softmax(product(tokens, tokens))
            return feature

    candidates = found(Host(Outer()))
    assert [(each.site.name, each.site.call, each.site.index) for each in candidates] == [
        ("layer", 0, 0),
        ("layer.inner", 0, 0),
        ("layer", 0, 2),
    ]
    assert all(each.usable for each in candidates)


@pytest.mark.parametrize(
    "make",
    [
        lambda q, k: torch.baddbmm(torch.zeros(4, 96, 96), q.flatten(0, 1), k.flatten(0, 1).mT),
        lambda q, k: torch.cdist(q, k).neg(),
        lambda q, k: torch.stack([torch.mm(each, each.mT) for each in q.flatten(0, 1)]).add(1).mul(2),
        lambda q, k: torch.matmul(q, k.mT).clamp_max(3),
        lambda q, k: torch.where(torch.eye(96).bool(), torch.tensor(-1.0), torch.matmul(q, k.mT)),
    ],
    ids=["baddbmm", "cdist", "mm", "clamped", "chosen"],
)
def test_a_softmax_of_any_product_of_two_features_is_attention(make):
    candidate = attending(lambda q, k: make(q, k).softmax(-1))
    assert candidate.usable, candidate.reason
    assert candidate.site.heads == 2


def test_a_softmax_of_a_projection_is_no_attention_also_after_a_product():
    layer = nn.Linear(96, 96)
    candidate = attending(lambda q, k: layer(product(q, k)).softmax(-1))
    assert candidate.reason == "a softmax of something else than a product of two features: no queries and keys"
    assert (candidate.site.queries, candidate.site.keys, candidate.site.heads) == (96, 96, 2)
