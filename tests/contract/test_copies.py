"""Copies of a watched host, however and whenever they are made: whole, without taps, and unseen by the student."""

import copy
import io
import pickle
from functools import cache

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, ZOO, batch, batches, make_optimizer, reconstruct, same, train
from timm.utils.model_ema import ModelEmaV3
from torch.optim.swa_utils import AveragedModel

import inpaint_distill
from inpaint_distill.host.taps import Hook
from inpaint_distill.injection import injected

COUNTS = {"warmup": 0, "balance": "none", "ema_decay": 0.9, "lookahead": {"engine": "off"}}
SOME = (*SAMPLE, "root_attention", "multi_head", "rebuilt")


def by_pickle(host):
    return pickle.loads(pickle.dumps(host))


def by_torch(host):
    file = io.BytesIO()
    torch.save(host, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def by_swa(host):
    average = AveragedModel(host)
    average.update_parameters(host)
    return average.module


def by_timm(host):
    average = ModelEmaV3(host, decay=0.9)
    average.update(host, step=1)
    return average.module


WAYS = {"deepcopy": copy.deepcopy, "pickle": by_pickle, "torch.save": by_torch, "swa": by_swa, "timm": by_timm}


# -- a run in which copies may be made ---------------------------------------------------------------------------------

BEFORE, AFTER, PENDING = "before the first forward", "after a step", "with features pending"


def run(toy, make=lambda host, moment: None, config=None):
    """Train a step, and run another forward, attached unless ``config`` is ``None``; return both steps' losses."""
    torch.manual_seed(1)
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = None if config is None else inpaint_distill.attach(host, optimizer, config=config, **toy.given)
    make(host, BEFORE)
    losses = train(toy, host, optimizer, batches(1, **toy.images), distiller)
    make(host, AFTER)
    image, mask = batch(1, **toy.images)
    losses.append(reconstruct(toy, host, image, mask))
    make(host, PENDING)
    if distiller is not None:
        losses.append(distiller.loss(image, mask))
        losses[-2:] = [losses[-2] + losses[-1], losses[-1]]
    losses[-1].backward()
    return [loss.detach() for loss in losses], [None if p.grad is None else p.grad.clone() for p in host.parameters()]


@cache
def undisturbed(name, **config):
    """Return what a run without copies gives."""
    return run(EVERY_HOST[name], config={**COUNTS, **config})


def fails_bare(name, way, moment):
    """Tell whether a host that is not attached cannot be copied so either."""
    failed = []

    def make(host, now):
        if now == moment:
            try:
                WAYS[way](host)
            except Exception as error:  # whatever a class raises that cannot be copied
                failed.append(error)

    run(EVERY_HOST[name], make)
    return bool(failed)


def forward(toy, host):
    """Run a host in training mode from a fixed random state, on the batch whose loss will be asked for."""
    host.train()
    torch.manual_seed(3)
    return toy.select(toy.call(host, *batch(1, **toy.images)))


def hooks_of(host):
    """List every hook on a module or one below it."""
    for part in host.modules():
        for key, hooks in vars(part).items():
            if key.endswith("_hooks") and isinstance(hooks, dict):
                yield from hooks.values()


def check(toy, host, twin):
    """Hold a copy against a host that was never attached; return what it put out."""
    assert type(twin) is type(host)
    assert not any(isinstance(hook, Hook) for hook in hooks_of(twin))
    assert same(dict(twin.state_dict()), dict(host.state_dict()))
    held = {id(tensor) for tensor in (*host.parameters(), *host.buffers())}
    assert held.isdisjoint(id(tensor) for tensor in (*twin.parameters(), *twin.buffers()))
    bare = toy.build(seed=1)
    bare.load_state_dict(twin.state_dict())
    output = forward(toy, twin)
    with torch.no_grad():
        assert torch.equal(output, forward(toy, bare))
    output.sum().backward(retain_graph=True)
    assert any(p.grad is not None and p.grad.any() for p in twin.parameters())
    return output


# -- every host --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", SOME)
def test_a_copy_of_a_watched_host_is_a_whole_one_without_taps_and_the_student_does_not_notice(name, way):
    whole(name, way)


@pytest.mark.parametrize("name", [name for name in EVERY_HOST if name not in SOME])
def test_a_deep_copy_of_any_watched_host_is_a_whole_one_without_taps_and_the_student_does_not_notice(name):
    whole(name, "deepcopy")


def whole(name, way, check=check, **config):
    """Copy a host that is trained at every moment, hold each copy against it, and the run against one without."""
    toy, expected, refused, alive = EVERY_HOST[name], undisturbed(name, **config), [], []

    def make(host, moment):
        with torch.random.fork_rng(devices=[]):
            try:
                twin = WAYS[way](host)
            except Exception:
                if not fails_bare(name, way, moment):
                    raise
                refused.append(moment)
            else:
                alive.append(check(toy, host, twin))  # with its graph, as a loss on it might still be wanted

    assert same(run(toy, make, {**COUNTS, **config}), expected)
    if refused:
        pytest.skip(f"bare, it cannot be copied by {way} {' or '.join(refused)}")


# -- what stays in the host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
@pytest.mark.parametrize("name", SOME)
def test_completion_blocks_stay_in_a_copy_work_there_and_can_be_taken_out_of_it(name, way):
    seen = []

    def check_blocks(toy, host, twin):
        own, taken = injected(twin), injected(host)
        assert not any(isinstance(hook, Hook) for hook in hooks_of(twin))
        assert same(dict(twin.state_dict()), dict(host.state_dict()))
        assert (own is None) == (taken is None)
        if taken is None:  # before the first forward
            return
        seen.append(own)
        before, bare = dict(host.state_dict()), toy.build(seed=1)
        with torch.no_grad():
            whole = forward(toy, twin)
            for parameter in own.parameters():
                parameter.add_(0.1)
            assert not torch.equal(forward(toy, twin), whole)
            own.remove(twin)
            bare.load_state_dict(twin.state_dict())
            assert torch.equal(forward(toy, twin), forward(toy, bare))
        assert injected(host) is taken is not own
        assert same(dict(host.state_dict()), before)

    whole(name, way, check_blocks, completion=True, completion_levels=(0, 1))
    assert len(seen) == 2


def test_a_copy_can_be_watched_itself_while_the_first_is():
    toy = ZOO["separate"]
    first = toy.build()
    distiller = inpaint_distill.attach(first, config=COUNTS)
    image, mask = batch()
    toy.call(first, image, mask)
    second = copy.deepcopy(first)
    other = inpaint_distill.attach(second, config=COUNTS)
    toy.call(second, image, mask)
    assert torch.equal(distiller.loss(image, mask), other.loss(image, mask))
    assert other.detach() is second
    toy.call(first, image, mask)
    assert distiller.loss(image, mask) > 0
