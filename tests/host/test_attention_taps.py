"""Attention taps: what they keep of each kind of attention, what they leave alone, and how they go."""

import copy
import gc
import pickle

import pytest
import torch
import torch.nn.functional as F
from hosts import footprint
from hypothesis import given
from hypothesis import strategies as st
from torch import nn, overrides
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from inpaint_distill.errors import CaptureError, PlanError
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.attention_taps import AttentionTaps
from inpaint_distill.host.mode_stack import OpenedMode
from inpaint_distill.host.watch import StopForward


class Softmax(nn.Module):
    """Self-attention by a plain softmax over tokens; ``weights`` is what it used."""

    def __init__(self, width=8, heads=2, call=lambda logits: logits.softmax(-1)):
        super().__init__()
        self.heads, self.call = heads, call
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)

    def logits(self, value):
        q, k = (project(value).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key))
        return q @ k.mT

    def forward(self, value):
        self.weights = self.call(self.logits(value))
        return (self.weights @ value.unflatten(-1, (self.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


class Folded(Softmax):
    """The same with the heads folded into the batch."""

    def forward(self, value):
        weights = torch.softmax(self.logits(value).flatten(0, 1), dim=-1)
        self.weights = weights.unflatten(0, (-1, self.heads))
        return (self.weights @ value.unflatten(-1, (self.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


class Fused(Softmax):
    """The same by the fused function; ``options`` are its masks and scale."""

    def __init__(self, width=8, heads=2, **options):
        super().__init__(width, heads)
        self.options = options

    def forward(self, value):
        q, k = (project(value).unflatten(-1, (self.heads, -1)).transpose(1, 2) for project in (self.query, self.key))
        identity = torch.eye(k.shape[2], dtype=k.dtype).expand(*k.shape[:2], -1, -1)
        self.weights = F.scaled_dot_product_attention(q, k, identity, **self.options)
        return (self.weights @ value.unflatten(-1, (self.heads, -1)).transpose(1, 2)).transpose(1, 2).flatten(2)


class PatchLoop(nn.Module):
    """Patch attention as DeepFill computes it: a convolution with the sample's own patches, one sample at a time."""

    def forward(self, feature):
        maps = []
        for sample in feature.split(1):
            kernels = F.normalize(sample[0].flatten(1).T, dim=1)[..., None, None]
            maps.append(F.softmax(10 * F.conv2d(sample, kernels), dim=1))
        self.maps = maps
        return torch.cat(
            [
                F.conv2d(each, sample.flatten(1)[:, :, None, None].view(sample.shape[1], -1, 1, 1))
                for each, sample in zip(maps, feature.split(1), strict=True)
            ]
        )


class Multihead(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, **options)

    def forward(self, *args, **kwargs):
        output, self.weights = self.attention(*args, average_attn_weights=False, **kwargs)
        return output


def value(batch=2, tokens=16, width=8):
    return torch.randn(batch, tokens, width, dtype=torch.float64)


def site(name="", kind="softmax", **rest):
    return AttentionSite(name=name, kind=kind, **rest)


def rows_of(seen):
    """Compute the dense rows that queries and keys stand for."""
    if seen.rows is not None:
        return seen.rows
    logits = seen.scale * seen.query @ seen.key.mT
    return (logits if seen.bias is None else logits + seen.bias).softmax(-1)


def tapped(module, sites, *args, logits=False, **kwargs):
    taps = AttentionTaps(module, sites, logits=logits)
    taps.begin()
    module(*args, **kwargs)
    maps = taps.take()
    taps.remove()
    assert not overrides._get_current_function_mode_stack()
    return maps


SOFTMAXES = {
    "method": lambda logits: logits.softmax(-1),
    "function": lambda logits: torch.softmax(logits, dim=3),
    "functional": lambda logits: F.softmax(input=logits, dim=-1),
    "special": lambda logits: torch.special.softmax(logits, -1),
    "module": nn.Softmax(dim=-1),
    "keys first": lambda logits: logits.mT.softmax(dim=2).mT,
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_rows_of_a_softmax_are_the_host_s_own(name):
    module = Softmax(call=SOFTMAXES[name]).double()
    (seen,) = tapped(module, [site()], value(), logits=True)
    assert torch.equal(seen.rows, module.weights)
    torch.testing.assert_close(seen.logits.softmax(-1), module.weights, rtol=0, atol=1e-10)
    assert seen.query is seen.key is seen.bias is None


def test_logits_are_kept_only_when_asked_for():
    (seen,) = tapped(Softmax().double(), [site()], value())
    assert seen.logits is None


@given(batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 4]), tokens=st.integers(2, 9))
def test_heads_folded_into_the_batch_are_unfolded(batch, heads, tokens):
    module = Folded(heads=heads).double()
    (seen,) = tapped(module, [site(heads=heads)], value(batch, tokens), logits=True)
    assert torch.equal(seen.rows, module.weights)
    assert seen.logits.shape == seen.rows.shape


@given(batch=st.integers(1, 3), height=st.integers(2, 4), width=st.integers(2, 4))
def test_a_loop_over_the_samples_is_one_map(batch, height, width):
    module = PatchLoop()
    feature = torch.randn(batch, 8, height, width, dtype=torch.float64)
    (seen,) = tapped(module, [site()], feature, logits=True)
    expected = torch.cat(module.maps).flatten(2).mT[:, None]
    assert torch.equal(seen.rows, expected)
    torch.testing.assert_close(seen.logits.softmax(-1), expected, rtol=0, atol=1e-10)
    assert torch.equal(seen.entering, feature)


class MaskedPatchLoop(PatchLoop):
    """The same with keys taken out by a factor of 0, before the softmax and after it."""

    def forward(self, feature, shown):
        rows = []
        for sample, known in zip(feature.split(1), shown, strict=True):
            kernels = F.normalize(sample[0].flatten(1).T, dim=1)[..., None, None]
            factor = known.view(1, -1, 1, 1)
            rows.append(F.softmax(10 * F.conv2d(sample, kernels) * factor, dim=1) * factor)
        return torch.cat(rows)


def test_keys_that_a_loop_takes_out_by_a_factor_of_zero_are_hidden():
    shown = torch.tensor([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]], dtype=torch.float64)
    feature = torch.randn(2, 8, 2, 3, dtype=torch.float64)
    module = MaskedPatchLoop()
    taps = AttentionTaps(module, [site()])
    taps.begin()
    used = module(feature, shown)
    (seen,) = taps.take()
    assert torch.equal(seen.bias[:, 0, 0] == 0, shown.bool())
    assert torch.equal(seen.bias[:, 0, 0] == -torch.inf, ~shown.bool())
    torch.testing.assert_close(seen.rows.where(seen.bias == 0, 0), used.flatten(2).mT[:, None])


KEYS = torch.tensor([True] * 11 + [False] * 5)
BIAS = torch.linspace(-1, 1, 256, dtype=torch.float64).view(16, 16)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": BIAS},
        {"attn_mask": KEYS.expand(16, 16)},
        {"attn_mask": BIAS.expand(2, 16, 16)},
        {"attn_mask": BIAS.expand(2, 2, 16, 16)},
    ],
    ids=["plain", "scale", "causal", "bias", "boolean", "per head", "per sample"],
)
def test_queries_and_keys_of_the_fused_function_give_its_rows(options):
    module = Fused(**options).double()
    (seen,) = tapped(module, [site(kind="sdpa", heads=2)], value())
    torch.testing.assert_close(rows_of(seen), module.weights, rtol=0, atol=1e-10)
    assert seen.rows is None


@pytest.mark.parametrize("heads", [1, 2])
def test_the_fused_function_without_a_dimension_for_heads(heads):
    class Flat(nn.Module):
        def forward(self, q, k):
            self.weights = F.scaled_dot_product_attention(q, k, torch.eye(4, dtype=q.dtype).expand(4, 4, 4), BIAS4)
            return self.weights

    BIAS4 = torch.randn(4, 4, 4, dtype=torch.float64)
    module = Flat()
    (seen,) = tapped(module, [site(kind="sdpa", heads=heads)], value(4, 4), value(4, 4))
    assert seen.query.shape == (4 // heads, heads, 4, 8)
    torch.testing.assert_close(rows_of(seen).flatten(0, 1), module.weights, rtol=0, atol=1e-10)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"kdim": 6, "vdim": 6}], ids=["packed", "without bias", "separate weights"]
)
@pytest.mark.parametrize("masks", [(), ("attn_mask",), ("key_padding_mask",), ("attn_mask", "key_padding_mask")])
def test_multihead_attention_is_projected_again(batch_first, options, masks):
    module = Multihead(batch_first=batch_first, **options).double()
    query, key = value(3, 4), value(3, 5, options.get("kdim", 8))
    given = {
        "attn_mask": torch.randn(6, 4, 5, dtype=torch.float64),
        "key_padding_mask": torch.tensor([0, 0, 0, -torch.inf, -torch.inf], dtype=torch.float64).expand(3, 5),
    }
    args = (query, key, key) if batch_first else (query.transpose(0, 1), key.transpose(0, 1), key.transpose(0, 1))
    (seen,) = tapped(module, [site("attention", "mha")], *args, **{name: given[name] for name in masks})
    torch.testing.assert_close(rows_of(seen), module.weights, rtol=0, atol=1e-10)
    assert torch.equal(seen.entering, query)


