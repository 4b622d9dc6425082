"""``torch.compile``: a compiled host is seen and trains as the uncompiled one, in one graph, or an error says why not.

Losses and weights are compared bit for bit: the backends here (``aot_eager``, ``eager``) run the host's own operations.
"""

import os
import re
import shutil
from collections import Counter
from functools import partial

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, footprint, make_optimizer, reconstruct, same, train
from torch._dynamo.utils import counters

import inpaint_distill
from inpaint_distill.errors import CaptureError
from inpaint_distill.losses import balance

# Dynamo hides a warning of its own, but not from a suite where warnings are errors.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute")
CONFIG = {"warmup": 0, "balance": "none", "lookahead": {"every": 2}}
NAMES = [name for name in SAMPLE if name in ZOO]
# ``aot_eager`` for the sample's toys; dynamo alone, which is quicker, for all others.
IN_ONE_GRAPH = [(name, "aot_eager" if name in NAMES else "eager") for name in EVERY_HOST]
# Tapped attention ends the graph where it is.
ATTENDS = {name for name, toy in ZOO.items() if toy.attention}
ATTENDS |= {"gated-conv", "contextual-attention", "rfr", "ctsdg", "mat"}
ATTENDS |= {"diffusers-pixels", "diffusers-inpainting-unet"}
UNTAPPED = {"attention": ()}
# What a tap adds to a graph: copies of what is overwritten, two halves joined.
TAPPED = {"in_place": {"clone": 3}, "lama": {"cat": 1}}
AT_THE_ROOT = r"plans and watches beside the host's graph|`Distiller\._(before|after|finish)_forward`"
# Its list grows, and dynamo guards its length: a bare one is compiled a second time too.
GROWS = {"private_cache"}


@pytest.fixture(autouse=True)
def _uncompiled():
    """Forget compiled graphs: dynamo shares them among the instances of a class, whatever hooks these have."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def around(host, **options):
    return torch.compile(host, **{"backend": "aot_eager"} | options)


def in_place(host, **options):
    host.compile(**{"backend": "aot_eager"} | options)
    return host


eagerly = partial(around, backend="eager")  # quicker to compile
BOTH = pytest.mark.parametrize("compile", [around, in_place])


class Run:
    """A host in training, compiled before or after a distiller is attached to it, or not at all."""

    def __init__(self, name, before=None, after=None, config=None, **arguments):
        self.toy = EVERY_HOST[name]
        self.host = self.toy.build()
        self.optimizer = make_optimizer(self.host)
        self.called = before(self.host) if before else self.host
        given = {**self.toy.given, "config": CONFIG | (config or {}), **arguments}
        self.distiller = inpaint_distill.attach(self.called, self.optimizer, **given)
        if after:
            self.called = after(self.host)
        torch.manual_seed(3)

    def loss(self, image, mask):
        return reconstruct(self.toy, self.called, image, mask) + self.distiller.loss(image, mask)

    def train(self, steps=3, start=0):
        """Take steps; return the losses."""
        losses = []
        for seed in range(start, start + steps):
            loss = self.loss(*batch(seed, **self.toy.images))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            losses.append(loss.detach())
        return losses

    def trained(self, steps=3):
        """Return all that came of training."""
        losses = self.train(steps)
        teacher = self.distiller._teacher.state()[0]
        terms = dict(self.distiller._terms.state_dict())
        return losses, dict(self.host.state_dict()), teacher, terms, torch.get_rng_state()


def graphs():
    return counters["stats"]["unique_graphs"]


def breaks():
    return sum(counters["graph_break"].values())


class Traced(list):
    """A backend that counts the operations of every graph that it is given, and runs them as they are."""

    def __call__(self, graph, inputs):
        calls = (node.target for node in graph.graph.nodes if node.op.startswith("call"))
        self.append(Counter(getattr(call, "__name__", call) for call in calls))
        return graph.forward


def traced_alone(name, steps):
    """Return the graphs of a compiled host that is trained without a distiller."""
    torch.compiler.reset()
    toy, found = EVERY_HOST[name], Traced()
    host = toy.build()
    train(toy, around(host, backend=found), make_optimizer(host), batches(steps, **toy.images))
    return found


# -- what is seen ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "backend"), IN_ONE_GRAPH)
def test_a_host_in_one_graph_trains_as_the_uncompiled_one(name, backend):
    untapped = UNTAPPED if name in ATTENDS else {}
    steps = 2 if backend == "eager" else 3  # a look-ahead is in the second
    compiled = Run(name, partial(around, backend=backend, fullgraph=True), **untapped).trained(steps)
    assert breaks() == 0
    assert graphs() == (len(traced_alone(name, steps)) if name in GROWS else 1)  # as many as without a distiller
    assert same(compiled, Run(name, **untapped).trained(steps))


@pytest.mark.parametrize("config", [{}, {"balance": "gradient_norm"}, {"teacher": "online"}], ids=str)
@pytest.mark.parametrize("fullgraph", [False, True])
def test_a_host_compiled_in_place_trains_as_the_uncompiled_one(monkeypatch, fullgraph, config):
    monkeypatch.setattr(balance, "EAGER_STEPS", 2)
    compiled = Run("separate_known", partial(in_place, fullgraph=fullgraph), config=config).trained()
    assert breaks() == 0
    assert graphs() == 1
    assert same(compiled, Run("separate_known", config=config).trained())


@BOTH
def test_a_host_compiled_after_it_was_attached_to_is_seen(compile):
    compiled = Run("separate_known", after=compile)
    losses = compiled.trained()
    assert graphs() == 1
    assert same(losses, Run("separate_known").trained())


@pytest.mark.parametrize(("name", "compile"), [("separate_known", in_place), *((name, around) for name in SAMPLE)])
def test_compiled_after_attach_the_hosts_own_graph_stays_whole(name, compile):
    """The graph breaks, but at the hooks on the root: before the host's first operation and after its last."""
    untapped, found = UNTAPPED if name in ATTENDS else {}, Traced()
    compiled = Run(name, after=partial(compile, backend=found), **untapped).trained(2)
    reasons = [*counters["graph_break"]]
    assert reasons
    assert all(re.search(AT_THE_ROOT, reason) for reason in reasons)
    assert same(compiled, Run(name, **untapped).trained(2))
    (alone,) = traced_alone(name, 2)
    assert found == [alone + Counter(TAPPED.get(name))]


