"""A completion block at the host's input: where it goes, that it starts as nothing, is trained, and stays or goes."""

import copy
import pickle
import threading

import pytest
import torch
from hosts import ZOO, batch, batches, footprint, make_optimizer, outputs, reconstruct, same, stir, train
from hosts.base import Plain
from torch import nn

import inpaint_distill
from inpaint_distill import Config, load_host, save_host
from inpaint_distill.config import from_dict, to_dict
from inpaint_distill.errors import CaptureError, ConfigError, OptimizerError, PlanError, StateError
from inpaint_distill.host.trace import RESERVED as NAME
from inpaint_distill.injection import injected
from inpaint_distill.networks.fill import pull_push
from inpaint_distill.state import read_state

PLAIN = ZOO["separate"]
FIXED = {"warmup": 0, "balance": "none", "ema_decay": 0.9, "completion": True}
READ = ["separate", "separate_known", "concatenated", "keywords", "nested", "dict_output", "two_stage"]
READ += ["tokens", "nhwc", "batch_norm", "noisy", "recurrent", "hook_spectral_norm", "shared_activation"]


def start(toy, host=None, optimizer=None, **config):
    host = host or toy.build()
    optimizer = optimizer or make_optimizer(host)
    return host, optimizer, inpaint_distill.attach(host, optimizer, config={**FIXED, **config})


def given_to(module, run):
    """Return the positional arguments of a module's last call."""
    kept = []
    handle = module.register_forward_pre_hook(lambda _, args: kept.append(args))
    with torch.no_grad():
        run()
    handle.remove()
    return kept[-1]


# -- where it goes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READ)
def test_it_starts_as_nothing_bit_for_bit_and_the_users_optimizer_trains_it(name):
    toy, runs = ZOO[name], []
    for config in ({"completion": False}, {}):
        host, optimizer, distiller = start(toy, **config)
        torch.manual_seed(5)
        runs.append([])
        for image, mask in batches(2):
            runs[-1].append(toy.select(toy.call(host, image, mask)).detach().clone())
            distiller.loss(image, mask)
    assert same(*runs)
    own = injected(host)
    assert own.image_block is not None
    assert not len(own.blocks)
    train(toy, host, optimizer, batches(3, 2), distiller)
    assert own.image_block.weight.any()
    assert all(parameter in optimizer.state for parameter in own.parameters())
    assert len(optimizer.param_groups) == 1
    assert any("completion block on channels" in line for line in distiller.plan.injected)


@pytest.mark.parametrize("name", ["partial_conv", "half_mask"])
def test_where_the_holes_are_not_read_or_the_image_is_not_found_it_goes_after_the_first_stage(name):
    host, optimizer, distiller = start(ZOO[name])
    train(ZOO[name], host, optimizer, batches(3), distiller)
    own = injected(host)
    assert own.image_block is None
    assert [stage.label for stage in own.stages] == [distiller.plan.stages[0].label]
    other, optimizer, distiller = start(ZOO[name], completion_levels=(0,))
    train(ZOO[name], other, optimizer, batches(3), distiller)
    assert same(host.state_dict(), other.state_dict())


def test_with_image_and_mask_it_is_there_before_the_first_forward():
    host = PLAIN.build()
    image, mask = batch()
    distiller = inpaint_distill.attach(host, image=image, mask=mask, config=FIXED)
    optimizer = make_optimizer(host)
    assert injected(host).image_block is not None
    for image, mask in batches(3):
        loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distiller.step()
    assert injected(host).image_block.weight.any()


def test_an_adapters_own_call_shows_where_the_image_is():
    host = inpaint_distill.adapters.get("unet").build(levels=2, width=8)
    image, mask = batch()
    distiller = inpaint_distill.attach(host, make_optimizer(host), image=image, mask=mask, adapter="unet", config=FIXED)
    assert "channels 0, 1, 2 of argument 'x'" in str(distiller.plan)


