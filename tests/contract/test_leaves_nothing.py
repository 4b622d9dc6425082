"""Of every host: watching changes nothing, weight 0 is the bare host, and after detach() it was never attached."""

import copy
import dataclasses
import itertools
from contextlib import suppress

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, footprint, make_optimizer, same, state_of, train

import inpaint_distill
from inpaint_distill.errors import PlanError
from inpaint_distill.teachers import FrozenTeacher

OFF = {"cross": {"weight": 0.0}, "self": {"weight": 0.0}, "attention": {"weight": 0.0}}
COUNTS = {"warmup": 0, "balance": "none", "ema_decay": 0.9, "lookahead": {"every": 2}}  # from the first step on
EVERY_TOY = [pytest.param(toy, id=name) for name, toy in EVERY_HOST.items()]
SOME = [pytest.param(EVERY_HOST[name], id=name) for name in (*SAMPLE, "root_attention", "multi_head", "rebuilt")]


# -- while it is attached ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", EVERY_TOY)
def test_zero_weights_train_bit_identically_to_the_bare_host(toy):
    runs = []
    for attached in (False, True):
        torch.manual_seed(1)
        host = toy.build()
        optimizer = make_optimizer(host)
        distiller = inpaint_distill.attach(host, optimizer, config=OFF, **toy.given) if attached else None
        losses = train(toy, host, optimizer, batches(3, **toy.images), distiller)
        runs.append((state_of(host, optimizer), losses))
    assert same(runs[0], runs[1])


@pytest.mark.parametrize("toy", EVERY_TOY)
def test_a_dry_run_changes_nothing_of_the_training_after_it(toy):
    image, mask = batch(**toy.images)
    runs = []
    for attached in (False, True):
        torch.manual_seed(1)
        host = toy.build()
        optimizer = make_optimizer(host)
        if attached:
            with suppress(PlanError):  # of some hosts nobody can guess the call
                inpaint_distill.plan(host, image, mask, adapter=toy.adapter)
        train(toy, host, optimizer, batches(2, **toy.images))
        runs.append(state_of(host, optimizer))
    assert same(runs[0], runs[1])


@pytest.mark.parametrize("toy", EVERY_TOY)
def test_the_forward_is_the_same_while_it_is_watched(toy):
    image, mask = batch(**toy.images)
    outputs = []
    for attached in (False, True):
        host = toy.build()
        distiller = inpaint_distill.attach(host, config=COUNTS, **toy.given) if attached else None
        torch.manual_seed(5)
        outputs.append(toy.select(toy.call(host, image, mask)).detach().clone())
        if distiller:
            distiller.loss(image, mask)
        outputs.append(torch.get_rng_state())
        outputs.append(copy.deepcopy(host.state_dict()))
    assert same(outputs[:3], outputs[3:])


@pytest.mark.parametrize("toy", EVERY_TOY)
def test_the_loss_alone_reaches_the_layers_up_to_every_tapped_stage(toy):
    host = toy.build()
    distiller = inpaint_distill.attach(host, config=COUNTS, **toy.given)
    image, mask = batch(**toy.images)
    toy.call(host, image, mask)
    distiller.loss(image, mask).backward()
    modules = dict(host.named_modules())
    for stage in distiller.plan.stages:
        gradients = [p.grad for p in modules[stage.name].parameters() if p.requires_grad]
        if gradients:  # an activation has no parameter of its own
            assert any(g is not None and g.abs().sum() > 0 for g in gradients), stage.label


@pytest.mark.parametrize("name", [name for name in EVERY_HOST if name not in ZOO])
def test_the_dry_run_shows_the_stages_that_attach_taps(name):
    toy = EVERY_HOST[name]
    host = toy.build()
    image, mask = batch(**toy.images)
    shown = inpaint_distill.plan(host, image, mask, adapter=toy.adapter)
    with inpaint_distill.attach(host, image=image, mask=mask, **toy.given) as distiller:
        assert shown.stages == distiller.plan.stages


