"""Nothing grows: not by attaching and detaching, not by training."""

import gc
import os
from pathlib import Path

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, batch, batches, footprint, make_optimizer, reconstruct, train
from torch import nn

import inpaint_distill

QUICK = {"warmup": 0, "ema_decay": 0.9}
# A single feature of these hosts, kept at every step or by every distiller, would be ten times as much.
NOISE = 12 * 2**20


def hooks(host, optimizer):
    """Count all hooks on a host, on the optimizer and on all modules at once."""
    own = [value for part in host.modules() for key, value in vars(part).items() if "hooks" in key and value]
    ours = [value for key, value in vars(optimizer).items() if "hooks" in key]
    every = [value for key, value in vars(nn.modules.module).items() if "global" in key and isinstance(value, dict)]
    return sum(map(len, own)), sum(map(len, ours)), sum(map(len, every))


def tensors():
    """Count the tensors that are alive, and the bytes that they hold."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)  # not what torch.compile keeps of shapes alone, in the same process
    found = [each for each in gc.get_objects() if type(each) in kinds and not torch._is_functional_tensor(each)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in found}
    return len(found), sum(storages.values())


def resident():
    """Return the memory that the process has now, in bytes."""
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("the memory of a process is read from /proc")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize("toy", [pytest.param(toy, id=name) for name, toy in EVERY_HOST.items()])
def test_ten_distillers_one_after_the_other_leave_no_hook(toy):
    host = toy.build()
    optimizer = make_optimizer(host)
    handle = next(host.children()).register_forward_hook(lambda *_: None)  # the user's own
    before, counted = footprint(host), hooks(host, optimizer)
    for number in range(10):
        with inpaint_distill.attach(host, optimizer, config=QUICK, **toy.given):
            if number in (0, 9):
                toy.call(host, *batch(**toy.images))
        assert hooks(host, optimizer) == counted
    assert {name: kind for name, (kind, _) in footprint(host).items()} == {n: kind for n, (kind, _) in before.items()}
    handle.remove()
    assert hooks(host, optimizer)[1:] == (0, 0)


def one_after_the_other(toy, count, trained, noted, **config):
    """Attach, plan by the host's own call, train a step with some, detach; note what is there after a few of them."""
    host = toy.build()
    optimizer = make_optimizer(host)
    image, mask = batch(**toy.images)
    counted = []
    for number in range(1, count + 1):
        distiller = inpaint_distill.attach(host, optimizer, config={**QUICK, **config})
        if number % trained == 0:
            train(toy, host, optimizer, [(image, mask)], distiller)
        else:  # its forward is not made use of
            toy.call(host, image, mask)
        assert distiller.plan is not None
        distiller.detach(keep_completion=False)
        del distiller
        if number in noted:
            optimizer.zero_grad()
            counted.append((hooks(host, optimizer), tensors(), resident()))
    assert len([each for group in optimizer.param_groups for each in group["params"]]) == len(list(host.parameters()))
    return counted


@pytest.mark.parametrize(
    ("count", "trained", "config"), [(1000, 8, {}), (200, 4, {"completion": True})], ids=["plain", "completion"]
)
def test_a_thousand_distillers_leave_no_hook_no_tensor_and_no_memory(count, trained, config):
    first, last = one_after_the_other(EVERY_HOST["separate_known"], count, trained, (count // 5, count), **config)
    assert last[:2] == first[:2]
    assert first[0] == (0, 0, 0)
    assert last[2] - first[2] < NOISE


@pytest.mark.parametrize("name", SAMPLE)
def test_distillers_one_after_the_other_leave_no_tensor(name):
    first, last = one_after_the_other(EVERY_HOST[name], 24, 2, (8, 24))
    assert last[1] == first[1]


RUNS = {
    "default": ("separate_known", {}),
    "completion": ("batch_norm", {"completion": True, "lookahead": {"every": 64}}),
    "look-ahead": ("separate_known", {"lookahead": {"every": 5}}),
    "online": ("tokens", {"teacher": "online", "fusion": False}),
    "unroll": ("hook_spectral_norm", {"lookahead": {"every": 20, "engine": "unroll"}}),
    "attention": ("gated-conv", {}),
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")
def test_five_hundred_steps_leave_no_hook_no_tensor_and_no_memory(run):
    name, config = RUNS[run]
    toy = EVERY_HOST[name]
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={"warmup": 10, **config})
    data = batches(4, **toy.images)
    counted = []
    for step in range(500):
        image, mask = data[step % 4]
        if step % 10 == 0:  # validation, watched by nobody
            with distiller.paused(), torch.no_grad():
                toy.call(host, image, mask)
            with distiller.paused():
                reconstruct(toy, host, image, mask)
        if step % 11 == 0:  # a sample without a loss
            with torch.no_grad():
                toy.call(host, image, mask)
        if step % 13 == 0:  # a forward that is thrown away
            toy.call(host, image, mask)
        train(toy, host, optimizer, [(image, mask)], distiller)
        if step in (139, 499):
            optimizer.zero_grad()
            counted.append((hooks(host, optimizer), tensors(), resident()))
    first, last = counted
    assert last[:2] == first[:2]
    assert last[2] - first[2] < NOISE