@pytest.mark.parametrize("name", READ)
def test_it_can_start_at_the_interpolation(name):
    toy = ZOO[name]
    host, optimizer, distiller = start(toy, completion_start="interpolation")
    image, mask = batch(0)
    reconstruct(toy, host, image, mask).backward()
    distiller.loss(image, mask)
    own = injected(host)
    changed = []
    handle = own.image_block.register_forward_hook(lambda _, args, output: changed.append((*args, output)))
    outputs(toy, host)
    handle.remove()
    ((emptied, hole, completed),) = changed
    torch.testing.assert_close(completed, pull_push(emptied, 1 - hole.expand(len(emptied), -1, -1, -1)))
    assert not own.image_block.weight.any()
    assert any("that starts at the interpolation" in line for line in own.describe())
    optimizer.zero_grad()
    train(toy, host, optimizer, batches(3, 2), distiller)
    assert own.image_block.weight.any()


def test_one_after_a_stage_starts_as_the_identity_whatever_was_asked_for():
    found = []
    for asked in ("identity", "interpolation"):
        host, optimizer, distiller = start(ZOO["partial_conv"], completion_start=asked)
        train(ZOO["partial_conv"], host, optimizer, batches(3), distiller)
        found.append(host.state_dict())
    assert same(*found)


# -- what it does ------------------------------------------------------------------------------------------------------


def test_it_rewrites_the_hole_of_the_image_and_nothing_else():
    toy = ZOO["concatenated"]
    host, optimizer, distiller = start(toy)
    train(toy, host, optimizer, batches(1), distiller)
    stir(host)
    image, mask = batch(3)
    (seen,) = given_to(host.enc0, lambda: toy.call(host, image, mask))
    emptied = image * (1 - mask)
    assert torch.equal(seen[:, 3:], mask)
    changed = (seen[:, :3] != emptied).any(1, keepdim=True)
    assert torch.equal(changed, mask.bool())


def test_the_teacher_sees_the_complete_image_as_it_is():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    teacher = distiller._teacher.module
    assert injected(teacher).image_block is not None
    image, mask = batch(3)
    optimizer.zero_grad()
    PLAIN.call(host, image, mask)
    (seen,) = given_to(teacher.enc0, lambda: _loss(distiller, image, mask))
    assert torch.equal(seen[:, :3], image)
    assert not seen[:, 3:].any()


def _loss(distiller, image, mask):
    with torch.enable_grad():
        distiller.loss(image, mask)


@pytest.mark.parametrize("engine", ["finite_difference", "unroll"])
def test_a_look_ahead_runs_the_host_on_the_image_that_it_was_given(engine):
    host, optimizer, distiller = start(PLAIN, lookahead={"engine": engine, "every": 2})
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    image, mask = batch(5)
    PLAIN.call(host, image, mask)
    assert torch.equal(distiller._forwards.last.call.args[0], image * (1 - mask))
    distiller.loss(image, mask)
    optimizer.zero_grad()
    distiller.detach()
    again = start(PLAIN, host, optimizer)[-1]  # whose hooks come after those that stayed
    PLAIN.call(host, image, mask)
    assert torch.equal(again._forwards.last.call.args[0], image * (1 - mask))
    again.loss(image, mask)
    train(PLAIN, host, optimizer, batches(3, 6), again)


def test_gradients_reach_it_through_the_host_also_where_a_whole_forward_is_run_again():
    class Checkpointed(nn.Module):
        def __init__(self, host):
            super().__init__()
            self.host = host

        def forward(self, *planes):
            return torch.utils.checkpoint.checkpoint(self.host, *planes, use_reentrant=False)

    found = []
    for wrap in (lambda host: host, Checkpointed):
        host = PLAIN.build()
        image, mask = batch()
        distiller = inpaint_distill.attach(host, image=image, mask=mask, config=FIXED)
        called, optimizer = wrap(host), make_optimizer(host)
        for image, mask in batches(3):
            loss = reconstruct(PLAIN, called, image, mask) + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            distiller.step()
        found.append(host.state_dict())
    torch.testing.assert_close(*found)
    assert injected(host).image_block.weight.any()