@pytest.mark.parametrize("mode", ["train", "eval", "without weights", "boolean mask"])
def test_multihead_attention_is_seen_on_every_path(mode):
    module = Multihead(batch_first=True).double().train(mode == "train")
    entered = value(2, 4)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1) if mode == "boolean mask" else None
    with torch.set_grad_enabled(mode == "train"):
        module(entered, entered, entered, attn_mask=mask)
        expected = module.weights
        options = {"need_weights": False} if mode == "without weights" else {}
        (seen,) = tapped(module, [site("attention", "mha")], entered, entered, entered, attn_mask=mask, **options)
    torch.testing.assert_close(rows_of(seen), expected, rtol=0, atol=1e-10)


@pytest.mark.skipif(torch.__version__ < "2.5", reason="its fast path passes by hooks on its parts before torch 2.5")
def test_a_transformer_layer_does_not_bypass_its_attention_while_tapped():
    layer = nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0).double().eval()
    entered = value()
    with torch.no_grad():
        (seen,) = tapped(layer, [site("self_attn", "mha")], entered)
        expected = layer.self_attn(entered, entered, entered, average_attn_weights=False)[1]
    torch.testing.assert_close(rows_of(seen), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["softmax", "sdpa", "mha", "loop"])
def test_gradients_through_what_is_tapped_are_those_of_a_dense_reference(kind):
    if kind == "loop":
        host, place = nn.Sequential(nn.Conv2d(4, 8, 1), PatchLoop()).double(), site("1")
        entered = torch.randn(2, 4, 3, 4, dtype=torch.float64)
    elif kind == "mha":
        layer = nn.TransformerEncoderLayer(8, 2, batch_first=True, dropout=0.0)
        host, place = nn.Sequential(nn.Linear(8, 8), layer).double(), site("1.self_attn", "mha")
        entered = value()
    else:
        module = Softmax() if kind == "softmax" else Fused()
        host, place, entered = nn.Sequential(nn.Linear(8, 8), module).double(), site("1", kind, heads=2), value()
    parameters = list(host.parameters())
    (seen,) = tapped(host, [place], entered)
    rows = rows_of(seen)
    weight = torch.randn_like(rows)
    found = torch.autograd.grad((rows * weight).sum(), parameters, allow_unused=True)

    inner = host[0](entered)
    if kind == "loop":
        tokens = inner.flatten(2)
        dense = (10 * tokens.mT @ F.normalize(tokens, dim=1)).softmax(-1)[:, None]
    elif kind == "mha":
        dense = host[1].self_attn(inner, inner, inner, average_attn_weights=False)[1]
    else:
        dense = (host[1].logits(inner) * (1 if kind == "softmax" else 0.5)).softmax(-1)
    torch.testing.assert_close(rows, dense, rtol=0, atol=1e-10)
    expected = torch.autograd.grad((dense * weight).sum(), parameters, allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)


