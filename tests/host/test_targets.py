"""What modules may be named by, and that a name, a glob, an expression, a class and a function tap the same."""

import re

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, same, state_of, train
from hosts.base import Down, Plain, Up
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import inpaint_distill
from inpaint_distill.errors import CaptureError, PlanError
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.named_stages import named_stages
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.targets import format_target, match
from inpaint_distill.host.trace import trace_forward

TOY = ZOO["concatenated"]
CONFIG = {"warmup": 0, "balance": "none", "lookahead": {"engine": "off"}}


class Level(nn.Sequential):
    """A stage of a class of its own."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


class Own(Plain):
    """The zoo's network out of such stages."""

    def __init__(self):
        super().__init__(4, Level)


def is_level(name, module):
    return name.startswith("enc") and len(list(module.children())) == 2


TARGETS = {
    "names": ["enc0", "enc1", "enc2"],
    "glob": ["enc?"],
    "globs": ["enc[01]", "*c2"],
    "expression": [re.compile(r"enc\d")],
    "class": [Level],
    "function": [is_level],
    "stages": [Stage(name="enc0"), Stage(name="enc1"), Stage(name="enc2")],
    "mixture": ["enc0", re.compile(r"enc1"), Stage(name="enc2")],
}


def build():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return Own()


@pytest.fixture(scope="module")
def by_names():
    return trained(TARGETS["names"])


def trained(stages):
    host = build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, stages=stages, config=CONFIG)
    torch.manual_seed(3)
    losses = train(TOY, host, optimizer, batches(2), distiller)
    found = [stage.label for stage in distiller.plan.stages], distiller.plan.reason
    assert distiller.detach() is host
    return found, losses, state_of(host, optimizer)


@pytest.mark.parametrize("name", TARGETS)
def test_a_host_trains_the_same_whichever_way_its_stages_are_named(name, by_names):
    found, losses, state = trained(TARGETS[name])
    assert found == (["enc0", "enc1", "enc2"], "given by name")
    assert all(loss.isfinite() for loss in losses)
    assert same((losses, state), by_names[1:])


# -- the matching itself -----------------------------------------------------------------------------------------------

NAMES = ["enc.0", "enc.1", "enc.10", "dec.0", "head"]
MODULES = dict(
    zip(NAMES, [nn.Conv2d(1, 1, 1), nn.ReLU(), Level(1, 1), nn.Conv2d(1, 1, 1), nn.Linear(1, 1)], strict=True)
)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("enc.1", ["enc.1"]),
        ("enc.?", ["enc.0", "enc.1"]),
        ("*.0", ["enc.0", "dec.0"]),
        ("Enc.*", []),
        ("enc", []),
        (re.compile(r"enc\.1"), ["enc.1"]),
        (re.compile(r"ENC\..*", re.IGNORECASE), ["enc.0", "enc.1", "enc.10"]),
        (re.compile(r"0"), []),
        (nn.Conv2d, ["enc.0", "dec.0"]),
        (nn.Sequential, ["enc.10"]),
        (nn.Module, NAMES),
        (nn.LSTM, []),
        (lambda name, module: name > "enc.1", ["enc.10", "head"]),
        (lambda name, module: isinstance(module, nn.Linear), ["head"]),
    ],
    ids=lambda value: format_target(value) if not isinstance(value, list) else "",
)
def test_a_target_matches_whole_names_in_the_order_of_the_names(target, expected):
    assert match(target, NAMES, MODULES) == expected
    assert match(target, reversed(NAMES), MODULES) == expected[::-1]


@given(st.lists(st.sampled_from(NAMES), unique=True), st.sampled_from(NAMES))
def test_a_name_that_exists_stands_for_itself_alone(names, name):
    assert match(name, names, MODULES) == [name] * (name in names)
    assert match(re.compile(re.escape(name)), names, MODULES) == [name] * (name in names)


def test_a_name_with_the_characters_of_a_glob_is_taken_literally_where_it_exists():
    modules = {"enc[0]": nn.ReLU(), "enc0": nn.ReLU()}
    assert match("enc[0]", modules, modules) == ["enc[0]"]
    assert match("enc[0]", ["enc0"], modules) == ["enc0"]


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("enc.*", "'enc.*'"),
        (re.compile("enc.+"), "re.compile('enc.+')"),
        (nn.Conv2d, "Conv2d"),
        (is_level, "is_level"),
    ],
)
def test_a_target_is_shown_as_it_was_given(target, text):
    assert format_target(target) == text