# -- what stays, and what goes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin", ["identity", "interpolation"])
@pytest.mark.parametrize("adaptive", [False, True], ids=["plain", "adaptive"])
@pytest.mark.parametrize("name", READ)
def test_it_stays_in_the_host_in_a_copy_and_in_a_file_or_goes_without_trace(tmp_path, name, adaptive, begin):
    toy = ZOO[name]
    host = toy.build()
    optimizer = make_optimizer(host)
    trace, count = footprint(host), len(optimizer.param_groups[0]["params"])
    kind = {"completion_adaptive": adaptive, "completion_start": begin}
    distiller = start(toy, host, optimizer, **kind)[-1]
    train(toy, host, optimizer, batches(2), distiller)
    stir(host)
    expected = outputs(toy, host)
    distiller.detach()
    assert torch.equal(outputs(toy, host), expected)
    assert torch.equal(outputs(toy, copy.deepcopy(host)), expected)
    assert torch.equal(outputs(toy, pickle.loads(pickle.dumps(host))), expected)
    save_host(host, tmp_path / "host")
    other = load_host(toy.build(seed=1), tmp_path / "host")
    assert same(dict(host.state_dict()), dict(other.state_dict()))
    assert torch.equal(outputs(toy, other), expected)
    bare = toy.build(seed=1)
    bare.load_state_dict({key: value for key, value in host.state_dict().items() if not key.startswith(NAME)})
    assert not torch.equal(outputs(toy, bare), expected), "the block counts"
    again = start(toy, host, optimizer, **kind)[-1]
    train(toy, host, optimizer, batches(1, 3), again)
    again.detach(keep_completion=False)
    assert injected(host) is None
    assert len(optimizer.param_groups[0]["params"]) == count
    assert footprint(host).keys() == trace.keys()
    assert not host._forward_pre_hooks or set(host._forward_pre_hooks) == set(toy.build()._forward_pre_hooks)


@pytest.mark.parametrize("begin", ["identity", "interpolation"])
def test_a_saved_distiller_goes_on_where_it_was(tmp_path, begin):
    ends = []
    host, optimizer, distiller = start(PLAIN, completion_start=begin)
    train(PLAIN, host, optimizer, batches(3), distiller)
    distiller.save(tmp_path / "distiller")
    save_host(host, tmp_path / "host")
    moments = copy.deepcopy(optimizer.state_dict())
    train(PLAIN, host, optimizer, batches(3, 3), distiller)
    ends.append(host.state_dict())
    host = load_host(PLAIN.build(seed=4), tmp_path / "host")
    optimizer = make_optimizer(host)
    optimizer.load_state_dict(moments)
    distiller = start(PLAIN, host, optimizer, completion_start=begin)[-1]
    distiller.load(tmp_path / "distiller")
    train(PLAIN, host, optimizer, batches(3, 3), distiller)
    ends.append(host.state_dict())
    assert same(*ends)


def test_files_of_before_have_none(tmp_path):
    host, optimizer, distiller = start(PLAIN, completion_levels=(0,))
    train(PLAIN, host, optimizer, batches(1), distiller)
    spec = injected(host).to_spec()
    assert spec.pop("image") is None
    other = type(injected(host)).from_spec(PLAIN.build(), spec)
    assert other.image_block is None
    assert len(other.blocks) == 1


def test_a_second_distiller_takes_it_for_the_completion_it_was_asked_for():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach()
    own = injected(host)
    again = start(PLAIN, host, optimizer, completion_levels=None)[-1]
    train(PLAIN, host, optimizer, batches(1), again)
    assert injected(host) is own
    again.detach()
    for kind in ({"completion_adaptive": True}, {"completion_start": "interpolation"}):
        refused = start(PLAIN, host, optimizer, **kind)[-1]
        with pytest.raises(PlanError, match="the host has completion block already"):
            PLAIN.call(host, *batch())
        refused.detach()


def test_it_joins_the_first_group_of_the_users_optimizer():
    host = PLAIN.build()
    optimizer = torch.optim.SGD([{"params": host.up.parameters()}, {"params": host.enc0.parameters(), "lr": 0.0}], 0.1)
    distiller = start(PLAIN, host, optimizer)[-1]
    train(PLAIN, host, optimizer, batches(3), distiller)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4 + 3, 2]
    assert injected(host).image_block.weight.any()