@BOTH
def test_gradients_that_are_watched_inside_the_graph_end_it_or_say_how_to_go_on(compile):
    config = {"balance": "gradient_norm"}
    compiled = Run("separate_known", after=partial(compile, backend="eager"), config=config).trained()
    assert same(compiled, Run("separate_known", config=config).trained())
    torch.compiler.reset()
    with pytest.raises(CaptureError, match=r"compiled after attach(.|\n)*compile first, then attach"):
        Run("separate_known", after=compile, config=config).train(1)


@BOTH
def test_a_host_compiled_in_one_graph_after_it_was_attached_to_is_told_how_to_go_on(compile):
    run = Run("separate_known", after=partial(compile, fullgraph=True))
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"fullgraph=True(.|\n)*compile first, then attach"):
        run.train(1)


@BOTH
def test_a_host_that_ran_compiled_before_says_so_and_how_to_go_on(compile):
    toy = EVERY_HOST["separate_known"]
    called = compile(toy.build(), backend="eager")
    image, mask = batch()
    toy.call(called, image, mask)
    distiller = inpaint_distill.attach(called, config=CONFIG)
    toy.call(called, image, mask)
    with pytest.raises(CaptureError, match=r"compiled before(.|\n)*torch.compiler.reset"):
        distiller.loss(image, mask)
    torch.compiler.reset()
    toy.call(called, image, mask)
    assert distiller.loss(image, mask) > 0


@pytest.mark.parametrize("part", ["up", "enc1"])
@pytest.mark.parametrize("kind", ["around", "in place"])
def test_a_compiled_part_of_a_host_is_seen(part, kind):
    def compile(host):
        if kind == "around":
            setattr(host, part, around(getattr(host, part)))
        else:
            in_place(getattr(host, part))
        return host

    losses, weights, *_ = Run("separate_known", compile).trained()
    expected = Run("separate_known").trained()
    assert same(losses, expected[0])
    assert same([*weights.values()], [*expected[1].values()])


@pytest.mark.filterwarnings("ignore:Dynamo")
def test_a_step_that_is_compiled_as_a_whole_is_the_same_step():
    compiled = Run("separate_known")
    compiled.loss = torch.compile(compiled.loss, backend="eager")
    assert same(compiled.trained(), Run("separate_known").trained())


@pytest.mark.parametrize("name", ["two_stage", "recurrent"])
def test_a_compiled_part_that_holds_every_stage_is_not_compiled_anew_at_every_step(name):
    def compile(host):
        part = "fine" if name == "two_stage" else "down"
        setattr(host, part, around(getattr(host, part), backend="eager"))
        return host

    run = Run(name, compile)
    losses = run.train(4)
    first = graphs()
    losses += run.train(8, start=4)
    assert graphs() == first
    assert same(losses, Run(name).train(12))


# -- attention ---------------------------------------------------------------------------------------------------------


def test_tapped_attention_ends_the_graph_where_it_is_and_nowhere_else():
    compiled = Run("gated-conv", eagerly).trained(2)
    reasons = " ".join(counters["graph_break"])
    assert breaks() > 0
    assert "attention is read beside the host's graph" in reasons
    assert "Distiller" not in reasons
    assert same(compiled, Run("gated-conv").trained(2))