class Zoo(nn.Module):
    """Three kinds of attention, one of them called twice, and a softmax that is nobody's business."""

    def __init__(self):
        super().__init__()
        self.plain, self.fused = Softmax(), Fused()
        self.heads = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, value):
        value = self.plain(self.fused(self.plain(value)))
        (value @ value.mT).softmax(-1)
        return self.heads(value, value, value)[0]


SITES = [site("heads", "mha"), site("plain", call=1), site("fused", "sdpa"), site("plain")]


def test_maps_come_in_the_order_of_the_sites_and_calls_are_told_apart():
    host, entered = Zoo().double(), value()
    heads, second, fused, first = tapped(host, SITES, entered)
    torch.testing.assert_close(first.rows, host.plain.logits(entered).softmax(-1))
    torch.testing.assert_close(rows_of(fused), host.fused.weights)
    assert torch.equal(second.rows, host.plain.weights)
    assert heads.query.shape == (2, 2, 16, 4)
    assert torch.equal(second.entering, host.fused(host.plain(entered)))


def test_what_runs_outside_of_the_module_is_not_seen_and_not_slowed():
    class Spy(Softmax):
        def forward(self, value):
            self.depth = overrides._len_torch_function_stack()
            return super().forward(value)

    host = nn.Sequential(Spy(), Softmax()).double()
    taps = AttentionTaps(host, [site("1")])
    taps.begin()
    host(value())
    assert host[0].depth == 0
    assert torch.equal(taps.take()[0].rows, host[1].weights)