# -- after detach ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("toy", EVERY_TOY)
def test_after_detach_a_trained_host_is_one_that_was_never_attached(toy):
    leaves_nothing(toy)


@pytest.mark.parametrize("config", [{"completion": True, "fusion": True}, {"teacher": "online"}], ids=str)
@pytest.mark.parametrize("toy", SOME)
def test_after_detach_nothing_is_left_of_blocks_or_of_another_teacher_either(toy, config):
    leaves_nothing(toy, **config)


def leaves_nothing(toy, count=2, teacher=None, **config):
    """Train a host and a bare one on batches of so many; after detach() they differ in their weights alone."""
    bare, host = (train_and_note(toy, each, count, teacher) for each in (None, {**COUNTS, **config}))
    assert host.classes == bare.classes
    assert host.keys == bare.keys
    assert host.changed <= bare.changed, "an attribute or hook that the host's own training leaves alone"
    assert host.optimizer == bare.optimizer
    # In training mode first: the state that it leaves is then seen in eval mode.
    bare.host.load_state_dict(host.host.state_dict())
    for training in (True, False):
        assert same(*(run(toy, each.host, training) for each in (host, bare)))


class Noted:
    """A host after three steps, and what they changed of it other than values of tensors."""


def train_and_note(toy, config, count, teacher):
    """Train three steps, attached where there is a configuration, and detach."""
    noted, host = Noted(), toy.build()
    optimizer = make_optimizer(host)
    before = footprint(host)
    alive = [dict(vars(part)) for part in host.modules()]  # no new object may get the identity of an old one
    distiller = None
    if config is not None:
        distiller = inpaint_distill.attach(host, optimizer, teacher=teacher, config=config, **toy.given)
    losses = train(toy, host, optimizer, batches(3, count=count, **toy.images), distiller)
    assert all(torch.isfinite(loss) for loss in losses)
    if distiller is not None:
        assert distiller.plan is not None
        assert distiller.log["loss"] > 0
        assert distiller.detach(keep_completion=False) is host
    after = footprint(host)
    noted.host = host
    noted.classes = {name: kind for name, (kind, _) in after.items()}
    noted.keys = [(name, tensor.dtype, tensor.shape) for name, tensor in host.state_dict().items()]
    noted.changed = {
        (name, key)
        for name, (_, values) in after.items()
        for key in values.keys() | before[name][1].keys()
        if values.get(key, alive) != before[name][1].get(key, alive)
    }
    hooks = {key: len(value) for key, value in vars(optimizer).items() if key.endswith("hooks")}
    groups = [{**group, "params": len(group["params"])} for group in optimizer.param_groups]
    noted.optimizer = (vars(optimizer).keys(), hooks, groups, len(optimizer.state))
    return noted


def run(toy, host, training):
    """Run from a fixed random state; return the output, and the state that the forward leaves."""
    host.train(training)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        output = toy.select(toy.call(host, *batch(9, **toy.images))).detach().clone()
        return output, copy.deepcopy(host.state_dict()), torch.get_rng_state()


# -- batches of one ----------------------------------------------------------------------------------------------------


def fixed_norms():
    """Build the host that normalises single pixels, as one that trains on batches of one leaves its statistics."""
    host = EVERY_HOST["pooled_norm"].build()
    host.gate[2].eval()
    return host


FIXED_NORMS = dataclasses.replace(EVERY_HOST["pooled_norm"], make=fixed_norms)
TEACHERS = {
    "ema": lambda: "ema",
    "online": lambda: "online",
    "frozen": lambda: FrozenTeacher(batch(count=3)[0], steps=3),  # of three images, two and one
}


@pytest.mark.parametrize("toy", [pytest.param(EVERY_HOST[name], id=name) for name in SAMPLE])
def test_a_batch_of_one_trains_a_host_and_leaves_nothing_either(toy):
    leaves_nothing(toy, 1)


