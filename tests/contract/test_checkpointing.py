"""Gradient checkpointing: the gradients of a watched host are those without it, or an error says what to change.

The very same operations run, in the same order: losses and gradients are compared bit for bit. What a checkpoint runs
again in backward is not captured again.
"""

import copy
import re
from functools import partial

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, make_optimizer, same
from torch.utils.checkpoint import checkpoint

import inpaint_distill
from inpaint_distill.errors import CaptureError, LookaheadWarning
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.networks.meta import meta_parameters

FIXED = {"warmup": 0, "balance": "none", "lookahead": {"engine": "off"}}
BLOCKS = {"completion": True, "completion_levels": (0, 1)}
ADAPTIVE = {**BLOCKS, "completion_adaptive": True}
# A power iteration that runs again in backward moves on: torch's own gradients differ then, with or without us.
MOVES_ON = {"hook_spectral_norm"}
NAMES = [name for name in SAMPLE if name not in MOVES_ON]


def run_in_backward(call, reentrant):
    """Return a function that keeps nothing of ``call`` but its arguments."""

    def again(*args, **kwargs):
        return checkpoint(partial(call, **kwargs), *args, use_reentrant=reentrant)

    return again


def overridden(module, method, reentrant):
    """Checkpoint one method of one module by a class of its own, which keeps the name, so that copies have it too."""
    kind = type(module)
    inner = getattr(kind, method)

    def call(self, *args, **kwargs):
        return run_in_backward(partial(inner, self), reentrant)(*args, **kwargs)

    module.__class__ = type(kind.__name__, (kind,), {method: call, "__module__": kind.__module__})


# A module's forward, with the hooks on the module outside; its call, with the hooks inside, to be run again with it.
inside, around = partial(overridden, method="forward"), partial(overridden, method="__call__")


def container(names):
    """Return the name of the smallest module that holds all of those named."""
    paths = [name.split(".")[:-1] for name in names]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)