def test_tapped_attention_in_one_graph_is_refused_with_the_reason_and_the_way_out():
    one = partial(around, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"fullgraph=True(.|\n)*attention=\(\)"):
        Run("gated-conv", one).train(1)
    torch.compiler.reset()
    without = {"lookahead": {"engine": "off"}}
    assert same(
        Run("gated-conv", one, config=without, attention=()).train(2),
        Run("gated-conv", config=without, attention=()).train(2),
    )


# -- blocks that stay in the host --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["completion", "completion_adaptive", "fusion"])
def test_injected_blocks_are_part_of_the_graph_and_stay_when_the_distiller_goes(option):
    toy = EVERY_HOST["separate_known"]
    image, mask = batch(size=toy.size)
    levels = {} if option == "fusion" else {"completion": True, "completion_levels": (2,)}
    arguments = {"config": {option: True, **levels}, "image": image, "mask": mask}
    compiled, plain = (Run("separate_known", each, **arguments) for each in (eagerly, None))
    assert same(compiled.trained(), plain.trained())
    expected = plain.distiller.detach()
    called = compiled.distiller.detach()
    with torch.no_grad():
        assert same(toy.call(called, image, mask), toy.call(expected, image, mask))


@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
def test_completion_blocks_go_into_one_graph(adaptive):
    one = partial(around, backend="eager", fullgraph=True)
    config = {"completion": True, "completion_adaptive": adaptive}
    compiled = Run("separate_known", one, config=config)
    losses = compiled.train(2)
    first = graphs()
    losses += compiled.train(4, start=2)
    assert graphs() == first
    assert breaks() == 0
    assert same(losses, Run("separate_known", config=config).train(6))


# -- step after step ---------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("balanced", ["none", "gradient_norm"])
def test_warm_up_fade_look_ahead_and_validation_compile_nothing_anew(monkeypatch, compile, balanced):
    monkeypatch.setattr(balance, "EAGER_STEPS", 2)
    config = {"warmup": 4, "decay": (6, 10), "lookahead": {"every": 3}, "balance": balanced, "balance_every": 4}
    compiled, plain = (Run("separate_known", each, config=config) for each in (partial(compile, fullgraph=True), None))
    toy = compiled.toy
    for steps, start in ((4, 0), (9, 4)):
        assert same(compiled.train(steps, start), plain.train(steps, start))
        image, mask = batch(99, size=toy.size)
        for run in (compiled, plain):
            with torch.no_grad(), run.distiller.paused():
                toy.call(run.called, image, mask)
    assert same(dict(compiled.host.state_dict()), dict(plain.host.state_dict()))
    assert breaks() == 0
    assert graphs() <= 3  # watched, not watched, without gradients


def test_an_error_in_a_forward_that_is_not_compiled_leaves_compiling_on():
    run = Run("separate_known", around, config={"balance": "gradient_norm"})
    image, mask = batch(size=run.toy.size)
    run.train(1)
    with pytest.raises(RuntimeError):
        run.called(image[:, :1], mask)
    assert torch._dynamo.eval_frame._stance.stance == "default"
    assert run.train(1)[0].isfinite()


# -- what is left ------------------------------------------------------------------------------------------------------


@BOTH
def test_a_detached_host_stays_compiled_and_carries_nothing(compile):
    toy = EVERY_HOST["separate_known"]
    host = toy.build()
    called = compile(host, fullgraph=True)
    before = footprint(called)
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(called, optimizer, config=CONFIG)
    image, mask = batch(size=toy.size)
    for _ in range(2):
        loss = reconstruct(toy, called, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert distiller.detach() is called
    assert footprint(called) == before
    del distiller
    bare = toy.build()
    bare.load_state_dict(host.state_dict())
    assert same(toy.call(called, image, mask), toy.call(bare, image, mask))
    reconstruct(toy, called, image, mask).backward()


def test_a_host_compiled_in_place_has_its_own_call_back_when_the_distiller_is_dropped():
    toy = EVERY_HOST["separate_known"]
    host = in_place(toy.build())
    own = host._compiled_call_impl
    distiller = inpaint_distill.attach(host, config=CONFIG)
    toy.call(host, *batch())
    del distiller
    assert host._compiled_call_impl is own


# -- code that is generated --------------------------------------------------------------------------------------------


# Not batch_norm: of a bias before it the gradient is rounding alone, which Adam makes whole steps of.
GENERATED = ("separate_known", "two_stage", "partial_conv", "tokens", "in_place")


@pytest.mark.skipif(
    not any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++"))), reason="no C++ compiler for inductor"
)
@pytest.mark.parametrize(("name", "compile"), [("separate_known", in_place), *((name, around) for name in GENERATED)])
def test_inductor_agrees_to_rounding(name, compile):
    one = partial(compile, backend="inductor", fullgraph=True)
    losses, weights, *_ = Run(name, one).trained()
    assert breaks() == 0
    assert graphs() == 1
    expected = Run(name).trained()
    torch.testing.assert_close(losses, expected[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, expected[1], rtol=0, atol=1e-3)  # Adam divides small gradients by their size