@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_batch_of_one_trains_a_host_that_keeps_its_statistics_with_any_teacher(teacher):
    leaves_nothing(FIXED_NORMS, 1, TEACHERS[teacher]())


@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")
@pytest.mark.parametrize("teacher", TEACHERS)
def test_a_batch_of_one_that_the_host_refuses_is_refused_in_its_own_words_and_the_next_is_trained_on(teacher):
    toy, runs = EVERY_HOST["pooled_norm"], []
    for refused in (False, True):
        host = toy.build()
        optimizer = make_optimizer(host)
        distiller = inpaint_distill.attach(host, optimizer, teacher=TEACHERS[teacher](), config=COUNTS)
        losses = train(toy, host, optimizer, batches(2), distiller)
        if refused:
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                train(toy, host, optimizer, batches(1, count=1), distiller)
        losses += train(toy, host, optimizer, batches(2, 2), distiller)
        runs.append((losses, [each.detach() for each in host.parameters()]))  # torch counts the refused batch
    assert same(*runs)


# -- hosts that move ---------------------------------------------------------------------------------------------------


def doubled(data):
    return [(image.double(), mask.double()) for image, mask in data]


def in_double(distiller):
    """Copy all that a distiller has learned."""
    states = {name: part.state()[0] for name, part in distiller._parts.items()}
    return {name: {key: each.clone().double() for key, each in own.items()} for name, own in states.items()}


BESIDE = [{}, {"teacher": "online"}, {"completion": True, "fusion": True}]
FEW = ("mask_updater", "root_attention", "rebuilt")


@pytest.mark.parametrize(
    ("name", "config"), [*((name, {}) for name in SAMPLE), *itertools.product(FEW, BESIDE)], ids=str
)
def test_a_host_moved_to_another_dtype_after_attach_trains_as_one_that_was_moved_before(name, config):
    toy, runs = EVERY_HOST[name], []
    for moves_late in (False, True):
        host = toy.build()
        optimizer = make_optimizer(host)
        if not moves_late:
            host.double()
        distiller = inpaint_distill.attach(host, optimizer, config={**COUNTS, **config})
        before = copy.deepcopy(host.state_dict())
        toy.call(host, *(batch(**toy.images) if moves_late else doubled([batch(**toy.images)])[0]))
        assert distiller.plan is not None
        host.load_state_dict(before, strict=False)  # it has blocks now
        host.double()
        torch.manual_seed(1)
        losses = train(toy, host, optimizer, doubled(batches(3, **toy.images)), distiller)
        assert distiller.log["loss"] > 0
        assert distiller.detach(keep_completion=False) is host
        runs.append((losses, state_of(host, optimizer), footprint(host).keys()))
    assert same(*runs)


@pytest.mark.parametrize("config", BESIDE, ids=str)
@pytest.mark.parametrize("name", ["mask_updater", "batch_norm", "root_attention"])
def test_a_host_moved_in_the_midst_of_its_training_goes_on_with_what_its_distiller_has_learned(name, config):
    toy = EVERY_HOST[name]
    host = toy.build()
    optimizer = make_optimizer(host, torch.optim.SGD)  # moments torch itself would leave behind
    distiller = inpaint_distill.attach(host, optimizer, config={**COUNTS, "lookahead": {"engine": "off"}, **config})
    train(toy, host, optimizer, batches(3), distiller)
    learned = in_double(distiller)
    host.double()
    toy.call(host, *doubled([batch(3)])[0])
    found = in_double(distiller)
    assert same(found, learned)
    losses = train(toy, host, optimizer, doubled(batches(2, 3)), distiller)
    assert all(loss.isfinite() for loss in losses)
    assert distiller.log["loss"] > 0
    assert not same(in_double(distiller)["teacher"], found["teacher"])
    assert distiller.detach(keep_completion=False) is host
    assert all(each.dtype == torch.float64 for each in host.state_dict().values() if each.is_floating_point())
