"""NaN and inf: caught at the term that saw them, named, and kept out of everything that outlives the step."""

import copy
import math
import warnings

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, make_optimizer, reconstruct, same, train
from hosts.base import Down, Up
from torch import nn
from torch.nn import functional as F

import inpaint_distill
from inpaint_distill.errors import NumericsError, NumericsWarning
from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.host.watch import Views
from inpaint_distill.losses.build import build_terms
from inpaint_distill.losses.screen import Screen
from inpaint_distill.networks.meta import meta_parameters

QUICK = {"warmup": 0, "ema_decay": 0.9}
FIXED = {**QUICK, "balance": "none"}
BAD = [math.nan, math.inf, -math.inf]
PLAIN = ZOO["separate"]


class Attentive(nn.Module):
    """Has attention behind its stages, so that either can fail alone."""

    def __init__(self):
        super().__init__()
        self.down = Down(4)
        self.attention = Attention()
        self.up = Up()

    def forward(self, image, mask):
        return self.up(self.attention(self.down(torch.cat([image, mask], 1))))


class Attention(nn.Module):
    """Global attention over the pixels, two heads."""

    def __init__(self, channels=16):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)

    def forward(self, feature):
        tokens = feature.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).view(*tokens.shape[:2], 3, 2, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return feature + seen.transpose(1, 2).view_as(feature)


class Spoiler:
    """A hook of the host's own that spoils one number of a layer of the host, or of its copy, when told to."""

    def __init__(self, module, value=math.nan):
        self.own, self.value, self.whose = module, value, None
        module.register_forward_hook(self)

    def __call__(self, module, args, output):
        if self.whose != ("student" if module is self.own else "teacher"):
            return None
        spoil = torch.zeros_like(output)
        spoil.view(-1)[output.numel() // 2] = self.value
        return output + spoil

    def __deepcopy__(self, memo):
        return self


def plain(value=math.nan, optimizer=True, **config):
    """Attach to a plain host of which the second stage can be spoilt."""
    host = PLAIN.build()
    spoiler = Spoiler(host.enc1, value)
    optimizer = make_optimizer(host) if optimizer else None
    return host, optimizer, spoiler, inpaint_distill.attach(host, optimizer, config={**FIXED, **config})


def attentive(value=math.nan, **config):
    """Attach to a host of which the attention can be spoilt."""
    torch.manual_seed(1)
    host = Attentive()
    spoiler = Spoiler(host.attention.qkv, value)
    optimizer = make_optimizer(host)
    return host, optimizer, spoiler, inpaint_distill.attach(host, optimizer, config={**FIXED, **config})


# -- raise -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(("term", "whose"), [("cross", "student"), ("cross", "teacher"), ("self", "student")])
def test_what_a_term_cannot_compare_is_named_with_term_stage_side_and_step(term, whose, value):
    others = {name: {"weight": 0.0} for name in ("cross", "self", "attention") if name != term}
    host, optimizer, spoiler, distiller = plain(value, **others)
    train(PLAIN, host, optimizer, batches(2), distiller)
    spoiler.whose = whose
    image, mask = batch(2)
    PLAIN.call(host, image, mask)
    with pytest.raises(NumericsError) as error:
        distiller.loss(image, mask)
    assert error.value.asked == f"the term {term} at step 2"
    assert f"{whose}'s feature of stage enc1" in error.value.found
    assert "nonfinite='skip'" in error.value.fix
    spoiler.whose = None
    assert all(torch.isfinite(loss) for loss in train(PLAIN, host, optimizer, batches(2, 3), distiller))


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_attention_that_is_not_finite_is_named(whose, value):
    host, optimizer, spoiler, distiller = attentive(value)
    train(PLAIN, host, optimizer, batches(1), distiller)
    assert distiller.log["attention"] > 0
    spoiler.whose = whose
    PLAIN.call(host, *batch(1))
    with pytest.raises(NumericsError, match=rf"term attention at step 1(.|\n)*{whose}'s attention attention"):
        distiller.loss(*batch(1))


def test_a_stage_that_no_term_looks_at_is_no_fault_of_a_term():
    weights = {name: {"weight": 0.0} for name in ("cross", "self")}
    host, _, _, distiller = attentive(**weights)
    PLAIN.call(host, *batch())
    distiller.loss(*batch())
    Spoiler(host.down.enc1).whose = "student"
    PLAIN.call(host, *batch())
    with pytest.raises(NumericsError, match=r"the term attention at step 0(.|\n)*student's attention attention"):
        distiller.loss(*batch())


@pytest.mark.parametrize("value", BAD)
def test_a_batch_of_the_hosts_own_that_is_not_finite_is_named_at_the_first_stage(value):
    host, _, _, distiller = plain()
    image, mask = batch()
    PLAIN.call(host, image, mask)
    distiller.loss(image, mask)
    spoilt = (image * (1 - mask)).masked_fill(mask.bool(), value)  # in the hole, where the host need not have the image
    host(spoilt, mask)
    with pytest.raises(NumericsError, match=r"terms cross, self at step 0(.|\n)*student's feature of stage enc0"):
        distiller.loss(image, mask)


def test_a_term_that_is_too_large_for_float32_is_named_with_its_level():
    host, _, _, distiller = plain(cross={"normalize": "none"}, self={"weight": 0.0})
    host.enc1[0].weight.data.mul_(1e25)
    image, mask = batch()
    PLAIN.call(host, image, mask)
    with pytest.raises(NumericsError, match=r"term cross at step 0(.|\n)*level 1 of the term"):
        distiller.loss(image, mask)


# -- skip --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize(("whose", "left_out"), [("student", {"cross", "self"}), ("teacher", {"cross"})])
def test_a_skipped_term_is_exactly_zero_with_zero_gradients_and_counted_while_the_others_go_on(whose, left_out, value):
    host, _, spoiler, distiller = plain(value, optimizer=False, nonfinite="skip")
    image, mask = batch()
    PLAIN.call(host, image, mask)
    distiller.loss(image, mask)
    assert [distiller.log[f"skipped/{name}"] for name in ("cross", "self")] == [0, 0]
    spoiler.whose = whose
    PLAIN.call(host, image, mask)
    with pytest.warns(NumericsWarning, match=f"{whose}'s feature of stage enc1"):
        loss = distiller.loss(image, mask)
    loss.backward()
    for name, term in distiller._terms.items():
        out = name in left_out
        assert bool(distiller.log[name] == 0) == out
        assert distiller.log[f"skipped/{name}"] == out
        gradients = [p.grad for p in term.parameters() if p.requires_grad]
        assert all(gradient.isfinite().all() for gradient in gradients)
        assert any(gradient.any() for gradient in gradients) != out
    gradients = [p.grad for name, p in host.named_parameters() if name.startswith(("enc0", "enc1"))]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (len(left_out) == 1)


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("whose", ["student", "teacher"])
def test_attention_is_skipped_alone(whose, value):
    host, _, spoiler, distiller = attentive(value, nonfinite="skip", cross={"weight": 0.0}, self={"weight": 0.1})
    spoiler.whose = whose
    image, mask = batch()
    PLAIN.call(host, image, mask)
    with pytest.warns(NumericsWarning, match="term attention"):
        loss = distiller.loss(image, mask)
    loss.backward()
    assert distiller.log["attention"] == 0
    assert distiller.log["self"] > 0
    assert not host.attention.qkv.weight.grad.any()
    assert all(p.grad.isfinite().all() for p in host.parameters() if p.grad is not None)


def test_each_place_is_warned_of_once_and_every_step_is_counted():
    host, optimizer, spoiler, distiller = plain(nonfinite="skip")
    spoiler.whose = "teacher"
    with pytest.warns(NumericsWarning) as told:
        train(PLAIN, host, optimizer, batches(3), distiller)
    assert len(told) == 1
    assert "enc1" in str(told[0].message), "what is behind it follows from it"
    assert distiller.log["skipped/cross"] == 3
    assert distiller.log["skipped/self"] == 0


@pytest.mark.parametrize("name", SAMPLE)
def test_a_step_with_a_spoilt_teacher_leaves_every_host_and_all_that_is_kept_finite(name):
    toy = EVERY_HOST[name]
    host = toy.build()
    spoiler = Spoiler(next(part for part in host.modules() if isinstance(part, nn.Conv2d)), math.inf)
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={**QUICK, "nonfinite": "skip"})
    train(toy, host, optimizer, batches(1, size=toy.size), distiller)
    spoiler.whose = "teacher"
    with warnings.catch_warnings():  # some hosts normalise it away
        warnings.simplefilter("ignore", NumericsWarning)
        train(toy, host, optimizer, batches(1, 1, size=toy.size), distiller)
    spoiler.whose = None
    train(toy, host, optimizer, batches(2, 2, size=toy.size), distiller)
    assert distiller.log["cross"] > 0
    assert_finite(host, distiller)


def assert_finite(host, distiller):
    parts = [dict(host.state_dict()), *(part.state()[0] for part in distiller._parts.values())]
    for part in parts:
        for key, value in part.items():
            assert not value.is_floating_point() or value.isfinite().all(), key


# -- what outlives the step --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("whose", ["student", "teacher"])
@pytest.mark.parametrize("teacher", ["ema", "online"])
@pytest.mark.parametrize("name", ["separate", "batch_norm"])
def test_a_spoilt_step_that_the_user_leaves_out_changes_nothing_that_is_kept(name, teacher, whose):
    toy = ZOO[name]
    host = toy.build()
    spoiler = Spoiler(host.enc1)
    optimizer = make_optimizer(host)
    config = {**QUICK, "teacher": teacher, "nonfinite": "skip", "balance_every": 1, "self": {"weight": 0.0}}
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    train(toy, host, optimizer, batches(2), distiller)
    kept = ("terms", "composer", "companion", *(["teacher"] if teacher == "ema" else []))
    before = copy.deepcopy({part: distiller._parts[part].state() for part in kept})
    spoiler.whose = whose
    image, mask = batch(2)
    with pytest.warns(NumericsWarning):
        (reconstruct(toy, host, image, mask) + distiller.loss(image, mask)).backward()
    optimizer.zero_grad()
    spoiler.whose = None
    assert same({part: distiller._parts[part].state() for part in kept}, before)
    with torch.no_grad():  # the host's own statistics are the host's own affair
        for buffer in host.buffers():
            buffer.nan_to_num_()
    train(toy, host, optimizer, batches(2, 3), distiller)
    assert distiller.log["cross"] > 0
    assert_finite(host, distiller)


def test_a_look_ahead_on_a_spoilt_batch_does_not_spoil_the_meta_networks():
    host, optimizer, spoiler, distiller = plain(nonfinite="skip", lookahead={"every": 1})
    train(PLAIN, host, optimizer, batches(3), distiller)
    spoiler.whose = "teacher"
    with pytest.warns(NumericsWarning):
        train(PLAIN, host, optimizer, batches(2, 3), distiller)
    spoiler.whose = None
    train(PLAIN, host, optimizer, batches(2, 5), distiller)
    assert all(p.isfinite().all() for _, p in meta_parameters(distiller._terms))
    assert_finite(host, distiller)


@pytest.mark.parametrize("value", [*BAD, 1e30])  # the square of the last is not finite
def test_a_look_ahead_that_diverges_does_not_stop_the_meta_networks(value):
    host, optimizer, _, distiller = plain(lookahead={"every": 1})
    train(PLAIN, host, optimizer, batches(3), distiller)
    meta, find = list(meta_parameters(distiller._terms)), distiller._lookahead._gradient

    def diverge(*args):
        objective, gradient = find(*args)
        return objective, {name: torch.full_like(each, value) for name, each in gradient.items()}

    distiller._lookahead._gradient = diverge
    train(PLAIN, host, optimizer, batches(1, 3), distiller)
    del distiller._lookahead._gradient
    assert_finite(host, distiller)
    before = [parameter.detach().clone() for _, parameter in meta]
    train(PLAIN, host, optimizer, batches(1, 4), distiller)
    assert any(not torch.equal(old, parameter) for old, (_, parameter) in zip(before, meta, strict=True))
    assert_finite(host, distiller)


def test_skipping_changes_nothing_where_all_is_finite():
    runs = []
    for choice in ("raise", "skip"):
        host, optimizer, _, distiller = plain(nonfinite=choice)
        losses = train(PLAIN, host, optimizer, batches(3), distiller)
        runs.append([losses, copy.deepcopy(host.state_dict())])
    assert same(*runs)


# -- half precision ----------------------------------------------------------------------------------------------------


def test_an_overflow_of_the_loss_scale_is_not_reported_as_a_terms_fault():
    host, optimizer, _, distiller = plain()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**60, backoff_factor=2.0**-30)
    scales = []
    for image, mask in batches(4):
        with torch.autocast("cpu", torch.float16):
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    assert scales[0] < 2.0**60, "the first step was to overflow"
    assert scales[-1] == scales[-2], "the last was not"
    assert distiller._step < 4
    assert distiller.log["cross"] > 0
    assert_finite(host, distiller)


