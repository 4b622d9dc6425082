"""What a step costs, counted: forwards, backwards, FLOPs, tensors kept, waits for the device. Nothing here is timed."""

from collections import Counter

import pytest
import torch
from hosts import EVERY_HOST, batch, reconstruct
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import inpaint_distill
from inpaint_distill.adapters import get
from inpaint_distill.injection import injected

NAMES = ["gated-conv", "two_stage", "tokens"]
# What the method adds to a step and no network: distances at the taps, no balance, no look-ahead.
BARE_TERMS = {
    "warmup": 0,
    "balance": "none",
    "predictor": False,
    "meta": (),
    "lookahead": {"engine": "off"},
    "attention": {"weight": 0.0},
    "self": {"weight": 0.0},
}
OFF = {**BARE_TERMS, "cross": {"weight": 0.0}}


class Step:
    """A host of the zoo in training; ``loss()`` is that of one step, with the distillation where it is attached."""

    def __init__(self, name, config=None, **attach):
        torch.manual_seed(0)
        self.toy = EVERY_HOST[name]
        self.host = self.toy.build()
        self.image, self.mask = batch(size=self.toy.size)
        self.optimizer = torch.optim.SGD(self.host.parameters(), 1e-3)
        self.distiller = None
        if config is not None:
            self.distiller = inpaint_distill.attach(self.host, self.optimizer, config=config, **attach)
            self.train(1)

    def loss(self):
        loss = reconstruct(self.toy, self.host, self.image, self.mask)
        return loss if self.distiller is None else loss + self.distiller.loss(self.image, self.mask)

    def train(self, steps):
        for _ in range(steps):
            self.optimizer.zero_grad()
            self.loss().backward()
            self.optimizer.step()
        return self


class Counting(TorchDispatchMode):
    """Counts the operations that run, backward included."""

    def __init__(self):
        super().__init__()
        self.operations = Counter()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.operations[function.overloadpacket] += 1
        return function(*args, **(kwargs or {}))


def flops(call):
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def saved_bytes(call):
    """Count the bytes that a graph keeps, each storage once; parameters are not its own."""
    kept = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = call()
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del value
    return total


def calls_of(modules):
    """Count how often each module runs, from now on."""
    counts = Counter()
    for name, module in modules:
        module.register_forward_hook(lambda *_, name=name: counts.update([name]))
    return counts


@pytest.mark.parametrize("name", NAMES)
def test_a_step_with_every_weight_0_runs_the_same_operations_as_a_bare_step(name):
    counted = []
    for step in (Step(name).train(1), Step(name, OFF)):
        with Counting() as mode:
            step.train(1)
        counted.append(mode.operations)
    bare, off = counted
    assert sum((off - bare).values()) <= 2  # the zero that is made and added, and nothing else
    assert not bare - off


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("teacher", ["ema", "frozen"])
def test_a_step_costs_the_bare_step_and_the_teacher_up_to_its_last_tap(name, teacher):
    images = batch(size=EVERY_HOST[name].size)[0]
    given = inpaint_distill.FrozenTeacher(images, steps=1) if teacher == "frozen" else None
    bare, distilled = Step(name).train(1), Step(name, BARE_TERMS, teacher=given)
    prefix = 0

    def count(call, image, views=distilled.distiller._teacher.views):
        nonlocal prefix
        found = []
        prefix = flops(lambda: found.append(views(call, image)))
        return found[0]

    expected = flops(lambda: bare.train(1))
    distilled.distiller._teacher.views = count
    distilled.train(1)
    del distilled.distiller._teacher.views
    together = flops(lambda: distilled.train(1))
    assert expected + prefix <= together <= 1.02 * (expected + prefix)  # the complete image is put into the call
    assert prefix < flops(lambda: reconstruct(bare.toy, bare.host, bare.image, bare.mask)), "it ran to its end"


@pytest.mark.parametrize("name", NAMES)
def test_every_module_of_the_host_runs_once_a_step_and_the_teacher_s_only_up_to_the_last_tap(name):
    step = Step(name, BARE_TERMS)
    alone = Step(name).train(1)
    expected = calls_of(alone.host.named_modules())
    own = calls_of(step.host.named_modules())
    teacher = calls_of(step.distiller._teacher.module.named_modules())
    alone.train(3)
    step.train(3)
    assert own == expected
    assert all(teacher[each] <= own[each] for each in own)
    assert sum(teacher.values()) < sum(own.values())
    assert teacher[""] == 0  # its forward is left at the last tap


