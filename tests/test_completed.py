"""A host with its blocks in one file: saved in one process, loaded in another, into the right host or not at all."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, same, state_of, train

import inpaint_distill
from inpaint_distill import load_host, save_host
from inpaint_distill.errors import StateError
from inpaint_distill.host.trace import RESERVED as NAME
from inpaint_distill.injection import injected

FIXED = {"warmup": 0, "balance": "none", "ema_decay": 0.9}
PLAIN = ZOO["separate"]
HOSTS = ["separate_known", "partial_conv", "tokens", "nhwc", "keywords", "recurrent", "two_stage", "batch_norm"]
HOSTS += ["bytes", "bool_mask", "half_mask", "nested", "dict_stages", "hook_spectral_norm", "shared_activation"]


def completed(toy, steps=2, **config):
    """Train a host with blocks, make them differ visibly from the identity, and detach."""
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={**FIXED, "completion": True, **config})
    train(toy, host, optimizer, batches(steps), distiller)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in injected(host).parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return distiller.detach()


def outputs(toy, host):
    """Run in eval mode from a fixed random state; the host's buffers are as before."""
    host.eval()
    state = copy.deepcopy(host.state_dict())
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        output = toy.select(toy.call(host, *batch(9))).clone()
    host.load_state_dict(state)
    return output


@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
@pytest.mark.parametrize("name", HOSTS)
def test_a_loaded_host_is_the_saved_one(tmp_path, name, adaptive):
    toy = ZOO[name]
    host = completed(toy, fusion=True, attention={"weight": 0.0}, completion_adaptive=adaptive)
    save_host(host, tmp_path / "host")
    other = toy.build(seed=1)
    assert load_host(other, tmp_path / "host") is other
    assert same(dict(host.state_dict()), dict(other.state_dict()))
    assert torch.equal(outputs(toy, other), outputs(toy, host))
    bare = toy.build(seed=1)
    bare.load_state_dict({key: value for key, value in host.state_dict().items() if not key.startswith(NAME)})
    assert not torch.equal(outputs(toy, bare), outputs(toy, host)), "the blocks count"


FRESH = """
import sys
import torch
from inpaint_distill import load_host

torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from hosts import ZOO, batch

for name in sys.argv[3:]:
    toy = ZOO[name]
    host = load_host(toy.build(seed=5), f"{sys.argv[2]}/{name}").eval()
    with torch.no_grad():
        torch.save(toy.select(toy.call(host, *batch(9))), f"{sys.argv[2]}/{name}.out")
"""


def test_a_fresh_process_reproduces_the_outputs_bit_for_bit(tmp_path):
    names = HOSTS[:8]
    expected = {}
    for name in names:
        host = completed(ZOO[name])
        expected[name] = outputs(ZOO[name], host)
        save_host(host, tmp_path / name)
    command = [sys.executable, "-W", "error", "-c", FRESH, str(Path(__file__).parent), str(tmp_path), *names]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[1])
    for name in names:
        assert torch.equal(torch.load(tmp_path / f"{name}.out"), expected[name]), name


def test_an_attached_host_can_be_saved(tmp_path):
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, completion=True, config=FIXED)
    train(PLAIN, host, optimizer, batches(2), distiller)
    save_host(host, tmp_path / "host")
    other = load_host(PLAIN.build(1), tmp_path / "host")
    assert torch.equal(outputs(PLAIN, other), outputs(PLAIN, host))


# -- checkpoints of one's own ------------------------------------------------------------------------------------------