def test_an_overflow_in_the_forward_is_skipped_as_the_scaler_skips_the_step():
    host, optimizer, spoiler, distiller = plain(value=1e6, nonfinite="skip")  # beyond float16
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def step(seed):
        image, mask = batch(seed)
        with torch.autocast("cpu", torch.float16):
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()

    step(0)
    weights = copy.deepcopy(host.state_dict())
    spoiler.whose = "student"
    with pytest.warns(NumericsWarning):
        step(1)
    assert same(host.state_dict(), weights)
    spoiler.whose = None
    step(2)
    assert not same(host.state_dict(), weights)
    assert_finite(host, distiller)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", ["channel", "layer", "none"])
def test_half_precision_features_of_magnitude_10000_keep_losses_and_gradients_finite(normalize, dtype):
    torch.manual_seed(1)
    host = Attentive()
    for part in (host.down.enc0, host.down.enc1, host.down.enc2, host.attention.qkv):
        part.register_forward_hook(lambda module, args, output: output / output.abs().amax() * 1e4)
    terms = {name: {"normalize": normalize, "weight": 1e-3} for name in ("cross", "self")}
    distiller = inpaint_distill.attach(host, config={**FIXED, **terms})
    image, mask = batch()
    with torch.no_grad():
        host(image, mask)
    with torch.autocast("cpu", dtype):
        host(image * (1 - mask), mask)
        loss = distiller.loss(image, mask)
    loss.backward()
    assert distiller._watch.sites
    assert all(distiller.log[name] > 0 for name in ("cross", "self", "attention"))
    assert loss.isfinite()
    parameters = [*host.down.parameters(), *host.attention.parameters(), *distiller._terms.parameters()]
    gradients = [p.grad for p in parameters if p.grad is not None]
    assert gradients
    assert all(gradient.isfinite().all() for gradient in gradients)