@pytest.mark.parametrize(
    ("config", "extra"),
    [
        ({}, 0),
        ({"teacher": "online"}, 1),
        ({"balance": "gradient_norm"}, 1 + 3),
        ({"balance": "gradient_norm", "self": {"weight": 0.05}}, 1 + 3 + 2),
        ({"lookahead": {"engine": "finite_difference", "every": 1}, "meta": None}, 4),
        ({"lookahead": {"engine": "unroll", "every": 1}, "meta": None}, 2),
    ],
)
def test_backward_passes_of_a_step(config, extra, monkeypatch):
    """A measured step takes one for all terms together and one per level of each.

    Of a look-ahead, finite differences take two through the host and two through the meta-networks; unroll two.
    """
    step = Step("gated-conv", {**BARE_TERMS, **config}).train(1)
    passes = Counter()
    run = torch.autograd.graph._engine_run_backward

    def counted(*args, **kwargs):
        passes["all"] += 1
        return run(*args, **kwargs)

    monkeypatch.setattr(torch.autograd, "_engine_run_backward", counted)
    step.train(1)
    assert passes["all"] == 1 + extra


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_keeps_little_more_than_the_features_it_compares(name):
    bare, distilled = Step(name), Step(name, BARE_TERMS)
    stages = distilled.distiller.plan.stages
    area = bare.toy.size**2 * bare.image.shape[0] * 4
    features = sum(stage.channels * area / stage.stride**2 for stage in stages)
    # Per stage: what the distance is taken of, and of the normalised feature the difference to the teacher's.
    assert saved_bytes(distilled.loss) - saved_bytes(bare.loss) <= 5 * features


def test_what_waits_for_a_device_is_the_checks_alone(monkeypatch):
    """Apart from them, which an accelerator sees every 100 steps, no number is read in a step."""
    step = Step("gated-conv", {**BARE_TERMS, "predictor": True, "meta": None, "lookahead": {}})
    with Counting() as checked:
        step.train(1)
    assert checked.operations[torch.ops.aten._local_scalar_dense]
    monkeypatch.setattr("inpaint_distill.losses.screen._where", lambda good, each: torch.where(good, each, 0))
    monkeypatch.setattr("inpaint_distill.distiller.check_values", lambda *_, **__: None)
    monkeypatch.setattr("inpaint_distill.losses.screen.Screen.check", lambda *_: None)
    monkeypatch.setattr("inpaint_distill.host.replay.Recipe.fits", lambda *_: True)
    with Counting() as unchecked:
        step.train(1)
    assert not unchecked.operations[torch.ops.aten._local_scalar_dense]


# As in benchmarks/boost_study.yaml, and about as in the hosts' own papers.
WIDTHS = {
    "gated-conv": ({"width": 12}, {"width": 48}),
    "contextual-attention": ({"width": 8}, {"width": 32}),
    "aot-gan": ({"width": 12, "blocks": 4}, {"width": 64, "blocks": 8}),
    "lama": ({"width": 12, "blocks": 3}, {"width": 64, "blocks": 9}),
    "unet": ({"backbone": "resnet10t", "width": 8}, {"backbone": "resnet50", "width": 64}),
}


@pytest.mark.parametrize("name", WIDTHS)
def test_a_block_at_the_input_is_much_of_a_narrow_host_and_a_hundredth_of_a_wide_one(name):
    """Counted: of a forward's FLOPs, what the block adds to it."""
    adapter, (image, mask) = get(name), batch(size=64, count=1)
    shares = []
    for options in WIDTHS[name]:
        host = adapter.build(**options)
        alone = flops(lambda host=host: adapter.outputs(host, image, mask))
        config = {"completion": True, **{term: {"weight": 0.0} for term in ("cross", "self", "attention")}}
        distiller = inpaint_distill.attach(host, image=image, mask=mask, adapter=adapter, config=config)
        adapter.outputs(host, image, mask)
        distiller.loss(image, mask)
        distiller.detach()
        assert injected(host).image_block is not None
        shares.append(flops(lambda host=host: adapter.outputs(host, image, mask)) / alone - 1)
    narrow, wide = shares
    assert 0.09 < narrow < 0.24
    assert 0.002 < wide < 0.01
