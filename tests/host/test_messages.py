"""What is refused is said word for word: what was asked, what was found instead, and what to do."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention.bias import causal_lower_right

from inpaint_distill.errors import CaptureError, ConfigError, PlanError, ReplayError
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.attention_calls import read_function, read_mha
from inpaint_distill.host.attention_choice import AttentionCandidate, named_attention
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.attention_taps import AttentionTaps
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import Convention, find_convention
from inpaint_distill.host.discovery import find_encoders
from inpaint_distill.host.dry_run import trace_call, trace_sizes
from inpaint_distill.host.explain import derive_recipe
from inpaint_distill.host.hole import HoleSource
from inpaint_distill.host.named_stages import named_stages
from inpaint_distill.host.outputs import restored_images
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.host.trace import trace_forward
from inpaint_distill.host.wrappers import check_whole

ADAPTER = "write an Adapter with `outputs` and `replayable = False`, and pass it: attach(..., adapter=...)"
OTHER_LAYER = "tap another attention layer, or none: attach(..., attention=[...]); compile the model after attaching"


class Two(Adapter):
    """Knows two classes that nobody has."""

    name = "two"
    variants = (
        Variant(source="a/b", kind="First", has=(), convention=Convention("image")),
        Variant(source="c", kind="Second", has=(), convention=Convention("image")),
    )


class Picture(nn.Module):
    """A host with argument names."""

    def forward(self, picture, condition=None):
        return picture


class Set(Picture):
    """A host that was given its mask by a method."""

    def __init__(self, mask):
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("hole", mask)


class Stem(nn.Module):
    """A convolution that is run, one that is bypassed, and one that is not run."""

    def __init__(self):
        super().__init__()
        self.used, self.bypassed = nn.Conv2d(3, 8, 2, 2), nn.Conv2d(8, 8, 1)

    def forward(self, image):
        return self.bypassed._conv_forward(self.used(image), self.bypassed.weight, None).mean()


class FullyShardedDataParallel(nn.Module):
    """Stands for torch's class, by its name and its package."""

    __module__ = "torch.distributed.fsdp"


class Attends(nn.Module):
    """A softmax over as many tokens as it is given."""

    def forward(self, tokens):
        self.rows = (tokens @ tokens.mT).softmax(-1)
        return tokens


def pixels(count=2):
    image = torch.rand(count, 3, 8, 12)
    mask = torch.zeros(count, 1, 8, 12)
    mask[..., 2:5, 3:7] = 1
    return image, mask


def derive(host, *args, image=None, mask=None):
    given_image, given_mask = pixels()
    return derive_recipe(
        host, HostCall(args), given_image if image is None else image, given_mask if mask is None else mask
    )


def traced(host=None):
    host = host or Stem()
    return trace_forward(host, lambda: host(torch.rand(2, 3, 16, 24)), (16, 24))


def attend(taps, host, value):
    taps.begin()
    host(value)
    return taps.take()


def overwritten_attention():
    host = Attends()
    taps = AttentionTaps(host, [AttentionSite(name="", kind="softmax", call=0)])
    taps.begin()
    host(torch.rand(2, 4, 8))
    host.rows.add_(1)
    taps.take()


def take_feature(change):
    host = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(inplace=change), nn.ReLU())
    taps = FeatureTaps(host, [Stage(name="0"), Stage(name="1", call=1), Stage(name="2", call=3)][: 1 if change else 3])
    taps.begin()
    host(torch.rand(1, 3, 4, 4))
    taps.take()


def keep_feature():
    host = nn.Sequential(nn.Identity())
    taps = FeatureTaps(host, [Stage(name="0", select=(1,))])
    taps.begin()
    host([torch.rand(1)])


def replay_another_batch():
    image, mask = pixels(3)
    derive(Picture(), image, image=image[:2], mask=mask[:2])


def replay_noise():
    image, _ = pixels()
    noise = torch.linspace(-1, 1, 192).view(2, 1, 8, 12) ** 3
    derive(Picture(), torch.cat([image, noise], 1), image=image)