# -- without waiting for the device ------------------------------------------------------------------------------------


def screened(choice="raise"):
    """Make a screen for the terms of a plain host, as on an accelerator: asked only now and then."""
    host, _, _, distiller = plain()
    PLAIN.call(host, *batch())
    config = inpaint_distill.Config(self_=inpaint_distill.TermConfig(weight=0.0))
    stages = distiller.plan.stages
    return Screen(choice, build_terms(config, stages, stages).each, [stage.label for stage in stages])


def views(spoilt=None):
    """Make features of three levels, one of which may be spoilt."""
    features = [torch.randn(2, width, 8, 8) for width in (8, 12, 16)]
    if spoilt is not None:
        features[spoilt][0, 0, 0, 0] = math.nan
    return Views(features)


def test_what_was_seen_between_two_checks_is_kept_out_at_once_and_reported_with_its_own_step():
    screen = screened()
    term = {"cross": torch.ones(3)}
    for step in (100, 137, 138):
        screen.views(views(), views(1 if step == 137 else None))
        kept = screen.values(term, step)["cross"]
        assert bool(kept.any()) == (step != 137)
    with pytest.raises(NumericsError, match=r"term cross at step 137(.|\n)*teacher's feature of stage enc1(.|\n)*200"):
        screen.check(200)
    screen.check(201)