# -- what matches nothing ----------------------------------------------------------------------------------------------


class Unused(nn.Module):
    """A class that no host has."""


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (Unused, "stage Unused(.|\n)*no module of that name ran"),
        (re.compile("nope.*"), r"stage re.compile\('nope\.\*'\)(.|\n)*no module"),
        (lambda name, module: False, "lambda(.|\n)*no module"),
        ("enk1", "stage 'enk1'(.|\n)*such as enc1"),
    ],
    ids=["class", "expression", "function", "name"],
)
def test_a_target_that_matches_nothing_is_an_error_that_shows_it_and_installs_nothing(target, words):
    host = build()
    before = footprint(host)
    image, mask = batch()
    with pytest.raises(PlanError, match=words):
        inpaint_distill.attach(host, image=image, mask=mask, stages=["enc0", target])
    assert footprint(host) == before


class Bypassing(Own):
    """Its second stage is there, but its forward is not what is called."""

    def __init__(self):
        super().__init__()
        self.bypass = True

    def forward(self, x):
        x = self.enc0(x)
        x = self.enc1.forward(x) if self.bypass else self.enc1(x)
        return self.up(self.enc2(x))


@pytest.mark.parametrize("target", ["enc1", "enc1*", re.compile("enc1"), Stage(name="enc1")], ids=str)
def test_a_module_whose_forward_is_bypassed_is_called_so(target):
    host = Bypassing()
    if target == "enc1*":
        host.enc1 = nn.Conv2d(8, 12, 3, 2, 1)  # nothing inside that runs
    image, mask = batch()
    with pytest.raises(PlanError, match=r"enc1 did not run in the host's forward(.|\n)*such as (enc0|enc2)"):
        inpaint_distill.attach(host, image=image, mask=mask, stages=["enc0", target])


def test_a_stage_that_is_bypassed_later_in_training_is_named_at_that_step():
    host = Bypassing()
    host.bypass = False
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, stages=["enc0", "enc1", "enc2"], config=CONFIG)
    train(TOY, host, optimizer, batches(1), distiller)
    host.bypass = True
    with pytest.raises(CaptureError, match=r"a feature of enc1\n(.|\n)*bypassed"):
        train(TOY, host, optimizer, batches(1), distiller)


# -- attention ---------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    """Global attention on a map."""

    def __init__(self, width=16):
        super().__init__()
        self.to_keys = nn.Conv2d(width, width, 1)

    def forward(self, feature):
        tokens = self.to_keys(feature).flatten(2).mT
        return feature + (tokens @ tokens.mT).softmax(-1).matmul(tokens).mT.view_as(feature)


class Attentive(Down):
    """Two attention layers before the decoder."""

    def __init__(self):
        super().__init__(4)
        self.mix = nn.Sequential(Attention(), Attention())
        self.up = Up()

    def forward(self, x):
        return self.up(self.mix(super().forward(x)))


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("mix.0", ["mix.0"]),
        ("mix.*", ["mix.0", "mix.1"]),
        (re.compile(r"mix\.\d"), ["mix.0", "mix.1"]),
        (Attention, ["mix.0", "mix.1"]),
        (lambda name, module: name.endswith("1"), ["mix.1"]),
        (AttentionSite(name="mix.0", kind="softmax"), ["mix.0"]),
    ],
    ids=["name", "glob", "expression", "class", "function", "site"],
)
def test_attention_can_be_named_in_the_same_ways(target, expected):
    host = Attentive()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, attention=[target], config=CONFIG)
    losses = train(TOY, host, optimizer, batches(2), distiller)
    assert all(loss.isfinite() for loss in losses)
    assert [site.name for site in distiller.plan.attention] == expected
    assert any("attention" in name for name in distiller.log)


def test_a_class_without_attention_is_refused_by_its_name():
    image, mask = batch()
    with pytest.raises(PlanError, match=r"attention Unused(.|\n)*such as mix"):
        inpaint_distill.attach(Attentive(), image=image, mask=mask, attention=[Unused])


def test_a_class_taps_its_modules_in_the_order_in_which_they_run():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.middle, self.first = Level(12, 16, 2), Level(8, 12, 2), Level(4, 8)

        def forward(self, x):
            return self.last(self.middle(self.first(x)))

    host = Backwards()
    trace = trace_forward(host, lambda: host(torch.randn(2, 4, 32, 48)), (32, 48))
    assert [stage.name for stage in named_stages(trace, [Level])] == ["first", "middle", "last"]