def test_an_image_by_position_in_training_and_by_keyword_later():
    class Named(Plain):
        def forward(self, picture, holes):
            return super().forward(picture, holes)

    host, optimizer, distiller = start(PLAIN, Named())
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    distiller.detach()
    image, mask = batch(4)
    with torch.no_grad():
        expected = host(image * (1 - mask), mask)
        assert torch.equal(host(holes=mask, picture=image * (1 - mask)), expected)


def test_any_other_word_is_refused():
    for value, found in (("inputs", "use one of input"), (3, "give tuple"), ((0.5,), "give int")):
        with pytest.raises(ConfigError, match=f"completion_levels(.|\n)*{found}"):
            Config(completion=True, completion_levels=value)
    assert from_dict(Config, to_dict(Config(completion=True))).completion_levels == "input"
    assert from_dict(Config, {"completion": True, "completion_levels": [0, 2]}).completion_levels == (0, 2)


# -- planned by a guess ------------------------------------------------------------------------------------------------


class MaskFirst(Plain):
    """Takes what the first of the common conventions has, in another order."""

    def forward(self, x):
        return super().forward(x)


class MaskArgumentFirst(Plain):
    def forward(self, mask, image):
        return super().forward(mask, image)


class Known(Plain):
    """Empties its image itself, by a mask that is 1 where pixels are known."""

    def forward(self, image, known):
        return super().forward(image * known, known)


def image_first(host, image, mask):
    return host(torch.cat([0.5 - mask, image * (1 - mask)], 1))


def mask_argument_first(host, image, mask):
    return host(mask, image * (1 - mask))


@pytest.mark.parametrize(
    ("kind", "call", "place"),
    [
        (MaskFirst, image_first, "channels 1, 2, 3 of argument 'x'"),
        (MaskArgumentFirst, mask_argument_first, "channels 0, 1, 2 of argument 'image'"),
    ],
)
def test_a_block_that_was_planned_by_a_guess_moves_to_where_the_hosts_own_call_has_its_image(kind, call, place):
    host = kind()
    optimizer = make_optimizer(host)
    image, mask = batch()
    distiller = inpaint_distill.attach(host, optimizer, image=image, mask=mask, config=FIXED)
    for image, mask in batches(3):
        optimizer.zero_grad()
        ((call(host, image, mask) - image).abs().mean() + distiller.loss(image, mask)).backward()
        optimizer.step()
    assert injected(host).image_block.weight.any()
    assert str(injected(host).image) == place
    assert place in str(distiller.plan)


@pytest.mark.parametrize("planned", [True, False])
def test_a_host_that_empties_its_image_itself_has_it_after_its_first_stage_whatever_its_mask_is_taken_for(planned):
    host = Known()
    image, mask = batch()
    given = {"image": image, "mask": mask} if planned else {}
    distiller = inpaint_distill.attach(host, make_optimizer(host), config=FIXED, **given)
    host(image * (1 - mask), 1 - mask)
    distiller.loss(image, mask)
    assert "not at the input: the host does not read what stands in the hole" in str(distiller.plan)
    assert [stage.name for stage in injected(host).stages] == ["enc0"]


def test_a_hole_that_is_not_empty_in_the_hosts_own_call_leaves_it_where_the_image_is():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    image, mask = batch()
    distiller = inpaint_distill.attach(host, optimizer, image=image, mask=mask, config=FIXED)
    for image, mask in batches(3):
        optimizer.zero_grad()
        output = host(image * (1 - mask) + mask * torch.randn_like(image), mask)
        ((output - image).abs().mean() + distiller.loss(image, mask)).backward()
        optimizer.step()
    assert injected(host).image_block.weight.any()


def test_a_block_that_was_planned_by_a_guess_and_has_no_place_in_the_hosts_own_call_is_refused():
    host = Plain(inputs=6)
    before = footprint(host)
    image, mask = batch()
    distiller = inpaint_distill.attach(host, make_optimizer(host), image=image, mask=mask, config=FIXED)
    host((1 - mask).repeat(1, 3, 1, 1), image)  # the other way round, and not emptied, so that it is not found
    with pytest.raises(PlanError, match=r"3 mask;(.|\n)*3 image") as caught:
        distiller.loss(image, mask)
    assert "by the call host(cat[image, ones, hole], hole)" in caught.value.asked
    assert footprint(host) == before