def test_watch_is_told_the_host_s_own_tensors_and_seen_counts_sites():
    host, entered = Zoo().double(), value()
    taps = AttentionTaps(host, SITES)
    watched, seen, gradients = [], [], {}

    def watch(index, tensor):
        watched.append(index)
        tensor.register_hook(lambda gradient: gradients.setdefault(index, gradient))

    taps.begin(watch, lambda: seen.append(overrides._len_torch_function_stack()))
    host(entered).sum().backward()
    taps.take()
    assert watched == [6, 4, 5, 2, 0, 1]
    assert seen == [0] * 4
    assert set(gradients) == set(watched)
    assert all(gradient.abs().sum() > 0 for gradient in gradients.values())


def test_watch_is_told_every_sample_of_a_loop_and_nothing_without_gradient():
    host = nn.Sequential(nn.Conv2d(4, 8, 1), PatchLoop())
    taps, told = AttentionTaps(host, [site("1")]), []
    taps.begin(lambda index, tensor: told.append((index, tensor.shape)))
    host(torch.randn(3, 4, 2, 2))
    assert told == [(0, (1, 4, 2, 2))] * 3
    told.clear()
    with torch.no_grad():
        taps.begin(lambda index, tensor: told.append(index))
        host(torch.randn(3, 4, 2, 2))
    assert not told


class Blocks(nn.Module):
    """Attention of its own around attention in a child."""

    def __init__(self):
        super().__init__()
        self.inner = Softmax()

    def forward(self, value):
        value = self.inner(value)
        self.weights = (value @ value.mT).softmax(-1)
        return self.weights @ value


def test_nested_modules_are_tapped_together():
    host, entered = nn.Sequential(Blocks()).double(), value()
    outer, inner = tapped(host, [site("0", index=1), site("0.inner")], entered)
    assert torch.equal(inner.rows, host[0].inner.weights)
    assert torch.equal(outer.rows, host[0].weights[:, None])