def resumed(toy, state, *, strict=True, wrap=None, optimizer_state=None, **config):
    """Attach to a fresh host, then load: the order of most training loops."""
    host = toy.build(seed=1)
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={**FIXED, "completion": True, **config})
    (host if wrap is None else wrap(host)).load_state_dict(state, strict=strict)
    if optimizer_state is not None:
        optimizer.load_state_dict(optimizer_state)
    return host, optimizer, distiller


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("name", HOSTS)
def test_weights_of_a_plain_checkpoint_bring_their_blocks_into_a_host_that_is_attached_to(tmp_path, name, strict):
    toy = ZOO[name]
    first = toy.build()
    optimizer = make_optimizer(first)
    distiller = inpaint_distill.attach(first, optimizer, config={**FIXED, "completion": True})
    train(toy, first, optimizer, batches(3), distiller)
    torch.save({"model": first.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint")
    checkpoint = torch.load(tmp_path / "checkpoint", weights_only=True)
    host, own, other = resumed(toy, checkpoint["model"], strict=strict, optimizer_state=checkpoint["optimizer"])
    assert same(dict(first.state_dict()), dict(host.state_dict()))
    assert torch.equal(outputs(toy, host), outputs(toy, first))
    assert injected(host).source == injected(first).source
    moments = [len(own.state[parameter]) for parameter in injected(host).parameters()]
    assert all(moments), "the user's optimizer trains the blocks and has their moments"
    before = [parameter.clone() for parameter in injected(host).parameters()]
    host.train()
    train(toy, host, own, batches(2), other)
    assert not all(map(torch.equal, before, injected(host).parameters()))
    assert not other.detach()._load_state_dict_pre_hooks


def test_the_blocks_are_found_behind_a_prefix():
    first = completed(PLAIN)
    state = {f"generator.{key}": value for key, value in first.state_dict().items()}
    host, *_ = resumed(PLAIN, state, wrap=lambda host: torch.nn.ModuleDict({"generator": host}))
    assert torch.equal(outputs(PLAIN, host), outputs(PLAIN, first))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_what_blocks_there_are_survives_a_change_of_type_and_an_average(kind):
    first = completed(PLAIN)
    state = {key: (0.999 * value + 0.001 * value).to(kind) for key, value in first.state_dict().items()}
    host = load_host(PLAIN.build(1), state)
    assert injected(host).to_spec() == injected(first).to_spec()


def test_weights_of_a_checkpoint_are_loaded_into_a_plain_host():
    first = completed(PLAIN)
    host = load_host(PLAIN.build(1), first.state_dict())
    assert torch.equal(outputs(PLAIN, host), outputs(PLAIN, first))
    plain = PLAIN.build(2)
    assert load_host(plain, PLAIN.build(1).state_dict()) is plain
    assert injected(plain) is None


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_a_state_describes_its_blocks_in_numbers_of_their_type(kind):
    state = completed(PLAIN).to(kind).state_dict()
    assert {value.dtype for key, value in state.items() if key.startswith(NAME)} == {kind}
    assert injected(load_host(PLAIN.build(1), state)).image is not None


def test_a_state_has_as_many_numbers_before_it_is_known_where_the_hole_is():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    image, mask = batch()
    inpaint_distill.attach(host, optimizer, image=image, mask=mask, completion=True, config=FIXED)
    early = {key: value.shape for key, value in host.state_dict().items()}
    assert injected(host).source is None
    assert early == {key: value.shape for key, value in completed(PLAIN).state_dict().items()}


def test_weights_whose_blocks_are_not_described_are_refused_and_without_the_plug_older_ones_load():
    first = completed(PLAIN)
    state = {key: value for key, value in first.state_dict().items() if not key.endswith("_extra_state")}
    with pytest.raises(StateError, match=r"no description of the blocks"):
        resumed(PLAIN, state, strict=False)
    with pytest.raises(StateError, match=r"no description of the blocks"):
        load_host(PLAIN.build(1), state)
    first.load_state_dict(state)


def test_weights_of_another_host_leave_this_one_as_it_was():
    state = completed(ZOO["recurrent"], completion_levels=(0,)).state_dict()
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, completion=True, config=FIXED)
    before = footprint(host)
    with pytest.raises(StateError, match="load them into the host they were saved from"):
        host.load_state_dict(state, strict=False)
    assert footprint(host) == before
    assert distiller.plan is None


def test_blocks_do_not_come_into_a_host_that_is_trained_without_them():
    state = completed(PLAIN).state_dict()
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED)
    train(PLAIN, host, optimizer, batches(1), distiller)
    with pytest.raises(StateError, match="trained without them"):
        host.load_state_dict(state)


@pytest.mark.parametrize("wrap", [torch.nn.DataParallel, torch.compile], ids=["DataParallel", "compile"])
def test_a_wrapped_host_is_saved_and_loaded_as_what_is_inside(tmp_path, wrap):
    first = completed(PLAIN)
    save_host(wrap(first), tmp_path / "host")
    for other in (PLAIN.build(1), wrap(PLAIN.build(1))):
        assert load_host(other, tmp_path / "host") is other
        inner = getattr(other, "module", getattr(other, "_orig_mod", other))
        assert torch.equal(outputs(PLAIN, inner), outputs(PLAIN, first))


def test_copies_and_files_of_a_host_are_without_the_hole_of_its_last_batch():
    host = completed(PLAIN)
    PLAIN.call(host, *batch())
    assert injected(host)._hole is not None, "gradient checkpointing may run the forward again"
    assert injected(copy.deepcopy(host))._hole is None
    assert torch.equal(outputs(PLAIN, copy.deepcopy(host)), outputs(PLAIN, host))