# -- attention that is masked ------------------------------------------------------------------------------------------


def seen_by(attention, whose):
    """Tell whether a screen finds a map finite."""
    both = (Views(attention=[attention]), Views()) if whose == "student" else (Views(), Views(attention=[attention]))
    screen = Screen("raise", {})
    screen.views(*both)
    return all(bool(good) for good in screen._good.values())


def test_a_key_that_is_masked_and_a_row_of_such_keys_are_no_fault():
    logits = torch.randn(1, 2, 4, 4)
    logits[..., 1] = -math.inf
    assert seen_by(AttentionMap(logits=logits, rows=logits.softmax(-1)), "teacher")
    bias = torch.zeros(4, 4)
    bias[2] = -math.inf
    rows = (torch.randn(1, 2, 4, 4) + bias).softmax(-1)
    assert rows.isnan().any()
    for whose in ("student", "teacher"):
        assert seen_by(AttentionMap(rows=rows, bias=bias), whose)
        assert seen_by(AttentionMap(rows=rows, bias=bias[None, None]), whose)
        assert not seen_by(AttentionMap(rows=rows), whose)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["query", "key", "bias"])
def test_queries_keys_and_bias_are_looked_at(part, value):
    parts = {"query": torch.randn(1, 2, 4, 3), "key": torch.randn(1, 2, 4, 3), "bias": torch.zeros(4, 4)}
    assert seen_by(AttentionMap(**parts), "student")
    parts[part].view(-1)[3] = value
    assert not seen_by(AttentionMap(**parts), "student")
    assert not seen_by(AttentionMap(**parts), "teacher")