def test_a_call_with_other_channels_than_were_planned_says_so():
    host, optimizer, distiller = start(ZOO["concatenated"])
    train(ZOO["concatenated"], host, optimizer, batches(1), distiller)
    with pytest.raises(CaptureError, match="channels 0, 1, 2 of positional argument 0"):
        host(batch()[1])


def test_one_mask_for_the_whole_batch_is_enough():
    for levels in ("input", (0,)):

        class Shared(Plain):
            def forward(self, image, mask):
                return super().forward(image, mask.expand(len(image), -1, -1, -1))

        host = Shared()
        optimizer = make_optimizer(host)
        distiller = inpaint_distill.attach(host, optimizer, config={**FIXED, "completion_levels": levels})
        for image, mask in batches(3):
            optimizer.zero_grad()
            output = host(image * (1 - mask[:1]), mask[:1])
            ((output - image).abs().mean() + distiller.loss(image, mask[:1])).backward()
            optimizer.step()
        own = injected(host)
        assert (own.image_block is not None) == (levels == "input")
        assert all(parameter.any() for parameter in own.parameters())


# -- what a user does with the host meanwhile --------------------------------------------------------------------------


def changed_by_block(host, toy, image, mask):
    """Return how much the block in a host changes what it puts out."""
    with torch.no_grad():
        own = toy.select(toy.call(host, image, mask)).clone()
        weight = injected(host).image_block.weight
        kept = weight.clone()
        weight.zero_()
        without = toy.select(toy.call(host, image, mask))
        weight.copy_(kept)
    return float((own - without).abs().max())


def test_an_averaged_copy_made_before_the_hole_was_found_runs_its_block():
    image, mask = batch()
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, image=image, mask=mask, config=FIXED)
    average = torch.optim.swa_utils.AveragedModel(host, avg_fn=lambda old, new, _: old.lerp(new, 0.5))
    for each in batches(3):
        train(PLAIN, host, optimizer, [each], distiller)
        average.update_parameters(host)
    assert changed_by_block(average.module, PLAIN, image, mask) > 0
    assert injected(distiller._teacher.module).source is None, "a teacher sees no hole, and runs no block"
    alone = copy.deepcopy(host)  # of which it is known
    injected(alone).source = None
    assert injected(host).source is not None


def test_what_has_been_trained_stays_where_the_host_can_no_longer_be_copied():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    own, count = injected(host), sum(len(group["params"]) for group in optimizer.param_groups)
    host.reader = iter(lambda: 0, 1)  # such as that of a data loader
    host.lock = threading.Lock()
    host.double()
    image, mask = (each.double() for each in batch())
    with pytest.raises(PlanError, match="cop"):
        PLAIN.call(host, image, mask)
    assert injected(host) is own
    assert sum(len(group["params"]) for group in optimizer.param_groups) == count


def test_hooks_of_a_host_from_another_process_are_not_replaced_by_later_ones(monkeypatch):
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stored = pickle.dumps(distiller.detach())
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)  # as it is in a new process
    other = pickle.loads(stored)
    numbers = {*other._forward_pre_hooks, *other._forward_hooks}
    handles = [other.register_forward_pre_hook(lambda *_: None) for _ in range(max(numbers) + 2)]
    for handle in handles:
        handle.remove()
    assert {*other._forward_pre_hooks, *other._forward_hooks} == numbers