# Which modules of those tapped are checkpointed, and how.
WAYS = {
    "inside the stages": lambda names: [(name, inside) for name in names],
    "around one stage": lambda names: [(names[len(names) // 2], around)],
    "around each stage": lambda names: [(name, around) for name in names],
    "around the encoder": lambda names: [(container(names), inside)],
}


class Run:
    """A host and its distiller, a step at a time."""

    def __init__(self, name, way=None, reentrant=False, **config):
        self.toy = EVERY_HOST[name]
        self.host = self.toy.build()
        self.data = [batch(seed, size=self.toy.size) for seed in range(3)]
        self.reentrant = reentrant
        stages = self.stages()
        if way is not None:
            for module, wrap in WAYS[way](list(dict.fromkeys(stage.name for stage in stages))):
                wrap(self.host.get_submodule(module), reentrant=reentrant)
        self.optimizer = make_optimizer(self.host)
        self.distiller = inpaint_distill.attach(self.host, self.optimizer, stages=stages, config=FIXED | config)
        torch.manual_seed(3)

    def stages(self):
        """Return the stages found without checkpointing; a module that is called within one has the same name."""
        host = copy.deepcopy(self.host)
        with inpaint_distill.attach(host, config=FIXED) as distiller:
            self.toy.call(host, *self.data[0])
            return distiller.plan.stages

    def step(self, number, call=None):
        """Take a step; return the loss and every gradient by name."""
        image, mask = self.data[number]
        entering = image.clone().requires_grad_()  # without it reentrant checkpoints give no gradient, and say so
        restored = self.toy.select((call or self.toy.call)(self.host, entering, mask))
        loss = (restored - image).abs().mean() + self.distiller.loss(image, mask)
        self.optimizer.zero_grad()
        loss.backward()
        gradients = {name: each.grad.clone() for name, each in self.host.named_parameters() if each.grad is not None}
        self.optimizer.step()
        return loss.detach(), gradients


def equal(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.fixture(scope="module")
def plain():
    """Return the first steps of hosts without checkpointing, run once each."""
    runs = {}

    def steps(name, **config):
        key = name, repr(config)
        if key not in runs:
            run = Run(name, **config)
            runs[key] = [run.step(number) for number in range(3)]
        return runs[key]

    return steps


@pytest.fixture
def captured(monkeypatch):
    """List the stages whose features taps keep, in the order in which they do."""
    indices = []
    keep = FeatureTaps.keep

    def counted(taps, index, output):
        indices.append(index)
        keep(taps, index, output)

    monkeypatch.setattr(FeatureTaps, "keep", counted)
    return indices


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_are_those_without_checkpointing(plain, name, way):
    run = Run(name, way)
    equal(run.step(0), plain(name)[0])
    assert run.step(1)[0].isfinite()


@pytest.mark.parametrize(
    "config", [{"balance": "gradient_norm"}, BLOCKS, ADAPTIVE], ids=["balanced", "completed", "adaptive"]
)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["separate_known", "mat"])
def test_balanced_and_completed_hosts_train_as_without_checkpointing(plain, name, way, config):
    run = Run(name, way, **config)
    equal([run.step(number) for number in range(3)], plain(name, **config))


@pytest.mark.parametrize("way", ["around one stage", "around each stage", "around the encoder"])
def test_a_block_whose_call_cannot_be_told_in_backward_is_named(way):
    run = Run("recurrent", way, completion=True, completion_levels=(0, 1))
    with pytest.raises(CaptureError, match=r"runs 3 times(.|\n)*completion_levels"):
        run.step(0)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # of the teacher, by torch
@pytest.mark.parametrize("balance", ["none", "gradient_norm"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["separate_known", "partial_conv", "in_place", "recurrent", "lama", "mat"])
def test_reentrant_checkpointing_gives_the_same_gradients_or_says_so(plain, name, way, balance):
    run = Run(name, way, reentrant=True, balance=balance)
    try:
        found = [run.step(number) for number in range(3)]
    except CaptureError as error:
        assert re.search(r"reentrant(.|\n)*use_reentrant=False", str(error))  # noqa: PT017 - either is right
    else:
        equal(found, plain(name, balance=balance))


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_reentrant_checkpointing_around_plain_stages_is_seen_through(plain):
    for way in ("inside the stages", "around one stage", "around each stage"):
        equal(Run("separate_known", way, reentrant=True).step(0), plain("separate_known")[0])


@pytest.mark.parametrize("config", [{}, {"balance": "gradient_norm"}, BLOCKS, ADAPTIVE], ids=str)
@pytest.mark.parametrize("name", ["separate_known", "mat"])
def test_a_checkpoint_around_the_whole_call_is_seen_through(plain, captured, name, config):
    expected = plain(name, **config)  # first: it seeds the random numbers of this process
    run = Run(name, **config)

    def call(host, image, mask):
        return checkpoint(run.toy.call, host, image, mask, use_reentrant=False)

    for number in range(3):
        equal(run.step(number, call), expected[number])
        assert not run.distiller._forwards.last  # nothing of the second forward is left for the next step


@pytest.mark.parametrize(
    ("name", "balance"), [*((name, "none") for name in SAMPLE), ("separate_known", "gradient_norm")]
)
@pytest.mark.parametrize("way", [*WAYS, "around the call"])
def test_what_runs_again_in_backward_is_not_captured_again(captured, name, way, balance):
    run = Run(name, None if way == "around the call" else way, balance=balance)
    image, mask = run.data[0]
    call = run.toy.call
    if way == "around the call":
        call = partial(checkpoint, call, use_reentrant=False)
    for _ in range(2):
        captured.clear()
        restored = run.toy.select(call(run.host, image, mask))
        stages = list(range(len(run.distiller.plan.stages)))
        assert captured == stages  # the student's
        loss = (restored - image).abs().mean() + run.distiller.loss(image, mask)
        teacher = captured[len(stages) :]
        assert teacher[: len(stages)] == stages
        captured.clear()
        loss.backward()
        assert not captured
        run.optimizer.step()


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("name", SAMPLE)
@pytest.mark.parametrize("way", [*WAYS, "around the call"])
def test_what_a_reentrant_checkpoint_runs_again_is_not_captured_again_either(captured, name, way):
    run = Run(name, None if way == "around the call" else way, reentrant=True)
    image, mask = run.data[0]
    call = run.toy.call
    if way == "around the call":
        call = partial(checkpoint, call, use_reentrant=True)
    loss = (run.toy.select(call(run.host, image.clone().requires_grad_(), mask)) - image).abs().mean()
    try:
        loss = loss + run.distiller.loss(image, mask)
    except CaptureError as error:
        assert re.search(r"reentrant(.|\n)*use_reentrant=False", str(error))  # noqa: PT017 - either is right
    else:
        assert captured
    captured.clear()
    if loss.requires_grad:  # not of what takes its arguments by keyword: a reentrant checkpoint does not see them
        loss.backward()
    assert not captured


class Once(torch.autograd.Function):
    """A checkpoint of a person's own, which lets go of its input in its first backward."""

    @staticmethod
    def forward(ctx, stage, x, *parameters):
        ctx.stage, ctx.input, ctx.parameters = stage, x.detach(), parameters
        with torch.no_grad():
            return stage.inside(x)

    @staticmethod
    def backward(ctx, gradient):
        with torch.enable_grad():
            x = ctx.input.requires_grad_()
            found = torch.autograd.grad(ctx.stage.inside(x), (x, *ctx.parameters), gradient)
        del ctx.input
        return (None, *found)


@pytest.mark.parametrize("balance", ["gradient_norm", "none"])
def test_a_backward_that_runs_only_once_is_named_where_the_terms_are_balanced(balance):
    host = ZOO["separate"].build()
    stage = host.enc2
    stage.inside, stage.forward = stage.forward, lambda x: Once.apply(stage, x, *stage.parameters())
    distiller = inpaint_distill.attach(host, make_optimizer(host), config={"warmup": 0, "balance": balance})
    image, mask = batch()
    own = (host(image * (1 - mask), mask) - image).abs().mean()
    if balance == "none":
        (own + distiller.loss(image, mask)).backward()
        assert all(parameter.grad.any() for parameter in host.parameters())
    else:
        with pytest.raises(CaptureError, match=r"attribute 'input'.*does not run a second time(.|\n)*balance='none'"):
            distiller.loss(image, mask)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_look_ahead_does_not_go_through_a_checkpoint_but_says_so_and_training_goes_on(engine, reentrant):
    run = Run("separate_known", "around one stage", reentrant, lookahead={"engine": engine, "every": 2})
    run.step(0)
    start = {name: value.clone() for name, value in meta_parameters(run.distiller._terms)}
    with pytest.warns(LookaheadWarning, match="gradient checkpointing"):
        run.step(1)
    assert "inpainting after look-ahead" not in run.distiller.log
    weights = copy.deepcopy(run.host.state_dict())
    assert all(run.step(number)[0].isfinite() for number in (0, 1, 2, 0))  # no second warning
    assert same(dict(meta_parameters(run.distiller._terms)), start)
    assert not same(dict(run.host.state_dict()), dict(weights))