def replay_inverted():
    image, mask = pixels()
    derive(Picture(), image * (1 - mask), image=image, mask=1 - mask)


def target_of_latents():
    image, mask = pixels()
    call = HostCall((torch.cat([image[:, :1] * (1 - mask), mask], 1),))
    derive_recipe(Picture(), call, image, mask).target(call, image)


def mask_beside():
    image, mask = pixels()
    derive(Set(mask), image * (1 - mask), image=image, mask=mask)


SITE = AttentionSite(name="attn", kind="softmax", window=(4, 4))
CANDIDATES = [
    AttentionCandidate(AttentionSite(name="a", kind="sdpa"), False, "3 keys only"),
    AttentionCandidate(AttentionSite(name="a", kind="sdpa", index=1), False, "words"),
    AttentionCandidate(AttentionSite(name="b", kind="sdpa"), True),
]

REFUSED = {
    "an adapter's unknown host": (
        lambda: Two().convention(nn.DataParallel(nn.ReLU())),
        PlanError,
        "how adapter 'two' calls a ReLU",
        "it knows First of a/b, Second of c",
        "give another adapter, or one of your own with this class in `variants`, or with `outputs`",
    ),
    "a nameless adapter's unknown host": (
        lambda: Adapter().convention(nn.ReLU()),
        PlanError,
        "how adapter 'Adapter' calls a ReLU",
        "it knows none",
        "give another adapter, or one of your own with this class in `variants`, or with `outputs`",
    ),
    "tokens that do not tile the image": (
        lambda: AttentionSite(name="attn", kind="sdpa", call=1, index=2).grid(95, 2, 2, (32, 48)),
        PlanError,
        "the tokens of attention attn (call 1) (attention 2) as places of an image of 32 x 48",
        "2 maps of 95 queries for 2 images",
        "leave this layer out: attach(..., attention=['module.name', ...])",
    ),
    "maps that are no multiple of the images": (
        lambda: SITE.grid(96, 3, 2, (32, 48)),
        PlanError,
        "the tokens of attention attn as places of an image of 32 x 48",
        "3 maps of 96 queries for 2 images",
        "leave this layer out: attach(..., attention=['module.name', ...])",
    ),
    "a map on another grid": (
        lambda: SITE.tokens(torch.zeros(2, 1, 4, 6), 96, 2, (32, 48)),
        PlanError,
        "a map of 8 x 12 for attention attn",
        "a map of 4 x 6",
        "resample the map to `grid(...)` first",
    ),
    "a window of unknown sides": (
        lambda: SITE.grid(15, 12, 2, (32, 48)),
        PlanError,
        "windows of attention attn",
        "15 tokens: neither 4 x 4 nor a square",
        "give their size: AttentionSite(..., window=(rows, columns))",
    ),
    "a layer of no use": (
        lambda: named_attention(CANDIDATES, ["b", "a"]),
        PlanError,
        "attention 'a'",
        "a: 3 keys only; a (attention 1): words",
        "name another layer, or describe this one: AttentionSite(name=..., kind=..., queries=..., window=...)",
    ),
    "a layer that did not run": (
        lambda: named_attention(CANDIDATES, [AttentionSite(name="c", kind="mha")]),
        PlanError,
        "attention 'c'",
        "no attention was computed under that name in the host's forward",
        "use a layer that runs, such as a, b",
    ),
    "attention of a module that is not there": (
        lambda: AttentionTaps(nn.Sequential(nn.ReLU()), [AttentionSite(name="1", kind="sdpa")]),
        PlanError,
        "attention '1'",
        "no such module",
        "use an existing name, such as , 0",
    ),
    "attention of another kind": (
        lambda: AttentionTaps(nn.Sequential(nn.ReLU()), [AttentionSite(name="0", kind="mha", call=1)]),
        PlanError,
        "attention 0 (call 1) of kind 'mha'",
        "a ReLU",
        "leave the kind to the dry run",
    ),
    "a call of another kind": (
        lambda: attend(
            AttentionTaps(host := Attends(), [AttentionSite(name="", kind="sdpa")]), host, torch.rand(2, 4, 8)
        ),
        CaptureError,
        "attention  (sdpa)",
        "a call of kind 'softmax'",
        OTHER_LAYER,
    ),
    "a call that is refused": (
        lambda: attend(
            AttentionTaps(host := Attends(), [AttentionSite(name="", kind="softmax")]), host, torch.rand(2, 2, 2, 4, 8)
        ),
        CaptureError,
        "attention  (softmax)",
        "a softmax over dimension -1 of (2, 2, 2, 4, 4): not a map of queries and keys",
        OTHER_LAYER,
    ),
    "attention that did not run": (
        lambda: attend(
            AttentionTaps(
                host := nn.Sequential(Attends()),
                [AttentionSite(name="0", kind="softmax", call=each, index=each) for each in range(3)],
            ),
            host,
            torch.rand(2, 4, 8),
        ),
        CaptureError,
        "the attention of 0 (call 1) (attention 1), 0 (call 2) (attention 2)",
        "the forward ended without it: its module was skipped or called fewer times than planned, "
        "or the model was compiled before the taps were put on it",
        OTHER_LAYER,
    ),
    "attention overwritten": (
        overwritten_attention,
        CaptureError,
        "the attention of ",
        "a later operation overwrote it in place",
        OTHER_LAYER,
    ),
    "a word that is not there": (
        lambda: Convention("image+holes"),
        ConfigError,
        "argument word 'holes'",
        "no word of that name",
        "use one of hole, whole, hole3, ones, noisy",
    ),
    "an output that is not there": (
        lambda: Convention("image", outputs=((0,), (1, "x"))).unpack((torch.zeros(1),)),
        ReplayError,
        "restored images at (0,), (1, 'x') of the host's output",
        "no member 1 in a tuple with [0]",
        "correct the convention's `outputs`",
    ),
    "a host under no convention": (
        lambda: find_convention(nn.Conv2d(9, 3, 1), *pixels()),
        PlanError,
        "a dry run of Conv2d on an image and a mask",
        "it runs under none of: host(cat[image, hole]), host(image, hole), host(cat[image, ones, hole]), "
        "host(cat[image, ones, hole], hole), host(image, known3), host(image)",
        "leave image and mask out of attach(), so that your own first call is used, or pass an adapter with `outputs`",
    ),
    "no encoder": (
        lambda: find_encoders(traced(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU()))),
        PlanError,
        "an encoder: maps whose resolution falls from one module to the next",
        "none in 3 module calls on an image of 16 x 24",
        "name the stages: attach(..., stages=['module.name', ...]), shallow to deep",
    ),
    "a hole that is not in the call": (
        lambda: HoleSource(path=(2, "mask"), channel=0, slope=1, bias=0).read((1, 2), {"a": 1, "b": 2}),
        CaptureError,
        "the hole in argument 2['mask'] of the host's call",
        "2 positional arguments and a, b",
        "call the host as it was called when its completion blocks were injected",
    ),
    "a hole that is not in a call without keywords": (
        lambda: HoleSource(path=("mask",), channel=0, slope=1, bias=0, also=1).read((1,), {}),
        CaptureError,
        "the hole in argument 'mask' of the host's call",
        "1 positional arguments and no keywords",
        "call the host as it was called when its completion blocks were injected",
    ),
    "a stage that did not run": (
        lambda: named_stages(traced(), ["usd"]),
        PlanError,
        "stage 'usd'",
        "no module of that name ran in the host's forward",
        "use a module that runs, such as used",
    ),
    "a stage that is bypassed": (
        lambda: named_stages(traced(), [Stage(name="by*")]),
        PlanError,
        "stage 'by*'",
        "bypassed did not run in the host's forward: its forward is bypassed, or another one is called",
        "use a module that runs, such as used",
    ),
    "a stage by a function of unknown shape": (
        lambda: named_stages(traced(), [Stage(name="use*", select=len, channels=8)]),
        PlanError,
        "stage used by len",
        "a function that chooses the feature, of which the dry run sees no shape",
        "say what it gives: Stage(name=..., select=..., channels=..., stride=...)",
    ),
    "a described stage of a call that is not there": (
        lambda: named_stages(traced(), [Stage(name="used", call=2, channels=8, stride=2)]),
        PlanError,
        "stage used (call 2)",
        "1 calls of used",
        "use a call below 1",
    ),
    "a stage without a map": (
        lambda: named_stages(traced(), [Stage(name="us*", select=(1,), call=0)]),
        PlanError,
        "a feature map from stage 'used[1]', call 0",
        "outputs of shape [(2, 8, 8, 12)] for an image of (16, 24)",
        "name a module whose output is (B, C, H, W), (B, H, W, C) or (B, N, C) at a power-of-two stride, or "
        "describe it: Stage(name=..., select=..., layout=..., channels=..., stride=...)",
    ),
    "a stage of a call that is not there": (
        lambda: named_stages(traced(), [Stage(name="used", call=3)]),
        PlanError,
        "a feature map from stage 'used (call 3)', call 3",
        "outputs of shape no tensor for an image of (16, 24)",
        "name a module whose output is (B, C, H, W), (B, H, W, C) or (B, N, C) at a power-of-two stride, or "
        "describe it: Stage(name=..., select=..., layout=..., channels=..., stride=...)",
    ),
    "no restored image": (
        lambda: restored_images([torch.zeros(2, 3, 4, 4), torch.zeros(1)], torch.zeros(2, 3, 4, 4), "try again"),
        ReplayError,
        "the restored image among the host's outputs",
        "outputs of shape [(2, 3, 4, 4), (1,)], none of them (2, 3, 4, 4) with a gradient",
        "try again",
    ),
    "no image to restore": (
        target_of_latents,
        ReplayError,
        "the complete image in the host's own range",
        "no argument of the host carries three image channels",
        f"use teacher='ema', which needs features alone, or {ADAPTER}",
    ),
    "no known pixel": (
        lambda: derive(Picture(), torch.zeros(2, 3, 8, 12), mask=torch.ones(2, 1, 8, 12)),
        ReplayError,
        "which channels of the host's arguments are image and mask",
        "no known pixel in the first batch: the mask is 1 everywhere",
        "give the mask as 1 = hole, and begin with a batch that has known pixels",
    ),
    "no image in the call": (
        lambda: derive(Picture(), pixels()[1], torch.zeros(2, 7)),
        ReplayError,
        "the image among the arguments of the host's call",
        "argument 'picture' (2, 1, 8, 12), argument 'condition' (2, 7): none carries the image given to loss()",
        ADAPTER,
    ),
    "no tensor in the call": (
        lambda: derive(Picture()),
        ReplayError,
        "the image among the arguments of the host's call",
        "no tensor argument: none carries the image given to loss()",
        ADAPTER,
    ),
    "a mask that was set beside the call": (
        mask_beside,
        ReplayError,
        "the mask among the arguments of the host's call",
        "none carries it, but inner.hole holds it: a teacher would keep that of the first batch",
        f"put the host into a module whose forward takes the mask and sets it, or {ADAPTER}",
    ),
    "another batch size": (
        replay_another_batch,
        ReplayError,
        "image or mask in argument 'picture'",
        "shape (3, 3, 8, 12) beside an image of shape (2, 3, 8, 12)",
        "run the host on the batch given to loss()",
    ),
    "a channel of noise": (
        replay_noise,
        ReplayError,
        "channel 3 of argument 'picture' in terms of the image and the mask given to loss()",
        "values from -1 to 1, size (8, 12): neither constant, nor the mask, nor the image at the known pixels",
        "give loss() the very image and mask that the host ran on; if the host takes something else (noise, edges, "
        f"latents), {ADAPTER}",
    ),
    "an inverted mask": (
        replay_inverted,
        ReplayError,
        "channel 0 of argument 'picture' in terms of the image and the mask given to loss()",
        "it matches the image inside the mask: the mask is 1 where pixels are known",
        "give loss() the mask as 1 = hole: distiller.loss(image, 1 - mask)",
    ),
    "a stage of a module that is not there": (
        lambda: FeatureTaps(nn.Sequential(nn.ReLU()), [Stage(name="1")]),
        PlanError,
        "stage '1'",
        "no such module",
        "use an existing name, such as , 0",
    ),
    "a feature that is not there": (
        keep_feature,
        CaptureError,
        "stage 0[1]",
        "no member 1 in a list with [0]",
        "correct the stage's `select`",
    ),
    "a feature overwritten": (
        lambda: take_feature(True),
        CaptureError,
        "the feature of 0",
        "a later operation overwrote it in place",
        "plan it with Stage(..., clone=True)",
    ),
    "a host that does not run": (
        lambda: trace_sizes(Picture(), lambda size: 1 / 0, (16, 24)),
        PlanError,
        "a dry run of the host on an image of 16 x 24",
        "ZeroDivisionError: division by zero",
        "check that the host runs on these arguments",
    ),
    "a call without an image": (
        lambda: trace_call(Picture(), HostCall((torch.zeros(3),))),
        PlanError,
        "an image among the arguments of the host's call",
        "no tensor (B, C, H, W)",
        "write an Adapter with `outputs` and `replayable = False`, and give attach() it and an image and a mask",
    ),
    "a sharded host": (
        lambda: check_whole(nn.Sequential(FullyShardedDataParallel())),
        PlanError,
        "to attach to a host whose parameters are sharded",
        "FSDP: a process holds only a part of each, so that no teacher can be copied and no look-ahead taken",
        "wrap it in torch.nn.parallel.DistributedDataParallel instead; to save memory, checkpoint its decoder",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_says_what_was_asked_what_was_found_and_what_to_do(name):
    provoke, kind, asked, found, fix = REFUSED[name]
    with pytest.raises(kind) as caught:
        provoke()
    assert (caught.value.asked, caught.value.found, caught.value.fix) == (asked, found, fix)
    assert str(caught.value) == f"asked: {asked}\nfound: {found}\nto do: {fix}"


@pytest.mark.parametrize("compiler", [False, True], ids=["without dynamo", "with dynamo"])
def test_a_feature_that_did_not_run_is_blamed_on_compiling_only_where_something_may_be_compiled(compiler, monkeypatch):
    if compiler:
        monkeypatch.setitem(sys.modules, "torch._dynamo", sys.modules.get("torch._dynamo", sys))
    else:
        monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with pytest.raises(CaptureError) as caught:
        take_feature(False)
    assert caught.value.asked == "a feature of 1 (call 1), 2 (call 3)"
    found = "the forward ended without it: the module was skipped, bypassed or called fewer times than planned"
    fix = "tap another module: attach(..., stages=[...])"
    if compiler:
        found += ", or the host was compiled before the taps were put on it"
        fix += "; after compiling, call torch.compiler.reset() once the distiller is attached"
    assert (caught.value.found, caught.value.fix) == (found, fix)


# -- attention that cannot be kept, and that is none of the image ------------------------------------------------------

TOKENS = torch.rand(2, 2, 4, 8)
NESTED = torch.nested.as_nested_tensor([torch.rand(4, 2, 8), torch.rand(3, 2, 8)], layout=torch.jagged).transpose(1, 2)
MHA = nn.MultiheadAttention(8, 2, batch_first=True)

UNREAD = {
    "nested": ("sdpa", (NESTED, NESTED, NESTED), {}, "a nested tensor, or a mask that is no plain tensor"),
    "mask of a subclass": (
        "sdpa",
        (TOKENS, TOKENS, TOKENS, causal_lower_right(4, 4)),
        {},
        "a nested tensor, or a mask that is no plain tensor",
    ),
    "grouped": (
        "sdpa",
        (TOKENS, TOKENS[:, :1], TOKENS[:, :1]),
        {"enable_gqa": True},
        "grouped queries: not (B, heads, N, d)",
    ),
    "other heads": (
        "sdpa",
        (TOKENS, TOKENS[:, :1], TOKENS[:, :1]),
        {},
        "queries (2, 2, 4, 8) and keys (2, 1, 4, 8): not (B, heads, N, d)",
    ),
    "five dimensions": (
        "sdpa",
        (TOKENS[None],) * 3,
        {},
        "queries (1, 2, 2, 4, 8) and keys (1, 2, 2, 4, 8): not (B, heads, N, d)",
    ),
    "two dimensions": (
        "sdpa",
        (TOKENS[0, 0],) * 3,
        {},
        "queries (4, 8) and keys (4, 8): not (B, heads, N, d)",
    ),
    "softmax of samples": (
        "softmax",
        (TOKENS, 0),
        {},
        "a softmax over dimension 0 of (2, 2, 4, 8): not a map of queries and keys",
    ),
    "softmax of logits": (
        "softmax",
        (TOKENS[0, 0],),
        {"dim": 1},
        "a softmax over dimension 1 of (4, 8): not a map of queries and keys",
    ),
    "softmax of five dimensions": (
        "softmax",
        (TOKENS[None], -1),
        {},
        "a softmax over dimension -1 of (1, 2, 2, 4, 8): not a map of queries and keys",
    ),
    "softmax of nothing in particular": (
        "softmax",
        (TOKENS,),
        {},
        "a softmax over dimension None of (2, 2, 4, 8): not a map of queries and keys",
    ),
    "unbatched module": ("mha", (TOKENS[0, 0],) * 3, {}, "an nn.MultiheadAttention without a batch dimension"),
}


@pytest.mark.parametrize("name", UNREAD)
def test_a_call_that_cannot_be_read_is_refused_with_the_reason_and_keeps_nothing(name):
    kind, args, kwargs, refusal = UNREAD[name]
    if kind == "mha":
        call = read_mha(MHA, *args, **kwargs)
    else:
        function = F.softmax if kind == "softmax" else F.scaled_dot_product_attention
        call = read_function(function, args, kwargs, None)
    assert (call.kind, call.refusal) == (kind, refusal)
    assert call.own == ()
    assert call.map.query is None
    assert call.map.rows is None


@pytest.mark.parametrize("options", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_keys_that_a_multihead_attention_adds_are_refused(options):
    tokens = torch.rand(2, 4, 8)
    call = read_mha(nn.MultiheadAttention(8, 2, batch_first=True, **options), tokens, tokens, tokens)
    assert (call.kind, call.refusal) == ("mha", "an nn.MultiheadAttention with add_bias_kv or add_zero_attn")


class Layer(nn.Module):
    """Shows the attention of ``weigh(tokens, *rest)`` for tokens (B, N, C)."""

    def __init__(self, weigh, **sizes):
        super().__init__()
        self.weigh = weigh
        vars(self).update(sizes)

    def forward(self, tokens, *rest):
        self.weigh(tokens, *rest)
        return tokens


class Tokens(nn.Module):
    """Gives a layer the tokens of an image at a fraction of its size."""

    def __init__(self, layer, stride=4, width=8):
        super().__init__()
        self.stem, self.layer, self.stride = nn.Conv2d(3, width, 1), layer, stride

    def forward(self, image, *rest):
        return self.layer(F.avg_pool2d(self.stem(image), self.stride).flatten(2).mT, *rest)


def softmax(queries, keys):
    (queries @ keys.mT).softmax(-1)


def cut(height, width, rows=8, columns=12):
    """Return attention within windows of a map that they tile, possibly beyond its edge."""

    def weigh(tokens):
        value = tokens.unflatten(1, (rows, columns))
        value = F.pad(value, (0, 0, 0, -columns % width, 0, -rows % height))
        value = value.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)
        value = value.reshape(-1, height * width, tokens.shape[2])
        softmax(value, value)

    return weigh


# The layer, the stride of its tokens, further arguments, and why it is not of use.
UNUSABLE = {
    "no product": (
        Layer(lambda tokens: tokens.softmax(1)),
        4,
        (),
        "a softmax of something else than a product of two features: no queries and keys",
    ),
    "maps of no image": (
        Layer(lambda tokens: softmax(*[tokens[:1].expand(3, -1, -1)] * 2)),
        4,
        (),
        "3 maps for 2 images",
    ),
    "fewer maps than images": (
        Layer(lambda tokens: softmax(tokens[:1, :80], tokens[:1, :80])),
        4,
        (),
        "1 maps for 2 images",
    ),
    "windows of unknown size": (
        Layer(lambda tokens: softmax(*[tokens.reshape(4, 1, 48, 8).expand(4, 2, 48, 8)] * 2)),
        4,
        (),
        "2 maps for each image, and no `window_size` of 48 tokens on the module or above it",
    ),
    "shifted over a padded map": (
        Layer(cut(3, 5), window_size=(3, 5), shift_size=(1, 2)),
        4,
        (),
        "shifted windows over a padded map: padded or shifted first, unseen",
    ),
    "few tokens in windows": (Layer(cut(2, 2, 2, 3), window_size=2), 16, (), "a grid of 2 x 3 only"),
    "no tiles": (
        Layer(lambda tokens: softmax(tokens[:, :80], tokens[:, :80])),
        4,
        (),
        "80 queries do not tile an image of 32 x 48",
    ),
    "few queries": (Layer(lambda tokens: softmax(tokens, tokens)), 16, (), "6 queries and 6 keys only"),
    "few keys": (Layer(lambda tokens: softmax(tokens, tokens[:, :3])), 4, (), "96 queries and 3 keys only"),
    "words": (
        Layer(lambda tokens: softmax(tokens, tokens[:, :7])),
        4,
        (),
        "7 keys do not tile an image of 32 x 48 more coarsely: words, or channels",
    ),
    "more keys than queries": (
        Layer(lambda tokens: softmax(tokens[:, :24], tokens)),
        4,
        (),
        "96 keys do not tile an image of 32 x 48 more coarsely: words, or channels",
    ),
    "as many words as a grid has places": (
        Layer(softmax),
        4,
        (torch.rand(2, 24, 8),),
        "the 24 keys are those of another argument: words, or another image",
    ),
    "as many words, in another order": (
        Layer(lambda tokens, words: softmax(tokens, words.transpose(0, 1))),
        4,
        (torch.rand(24, 2, 8),),
        "the 24 keys are those of another argument: words, or another image",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_attention_that_is_not_over_the_image_says_why(name):
    layer, stride, rest, reason = UNUSABLE[name]
    host = Tokens(layer, stride)
    (candidate,) = find_attention(host, lambda: host(torch.rand(2, 3, 32, 48), *rest), (32, 48))
    assert candidate.reason == reason
    assert candidate.usable is False
    assert candidate.site.name == "layer"
    assert candidate.site.kind == "softmax"


def test_a_softmax_over_the_channels_of_a_head_says_so():
    host = Tokens(
        Layer(
            lambda tokens: (
                tokens.unflatten(2, (2, 24)).permute(0, 2, 3, 1) @ tokens.unflatten(2, (2, 24)).transpose(1, 2)
            ).softmax(-1)
        ),
        width=48,
    )
    (candidate,) = find_attention(host, lambda: host(torch.rand(2, 3, 32, 48)), (32, 48))
    assert candidate == AttentionCandidate(
        AttentionSite(name="layer", kind="softmax", heads=2, queries=24, keys=24),
        False,
        "24 keys are the channels of one of 2 heads",
    )