@pytest.mark.parametrize(
    ("saved", "own", "words"),
    [
        ({}, {"completion_start": "interpolation"}, "completion at the input"),
        ({"completion_levels": (1,)}, {"completion_levels": (0,)}, "completion after"),
    ],
    ids=["kind", "place"],
)
def test_weights_of_other_blocks_are_refused(saved, own, words, tmp_path):
    image, mask = batch()
    kept = []
    for config in (saved, own):
        host = PLAIN.build()
        inpaint_distill.attach(host, make_optimizer(host), image=image, mask=mask, config={**FIXED, **config})
        kept.append(host)
    before = {name: value.clone() for name, value in kept[1].state_dict().items()}
    with pytest.raises(StateError, match=words):
        load_host(kept[1], kept[0].state_dict())
    assert same(before, dict(kept[1].state_dict()))


def test_a_fused_step_that_the_scaler_lets_do_nothing_moves_nothing_of_ours():
    host = PLAIN.build()
    optimizer = torch.optim.AdamW(host.parameters(), lr=1e-2, fused=True)
    host, optimizer, distiller = start(PLAIN, host, optimizer)
    train(PLAIN, host, optimizer, batches(2), distiller)
    before = {name: value.clone() for name, value in distiller._teacher.state()[0].items()}
    optimizer.grad_scale, optimizer.found_inf = torch.ones(()), torch.ones(())  # what GradScaler sets for the step
    image, mask = batch(7)
    loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    assert distiller._step == 2
    assert same(before, distiller._teacher.state()[0])


def test_a_distiller_loaded_when_it_is_over_is_saved_as_it_was(tmp_path):
    config = {"completion": False, "decay": (1, 2)}
    host, optimizer, distiller = start(PLAIN, **config)
    train(PLAIN, host, optimizer, batches(3), distiller)
    distiller.save(tmp_path / "first")
    host, optimizer, distiller = start(PLAIN, **config)
    distiller.load(tmp_path / "first")
    train(PLAIN, host, optimizer, batches(2, 3), distiller)
    distiller.save(tmp_path / "second")
    (tensors, values), (own, others) = read_state(tmp_path / "first"), read_state(tmp_path / "second")
    assert same(tensors, own)
    assert values | {"step": 5} == others


# -- what an earlier distiller has left --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "asked", "words"),
    [
        ({}, {"completion_levels": (1,)}, "after enc1\nfound: those at the input"),
        ({"completion_levels": (0,)}, {"completion_levels": (1,)}, "after enc1\nfound: those after enc0"),
        (
            {"completion_levels": (0, 1)},
            {"completion_levels": (0,)},
            "found: those after enc0 and after enc1",
        ),
        ({"completion_levels": (0,)}, {"completion_levels": (0,)}, None),
        ({"completion_levels": (0,)}, {}, None),  # no place is named: those that are there
    ],
)
def test_blocks_that_are_asked_for_by_level_and_stand_elsewhere_are_an_error(left, asked, words):
    image, mask = batch()
    host, optimizer, distiller = start(PLAIN, **left)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach()
    before = footprint(host)
    given = {"config": {**FIXED, **asked}, "image": image, "mask": mask}
    if words is None:
        inpaint_distill.attach(host, optimizer, **given).detach()
    else:
        with pytest.raises(PlanError, match=words):
            inpaint_distill.attach(host, optimizer, **given)
    assert footprint(host) == before


class SharedOut(torch.optim.Adam):
    """Keeps its parameters in an optimizer inside, as ZeroRedundancyOptimizer does."""

    def __init__(self, parameters, **settings):
        super().__init__(parameters, **settings)
        self.optim = torch.optim.Adam(self.param_groups[0]["params"], **settings)


def test_an_optimizer_that_has_shared_its_parameters_out_is_refused_with_a_way_that_works():
    host = PLAIN.build()
    before = footprint(host)
    image, mask = batch()
    with pytest.raises(OptimizerError, match=r"(?s)shared the parameters out.*call distiller.step\(\)"):
        inpaint_distill.attach(host, SharedOut(host.parameters()), config=FIXED, image=image, mask=mask)
    assert footprint(host) == before
    distiller = inpaint_distill.attach(host, config=FIXED, image=image, mask=mask)
    optimizer = SharedOut(host.parameters(), lr=1e-2)
    for image, mask in batches(2):
        (reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)).backward()
        optimizer.optim.step()
        optimizer.zero_grad()
        distiller.step()
    assert injected(host).image_block.weight.abs().max() > 0