def test_a_host_without_blocks_is_saved_like_any(tmp_path):
    host = PLAIN.build()
    save_host(host, tmp_path / "host")
    other = PLAIN.build(1)
    before = footprint(other)
    load_host(other, tmp_path / "host")
    assert footprint(other) == before
    assert same(dict(host.state_dict()), dict(other.state_dict()))


def test_a_host_that_has_the_blocks_takes_other_weights_for_them(tmp_path):
    host = completed(PLAIN)
    save_host(host, tmp_path / "host")
    other = completed(PLAIN, steps=1)
    own = injected(other)
    load_host(other, tmp_path / "host")
    assert injected(other) is own
    assert torch.equal(outputs(PLAIN, other), outputs(PLAIN, host))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("two_stage", "no attribute|submodule"),
        ("nhwc", "enc0"),
        ("batch_norm", "enc0"),
        ("ones_plane", "size mismatch"),
    ],
)
def test_another_host_is_left_as_it_was(tmp_path, name, words):
    save_host(completed(PLAIN, completion_levels=(0,)), tmp_path / "host")
    other = ZOO[name].build()
    before, state = footprint(other), state_of(other)
    with pytest.raises(StateError, match=words) as caught:
        load_host(other, tmp_path / "host")
    assert "host it was saved from" in caught.value.fix
    assert footprint(other) == before
    assert same(state_of(other), state)


def test_a_host_with_blocks_does_not_take_a_file_without_them(tmp_path):
    save_host(PLAIN.build(), tmp_path / "host")
    host = completed(PLAIN)
    before, state = footprint(host), state_of(host)
    with pytest.raises(StateError, match=NAME):
        load_host(host, tmp_path / "host")
    assert footprint(host) == before
    assert same(state_of(host), state)


def damaged(path, how):
    data = path.read_bytes()
    path.write_bytes({"truncated": data[: len(data) // 2], "header alone": data[:40], "empty": b""}[how])


@pytest.mark.parametrize("how", ["truncated", "header alone", "empty"])
def test_a_damaged_file_leaves_the_host_as_it_was(tmp_path, how):
    save_host(completed(PLAIN), tmp_path / "host")
    damaged(tmp_path / "host", how)
    host = PLAIN.build()
    before, state = footprint(host), state_of(host)
    with pytest.raises(StateError) as caught:
        load_host(host, tmp_path / "host")
    assert str(tmp_path / "host") in caught.value.asked
    assert "save_host()" in caught.value.fix
    assert footprint(host) == before
    assert same(state_of(host), state)


def test_a_file_that_is_not_there_and_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(StateError, match="nothing"):
        load_host(PLAIN.build(), tmp_path / "nothing")
    with pytest.raises(StateError, match="existing"):
        save_host(PLAIN.build(), tmp_path / "no" / "host")


def test_a_host_is_no_distiller_and_a_distiller_no_host(tmp_path):
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.save(tmp_path / "distiller")
    save_host(host, tmp_path / "host")
    with pytest.raises(StateError, match="load_host"):
        distiller.load(tmp_path / "host")
    with pytest.raises(StateError, match="save_host"):
        load_host(PLAIN.build(), tmp_path / "distiller")


@pytest.mark.parametrize(("engine", "at"), [("finite_difference", 2), ("unroll", 1), ("unroll", 3)])
def test_a_run_resumed_from_a_saved_host_equals_an_uninterrupted_one(tmp_path, engine, at):
    toy = ZOO["batch_norm"]
    config = {**FIXED, "completion": True, "fusion": True, "lookahead": {"engine": engine, "every": 3}}

    def state(host, optimizer, distiller):
        parts = [distiller._terms.state_dict(), *distiller._lookahead.state(), *distiller._companion.state()]
        return copy.deepcopy([state_of(host, optimizer), *({key: each[key] for key in sorted(each)} for each in parts)])

    torch.manual_seed(4)
    host = toy.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    train(toy, host, optimizer, batches(at), distiller)
    save_host(host, tmp_path / "host")
    distiller.save(tmp_path / "distiller")
    saved = copy.deepcopy((optimizer.state_dict(), torch.get_rng_state()))
    train(toy, host, optimizer, batches(7 - at, at), distiller)

    torch.manual_seed(99)
    other = load_host(toy.build(), tmp_path / "host")
    again = make_optimizer(other)
    again.load_state_dict(saved[0])
    second = inpaint_distill.attach(other, again, config=config)
    second.load(tmp_path / "distiller")
    torch.set_rng_state(saved[1])
    train(toy, other, again, batches(7 - at, at), second)
    assert same(state(host, optimizer, distiller), state(other, again, second))