def test_rows_of_prefix_tokens_are_left_out():
    module = Softmax().double()
    (seen,) = tapped(module, [site(prefix=1)], value(2, 17))
    assert torch.equal(seen.rows, module.weights[:, :, 1:])
    module = Fused(attn_mask=torch.randn(17, 17, dtype=torch.float64)).double()
    (seen,) = tapped(module, [site(kind="sdpa", prefix=1)], value(2, 17))
    torch.testing.assert_close(rows_of(seen), module.weights[:, :, 1:], rtol=0, atol=1e-10)


class Stopped(nn.Module):
    """Raise what it is told inside the inner of two tapped modules, under a mode of its own if told so."""

    def __init__(self, error, under):
        super().__init__()
        self.error, self.under, self.inner = error, under, Softmax()
        self.inner.register_forward_hook(self.stop)

    def stop(self, *args):
        if self.error is not None:
            raise self.error

    def forward(self, value):
        if not self.under:
            return self.inner(value)
        with Idle():
            return self.inner(value)


class Idle(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("under", [False, True])
@pytest.mark.parametrize("error", [ValueError("host"), StopForward(), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("ending", ["clear", "take", "begin", "remove"])
def test_no_mode_outlives_an_interrupted_forward(error, under, ending):
    module = Stopped(error, under).double()
    taps = AttentionTaps(module, [site(), site("inner")])
    outer = Idle()
    with outer:
        taps.begin()
        with pytest.raises(type(error)):
            module(value())
        if ending == "take":
            with pytest.raises(CaptureError):
                taps.take()
        else:
            getattr(taps, ending)()
        assert overrides._get_current_function_mode_stack() == [outer]
    assert overrides._get_current_function_mode_stack() == []
    module.error = None
    if ending != "remove":
        taps.begin()
        module(value())
        assert torch.equal(taps.take()[1].rows, module.inner.weights)


def test_a_mode_that_was_pushed_above_stays_when_the_one_below_it_goes():
    below, above = Idle(), Idle()
    opened = OpenedMode(below)
    with above:
        opened.close()
        assert overrides._get_current_function_mode_stack() == [above]
    assert overrides._get_current_function_mode_stack() == []


def test_an_exception_ends_a_mode_at_once_and_is_not_hidden_by_seen():
    module = nn.Sequential(Stopped(ValueError("host"), False).double())
    taps = AttentionTaps(module, [site("0")])

    def stop():
        raise StopForward

    taps.begin(seen=stop)
    with pytest.raises(ValueError, match="host"):
        module(value())
    assert not overrides._get_current_function_mode_stack()


def test_a_forward_run_while_an_exception_is_handled_is_kept():
    module = Softmax().double()
    taps = AttentionTaps(module, [site()])
    taps.begin()
    try:
        raise ValueError
    except ValueError:
        module(value())
    assert torch.equal(taps.take()[0].rows, module.weights)


@pytest.mark.parametrize("module", [Softmax(call=lambda logits: logits.softmax(-1).mul_(1)), Softmax()])
def test_an_overwrite_in_place_is_reported(module):
    taps = AttentionTaps(module, [site()])
    taps.begin()
    with torch.no_grad():
        module(value().float())
        module.weights.mul_(1)
    with pytest.raises(CaptureError, match="overwrote it in place"):
        taps.take()


def test_what_is_missing_is_named():
    host = Zoo().double()
    taps = AttentionTaps(host, [site("plain", call=2), site("plain")])
    taps.begin()
    host(value())
    with pytest.raises(CaptureError, match=r"plain \(call 2\)") as caught:
        taps.take()
    assert "compiled" in caught.value.found
    with pytest.raises(CaptureError, match="attention 1"):
        tapped(Softmax().double(), [site(index=1)], value())


def test_another_kind_than_planned_is_reported():
    with pytest.raises(CaptureError, match="'sdpa'"):
        tapped(Fused().double(), [site()], value())
    with pytest.raises(PlanError, match="Softmax"):
        AttentionTaps(Softmax(), [site(kind="mha")])
    assert not overrides._get_current_function_mode_stack()


def test_a_name_that_does_not_exist_leaves_no_hook():
    host = Zoo()
    notes = footprint(host)
    with pytest.raises(PlanError, match="plain"):
        AttentionTaps(host, [site("plain"), site("plaim")])
    assert footprint(host) == notes


def test_nothing_is_kept_before_begin_after_take_or_when_inactive():
    host = Zoo().double()
    taps = AttentionTaps(host, SITES)
    host(value())
    assert not taps.active
    taps.begin()
    assert taps.active
    host(value())
    taps.active = False
    kept = host.plain.weights
    host(value())
    assert torch.equal(taps.take()[1].rows, kept)
    with pytest.raises(CaptureError):
        taps.take()


def test_hooks_go_exactly_and_with_their_owner():
    host = Zoo()
    others = host.plain.register_forward_hook(lambda *args: None)
    notes = footprint(host)
    taps = AttentionTaps(host, SITES)
    assert footprint(host) != notes
    taps.remove()
    assert footprint(host) == notes
    taps = AttentionTaps(host, SITES)
    del taps
    gc.collect()
    assert footprint(host) == notes
    others.remove()


def test_copies_of_a_tapped_module_carry_hooks_that_do_nothing():
    host, entered = Zoo().double(), value()
    taps = AttentionTaps(host, SITES)
    copied = copy.deepcopy(host)
    tapped_heads = AttentionTaps(host.heads, [site(kind="mha")])
    loaded_heads = pickle.loads(pickle.dumps(host.heads))
    taps.begin()
    tapped_heads.begin()
    copied(entered)
    loaded_heads(entered, entered, entered)
    with pytest.raises(CaptureError):
        taps.take()
    with pytest.raises(CaptureError):
        tapped_heads.take()


def test_what_runs_in_a_checkpoint_is_kept_and_differentiable():
    host, entered = Zoo().double(), value()
    maps = tapped(host, SITES, entered)
    expected = torch.autograd.grad(sum(rows_of(seen).square().sum() for seen in maps), host.plain.query.weight)
    taps = AttentionTaps(host, SITES)
    taps.begin()
    output = checkpoint(host, entered, use_reentrant=False)
    total = sum(rows_of(seen).square().sum() for seen in taps.take())
    found = torch.autograd.grad(total + 0 * output.sum(), host.plain.query.weight)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_an_output_is_the_same_bit_for_bit_with_and_without_taps():
    host, entered = Zoo(), value().float()
    expected = host(entered)
    taps = AttentionTaps(host, SITES)
    taps.begin()
    assert torch.equal(host(entered), expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo hides its own warning, but not from an error
def test_a_model_compiled_after_the_taps_is_seen_and_one_compiled_before_is_reported():
    plain = Zoo()
    host = copy.deepcopy(plain)
    taps, reference = AttentionTaps(host, SITES), AttentionTaps(plain, SITES)
    compiled = torch.compile(host, backend="eager")
    compiled(value().float())  # a validation before the first step
    for _ in range(2):
        entered = value().float()
        taps.begin()
        reference.begin()
        compiled(entered)
        plain(entered)
        for found, expected in zip(taps.take(), reference.take(), strict=True):
            torch.testing.assert_close(rows_of(found), rows_of(expected))
            assert rows_of(found).requires_grad
    if torch.__version__ < "2.6":  # which sees hooks that are put on later
        return
    late = nn.Sequential(Softmax())
    compiled = torch.compile(late, backend="eager")
    compiled(value().float())
    taps = AttentionTaps(late, [site("0")])
    taps.begin()
    compiled(value().float())
    with pytest.raises(CaptureError, match="compiled before"):
        taps.take()
