"""Blocks that stay in the host: identity at the start, trained by its optimizer, and theirs or ours to take away."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from hosts import ZOO, ZOO_NAMES, batch, batches, footprint, make_optimizer, outputs, reconstruct, same, stir, train
from hosts.base import Plain, Up, block
from torch import nn

import inpaint_distill
from inpaint_distill import Adapter, Config, Stage
from inpaint_distill.errors import ConfigError, InpaintDistillError, PlanError
from inpaint_distill.host.trace import RESERVED as NAME
from inpaint_distill.inject import completion_stages
from inpaint_distill.injection import injected
from inpaint_distill.lookahead.finite_difference import finite_difference
from inpaint_distill.lookahead.host_problem import Batch
from inpaint_distill.lookahead.unroll import unroll
from inpaint_distill.networks.completion import CompletionBlock

FIXED = {"warmup": 0, "balance": "none", "ema_decay": 0.9}
AFTER = {**FIXED, "completion": True, "completion_levels": (0,)}  # a block after the first stage, not at the input
PLAIN = ZOO["separate"]
CARRY_A_MASK = [name for name in ZOO_NAMES if name != "white_holes"]
TRAINED = ["separate", "keywords", "nested", "half_mask", "dict_output", "two_stage", "partial_conv", "dict_stages"]
TRAINED += ["tokens", "nhwc", "in_place", "batch_norm", "shared_activation", "hook_spectral_norm", "cached_tensor"]
TRAINED += ["data_spectral_norm", "private_cache", "silent_modes", "noisy", "recurrent"]


def start(toy, optimizer=torch.optim.AdamW, **config):
    """Build a host with its optimizer, and attach with completion after every stage unless told otherwise."""
    host = toy.build()
    optimizer = make_optimizer(host, optimizer)
    if config.setdefault("completion", True):
        config.setdefault("completion_levels", tuple(range(len(toy.stages))))
    return host, optimizer, inpaint_distill.attach(host, optimizer, config={**FIXED, **config})


def start_again(host, optimizer, **config):
    """Attach once more, with completion, to a host that has been completed."""
    image, mask = batch(0)
    config = {**FIXED, "completion": True, **config}
    return inpaint_distill.attach(host, optimizer, image=image, mask=mask, config=config)


def stage_output(host, name, run):
    """Return what the last call of a module puts out."""
    kept = []
    handle = host.get_submodule(name).register_forward_hook(lambda module, args, output: kept.append(output))
    with torch.no_grad():
        run()
    handle.remove()
    return kept[-1]


def _static(notes):
    own = {"training", "bottleneck", "_last", "history", "calls", "weight"}
    return {name: (kind, {k: v for k, v in values.items() if k not in own}) for name, (kind, values) in notes.items()}


# -- the identity ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CARRY_A_MASK)
def test_blocks_start_as_the_identity_bit_for_bit(name):
    toy, runs = ZOO[name], []
    for blocks in (False, True):
        host = toy.build()
        config = {**(AFTER if blocks else FIXED), "fusion": blocks, "attention": {"weight": 0.0}}
        distiller = inpaint_distill.attach(host, make_optimizer(host), config=config)
        torch.manual_seed(5)
        for image, mask in batches(2):  # in the first the hole's place is not known yet
            output = toy.select(toy.call(host, image, mask)).detach().clone()
            distiller.loss(image, mask)
        runs.append([output, {k: v for k, v in host.state_dict().items() if not k.startswith(NAME)}])
        assert (injected(host) is not None) == blocks
    assert injected(host).source is not None
    assert len(injected(host).blocks) >= 2
    assert same(runs[0], runs[1])


@pytest.mark.parametrize("name", ["separate", "separate_known", "nhwc", "tokens", "partial_conv", "local_global"])
def test_a_block_rewrites_the_hole_of_its_stage_and_nothing_else(name):
    toy = ZOO[name]
    host, optimizer, distiller = start(toy)
    train(toy, host, optimizer, batches(1), distiller)
    stage = injected(host).stages[-1]
    image, mask = batch(3)
    before = stage_output(host, stage.name, lambda: toy.call(host, image, mask))
    with torch.no_grad():
        injected(host).blocks[-1].weight.normal_(generator=torch.Generator().manual_seed(0))
    after = stage_output(host, stage.name, lambda: toy.call(host, image, mask))
    if stage.select:  # what travels with the feature
        assert same(before[1], after[1])
        before, after = before[0], after[0]
    changed = stage.as_map((after != before).float(), (32, 32)).amax(1, keepdim=True)
    share = nn.functional.adaptive_avg_pool2d(mask, changed.shape[2:])
    assert torch.equal(changed.bool(), share > 0)


def test_blocks_after_an_activation_that_models_share_rewrite_their_own_host_alone():
    toy = ZOO["default_activation"]
    host, other = toy.build(), toy.build()
    assert host.act is other.act
    expected = outputs(toy, other)
    distiller = inpaint_distill.attach(host, make_optimizer(host), config=AFTER)
    train(toy, host, distiller._optimizer, batches(1), distiller)
    stir(host)
    host = distiller.detach()
    outputs(toy, host)
    assert same(outputs(toy, other), expected)
    injected(host).remove(host)  # the class keeps its activation


def test_a_mask_in_another_range_still_means_no_known_pixel_changes():
    host, optimizer, distiller = start(PLAIN)

    def call(image, mask):
        return host(image * (1 - mask), (mask - 0.485) / 0.229)

    for image, mask in batches(2):
        (call(image, mask).abs().mean() + distiller.loss(image, mask)).backward()
        optimizer.step()
    before = stage_output(host, "enc2", lambda: call(image, mask))
    with torch.no_grad():
        injected(host).blocks[-1].weight.normal_()
        injected(host).blocks[0].weight.zero_()
    known = nn.functional.adaptive_avg_pool2d(mask, (8, 8)).expand_as(before) == 0
    with torch.no_grad():
        injected(host).blocks[-1].weight.zero_()
        expected = stage_output(host, "enc2", lambda: call(image, mask))
        injected(host).blocks[-1].weight.normal_()
    after = stage_output(host, "enc2", lambda: call(image, mask))
    assert torch.equal(after[known], expected[known])
    assert not torch.equal(after[~known], expected[~known])


def test_fusion_is_the_identity_at_the_start_and_its_attention_is_compared():
    host, optimizer, distiller = start(PLAIN, completion=False, fusion=True)
    bare = PLAIN.build()
    train(PLAIN, host, optimizer, batches(1), distiller)
    (site,) = distiller.plan.attention
    assert site.name == f"{NAME}.blocks.0"
    assert distiller.log["attention"] >= 0
    assert "attention with global-local fusion" in str(distiller.plan)
    fused = injected(host).blocks[0]
    before = copy.deepcopy(fused.state_dict())
    bare.load_state_dict({k: v for k, v in host.state_dict().items() if not k.startswith(NAME)})
    with torch.no_grad():
        fused.project.weight.zero_()
        fused.project.bias.zero_()
    assert torch.equal(outputs(PLAIN, host), outputs(PLAIN, bare))
    image, mask = batch(4)
    optimizer.zero_grad()
    PLAIN.call(host, image, mask)
    distiller.loss(image, mask).backward()
    assert distiller.log["attention"] > 0
    assert fused.query.weight.grad.any(), "attention transfer reaches the queries"
    assert not same(before, fused.state_dict())


# -- training ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TRAINED)
def test_the_users_optimizer_trains_them_and_they_stay_or_go_without_trace(name):
    toy = ZOO[name]
    host = toy.build()
    optimizer = make_optimizer(host)
    trace, keys, count = footprint(host), list(host.state_dict()), len(optimizer.param_groups[0]["params"])
    distiller = inpaint_distill.attach(host, optimizer, config=AFTER)
    train(toy, host, optimizer, batches(3), distiller)
    own = injected(host)
    assert len(optimizer.param_groups) == 1
    assert all(block.weight.any() for block in own.blocks)
    assert all(parameter in optimizer.state for parameter in own.parameters())
    assert all(id(parameter) not in {id(p) for p in distiller._companion.parameters} for parameter in own.parameters())
    output = outputs(toy, host)
    distiller.detach(keep_completion=True)
    assert torch.equal(outputs(toy, host), output)
    copied = copy.deepcopy(host) if name != "cached_tensor" else host  # which torch cannot copy after a forward
    assert torch.equal(outputs(toy, copied), output)

    again = inpaint_distill.attach(host, optimizer, config=AFTER)
    train(toy, host, optimizer, batches(1, 3), again)
    assert injected(host) is own
    again.detach(keep_completion=False)
    assert injected(host) is None
    assert list(host.state_dict()) == keys
    assert _static(footprint(host)) == _static(trace)
    assert len(optimizer.param_groups[0]["params"]) == count == len(optimizer.state)
    train(toy, host, optimizer, batches(1, 4))


def test_a_pickled_host_keeps_them():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    copies = [copy.deepcopy(host), pickle.loads(pickle.dumps(host))]  # while attached
    distiller.detach()
    file = io.BytesIO()
    torch.save(host, file)
    file.seek(0)
    copies += [pickle.loads(pickle.dumps(host)), torch.load(file, weights_only=False)]
    expected = outputs(PLAIN, host)
    for each in copies:
        assert injected(each) is not injected(host)
        assert torch.equal(outputs(PLAIN, each), expected)
        injected(each).remove(each)
        assert not torch.equal(outputs(PLAIN, each), expected)
    assert torch.equal(outputs(PLAIN, host), expected)


def test_schedulers_and_scalers_work_beside_them():
    host, optimizer, distiller = start(PLAIN)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=8)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    for image, mask in batches(4):
        loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(host.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        scheduler.step()
    assert all(block.weight.any() for block in injected(host).blocks)
    assert len(optimizer.param_groups) == 1


def test_blocks_join_the_group_that_trains_their_stage():
    host = PLAIN.build()
    optimizer = torch.optim.SGD([{"params": host.up.parameters()}, {"params": host.enc2.parameters(), "lr": 0.0}], 0.1)
    distiller = inpaint_distill.attach(host, optimizer, completion=True, config={**FIXED, "completion_levels": (2,)})
    train(PLAIN, host, optimizer, batches(3), distiller)
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2 + 3]
    assert not injected(host).blocks[0].weight.any(), "its learning rate is 0"


def test_an_optimizer_that_knows_names_learns_theirs():
    host = PLAIN.build()
    try:
        optimizer = torch.optim.AdamW(host.named_parameters())
    except TypeError:
        pytest.skip("this torch takes no names")
    before = list(optimizer.param_groups[0]["param_names"])
    distiller = inpaint_distill.attach(host, optimizer, config=AFTER)
    train(PLAIN, host, optimizer, batches(1), distiller)
    assert optimizer.param_groups[0]["param_names"] == [name for name, _ in host.named_parameters()]
    distiller.detach(keep_completion=False)
    assert optimizer.param_groups[0]["param_names"] == before


def test_without_an_optimizer_they_are_there_before_the_users_is_made():
    host = PLAIN.build()
    image, mask = batch()
    distiller = inpaint_distill.attach(host, image=image, mask=mask, config=AFTER)
    optimizer = make_optimizer(host)
    for image, mask in batches(3):
        loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        distiller.step()
    assert all(block.weight.any() for block in injected(host).blocks)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_they_move_with_the_host(dtype):
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    distiller.detach()
    expected = outputs(PLAIN, host)
    host.to(dtype)
    assert all(parameter.dtype == dtype for parameter in injected(host).parameters())
    image, mask = (tensor.to(dtype) for tensor in batch(9))
    found = PLAIN.call(host, image, mask)
    assert found.dtype == dtype
    tolerance = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float64 else {"rtol": 0.1, "atol": 0.1}
    torch.testing.assert_close(found.float(), expected, **tolerance)


def test_with_every_weight_zero_they_are_trained_by_the_hosts_loss_alone():
    off = {name: {"weight": 0.0} for name in ("cross", "self", "attention")}
    host, optimizer, distiller = start(PLAIN, **off)
    train(PLAIN, host, optimizer, batches(3), distiller)
    assert all(block.weight.any() for block in injected(host).blocks)


def test_the_moving_average_holds_them_too():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(3), distiller)
    average = injected(distiller._teacher.module)
    assert average is not injected(host)
    assert all(block.weight.any() for block in average.blocks)


def test_a_frozen_encoder_can_be_completed():
    host = PLAIN.build()
    host.requires_grad_(False)
    host.up.requires_grad_(True)
    optimizer = make_optimizer(host)
    stages = ["enc1", "enc2"]
    distiller = inpaint_distill.attach(host, optimizer, stages=stages, config=AFTER)
    encoder = copy.deepcopy(host.enc1.state_dict())
    train(PLAIN, host, optimizer, batches(3), distiller)
    assert all(block.weight.any() for block in injected(host).blocks)
    assert same(encoder, host.enc1.state_dict())


# -- the look-ahead through them ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["shared_activation", "tokens", "nhwc", "hook_spectral_norm"])
def test_unroll_goes_through_them_and_agrees_with_finite_differences(name):
    toy = ZOO[name]
    host, optimizer, distiller = start(toy, lookahead={"engine": "unroll", "every": 2}, fusion=True)
    train(toy, host, optimizer, batches(2), distiller)  # a fallback would be a warning, and so an error
    stir(host)
    kept = []
    for seed in (5, 6):
        image, mask = batch(seed)
        toy.call(host, image, mask)
        call = distiller._forwards.last.call
        distiller.loss(image, mask)
        kept.append(Batch.copy(call, image, mask))
    with distiller.paused():
        problem = distiller._problem(*kept)
    assert any(key.startswith(f"host.{NAME}") for key in problem.theta())
    found = [
        torch.cat([each.flatten() for each in run(problem, problem.theta(), problem.meta(), lr=0.01)[1].values()])
        for run in (finite_difference, unroll)
    ]
    assert torch.cosine_similarity(*found, dim=0) > 0.999


# -- how the host is called --------------------------------------------------------------------------------------------


class Named(Plain):
    def forward(self, picture, holes):
        return super().forward(picture, holes)


def test_the_hole_may_come_by_position_in_training_and_by_keyword_later():
    host = Named()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=AFTER)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    distiller.detach()
    image, mask = batch(4)
    with torch.no_grad():
        expected = host(image * (1 - mask), mask)
        assert torch.equal(host(image * (1 - mask), holes=mask), expected)
        assert torch.equal(host(holes=mask, picture=image * (1 - mask)), expected)
        injected(host).remove(host)
        assert not torch.equal(host(image * (1 - mask), mask), expected)


def test_a_call_without_the_hole_says_what_is_missing():
    class Optional(Plain):
        def forward(self, picture, holes=None):
            return super().forward(picture, torch.zeros_like(picture[:, :1]) if holes is None else holes)

    host = Optional()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=AFTER)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach()
    with pytest.raises(InpaintDistillError, match="the hole in argument") as caught:
        host(batch()[0])
    assert "1 positional" in caught.value.found


@pytest.mark.parametrize("lookahead", ["finite_difference", "off"])
@pytest.mark.parametrize("cross", [0.2, 0.0])
def test_a_host_whose_call_carries_no_mask_is_refused(cross, lookahead):
    toy = ZOO["white_holes"]
    host, _, distiller = start(toy, cross={"weight": cross}, lookahead={"engine": lookahead})
    toy.call(host, *batch())
    with pytest.raises(PlanError, match="no argument of the host's call carries the mask"):
        distiller.loss(*batch())


class Edged(nn.Module):
    """Takes the edges of the complete image beside image and mask."""

    def __init__(self):
        super().__init__()
        self.inner = Plain(5)

    def forward(self, image, edges, mask):
        return self.inner(image * (1 - mask), edges, mask.expand(len(image), -1, -1, -1))


class EdgedAdapter(Adapter):
    """Draws them."""

    name = "edged"
    replayable = False

    def outputs(self, host, image, hole):
        return (host(image, (image[:, :1] > 0).float(), hole),)


@pytest.mark.parametrize("count", [1, 2])
def test_a_hole_is_found_in_a_call_that_an_adapter_has_to_make(count):
    torch.manual_seed(0)
    host, adapter, (image, mask) = Edged(), EdgedAdapter(), batch()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, adapter=adapter, config=AFTER)
    before = None
    for _ in range(3):
        (restored,) = adapter.outputs(host, image, mask[:count])
        loss = (restored - image).abs().mean() + distiller.loss(image, mask[:count])
        before = before or [value.clone() for value in injected(host).parameters()]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    source = distiller._injected.source
    assert (source.path, source.channel, source.slope, source.bias) == ((2,), 0, 1.0, 0.0)
    assert any(not torch.equal(*pair) for pair in zip(injected(host).parameters(), before, strict=True))
    host = distiller.detach()
    (shown, empty) = (adapter.outputs(host, image, hole)[0] for hole in (mask, torch.zeros_like(mask)))
    assert not torch.equal(shown, empty)


def test_a_call_that_cannot_be_explained_is_refused_also_where_no_teacher_needs_it():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = PLAIN.build()

        def forward(self, image, mask, noise):
            return self.inner(image, mask) + 0 * noise

    host = Noisy()
    config = {**FIXED, "cross": {"weight": 0.0}, "completion": True, "lookahead": {"engine": "off"}}
    distiller = inpaint_distill.attach(host, make_optimizer(host), config=config)
    image, mask = batch()
    host(image * (1 - mask), mask, torch.randn_like(image))
    with pytest.raises(InpaintDistillError, match="argument 'noise'"):
        distiller.loss(image, mask)


# -- where they cannot be, and whose they are --------------------------------------------------------------------------


def refused(host, match, kind=PlanError, stages=None, **config):
    before = footprint(host)
    image, mask = batch()
    config = {**FIXED, "completion": True, **config}
    with pytest.raises(kind, match=match) as caught:
        inpaint_distill.attach(host, image=image, mask=mask, stages=stages, config=config)
    assert footprint(host) == before
    assert all((caught.value.asked, caught.value.found, caught.value.fix))


def test_a_root_that_would_run_them_as_one_more_layer_is_refused():
    refused(nn.Sequential(block(4, 8), block(8, 12, 2), block(12, 16, 2), Up()), "one more layer")


def test_a_stage_of_a_single_pixel_is_refused_where_it_was_asked_for():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.levels = nn.Sequential(*(block(8 if level else 4, 8, 2) for level in range(5)))
            self.out = nn.Conv2d(8, 3, 1)

        def forward(self, image, mask):
            return nn.functional.interpolate(self.out(self.levels(torch.cat([image, mask], 1))), scale_factor=32)

    refused(Deep(), "1x1", ConfigError, stages=["levels.1", "levels.4"], completion_levels=(1,))  # planned to be one
    stage = Stage(name="levels.4", channels=8, stride=32)
    with pytest.raises(ConfigError, match="1x1"):
        completion_stages([stage], Config(completion=True, completion_levels=(0,)), (32, 32))
    found = inpaint_distill.plan(Deep(), *batch(), stages=["levels.1", "levels.4"]).stages
    below = Config(completion=True, completion_levels=None)
    assert completion_stages(found, below, (32, 32)) == [found[0]]  # else left out
    host = Deep()  # where it becomes one
    image, mask = batch(size=64)
    levels = Config(completion=True, completion_levels=(0, 1))
    distiller = inpaint_distill.attach(host, make_optimizer(host), stages=["levels.2", "levels.3"], config=levels)
    train(PLAIN, host, make_optimizer(host), [(image, mask)], distiller)
    with pytest.raises(ConfigError, match="1x1"):
        PLAIN.call(host, *batch(size=16))
    refused(Deep(), "2 stages", stages=["levels.1", "levels.2"], completion_levels=(2,))


def test_levels_choose_where_they_go():
    found = inpaint_distill.plan(PLAIN.build(), *batch(), stages=["enc0", "enc1", "enc2"]).stages
    for levels, expected in (((0,), found[:1]), (None, found[1:]), ((1, 2), found[1:])):
        config = Config(completion=True, completion_levels=levels)
        assert completion_stages(found, config, (32, 32)) == list(expected)
    assert completion_stages(found, Config(completion=True), (32, 32)) == [found[0]]
    host, optimizer, distiller = start(PLAIN, completion_levels=(0, 2))
    train(PLAIN, host, optimizer, batches(1), distiller)
    assert [stage.name for stage in injected(host).stages] == ["enc0", "enc2"]
    assert [type(each) for each in injected(host).blocks] == [CompletionBlock] * 2


def test_a_host_with_a_submodule_of_that_name_is_refused():
    host = PLAIN.build()
    host.add_module(NAME, nn.Identity())
    refused(host, "of that name")


def test_an_error_in_attach_takes_nothing_away_that_was_there_before():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    distiller.detach()
    expected, size = outputs(PLAIN, host), len(optimizer.param_groups[0]["params"])
    image, mask = batch()
    with pytest.raises(ConfigError, match="'t'"):
        inpaint_distill.attach(
            host, optimizer, image=image, mask=mask, completion=True, config={**FIXED, "meta": ("t",)}
        )
    assert injected(host) is not None
    assert torch.equal(outputs(PLAIN, host), expected)
    assert len(optimizer.param_groups[0]["params"]) == size


@pytest.mark.parametrize(("first", "second"), [("completion", "fusion"), ("fusion", "completion")])
def test_a_second_distiller_never_silently_leaves_out_what_it_was_asked_to_inject(first, second):
    host, optimizer, distiller = start(PLAIN, **{"completion": False, first: True})
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach()
    try:
        distiller = inpaint_distill.attach(host, optimizer, config={**FIXED, "completion": False, second: True})
        train(PLAIN, host, optimizer, batches(2), distiller)
    except PlanError:
        return
    kinds = {type(each).__name__ for each in injected(host).blocks}
    assert kinds == {"CompletionBlock", "GlobalLocalAttention"}


@pytest.mark.parametrize("first", [False, True], ids=["plain first", "adaptive first"])
def test_a_second_distiller_never_silently_keeps_blocks_of_the_other_kind(first):
    host, optimizer, distiller = start(PLAIN, completion_adaptive=first)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach()
    expected = outputs(PLAIN, host)
    found, asked = ("adaptive completion block", "inject completion block") if first else ("has completion", "adaptive")
    with pytest.raises(PlanError, match=rf"{asked}(.|\n)*{found}"):
        start_again(host, optimizer, completion_adaptive=not first)
    assert torch.equal(outputs(PLAIN, host), expected)
    start_again(host, optimizer, completion_adaptive=first)


def test_a_distiller_without_completion_leaves_a_completed_host_as_it_is():
    host, optimizer, distiller = start(PLAIN)
    train(PLAIN, host, optimizer, batches(2), distiller)
    stir(host)
    distiller.detach()
    expected = outputs(PLAIN, host)
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED)
    assert torch.equal(outputs(PLAIN, host), expected)
    train(PLAIN, host, optimizer, batches(1), distiller)
    distiller.detach(keep_completion=False)
    assert injected(host) is not None, "they are not this distiller's"


def test_detach_can_be_called_at_any_time_and_twice():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    before = footprint(host)
    inpaint_distill.attach(host, optimizer, config=AFTER).detach()  # before the first forward
    assert footprint(host) == before
    distiller = inpaint_distill.attach(host, optimizer, config=AFTER)
    PLAIN.call(host, *batch())  # between forward and loss
    distiller.detach()
    assert injected(host) is not None
    distiller.detach(keep_completion=False)
    assert footprint(host) == before
    distiller.detach()


def test_a_step_after_detach_does_nothing():
    host = PLAIN.build()
    config = {**FIXED, "lookahead": {"every": 1}}
    distiller = inpaint_distill.attach(host, config=config)
    for image, mask in batches(2):
        PLAIN.call(host, image, mask)
        distiller.loss(image, mask)
    distiller.detach()
    distiller.step()
    assert "inpainting after look-ahead" not in distiller.log


def test_nothing_warns_in_a_run_with_everything_on():
    toy = ZOO["batch_norm"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host, optimizer, distiller = start(toy, fusion=True, lookahead={"engine": "unroll", "every": 2})
        losses = train(toy, host, optimizer, batches(4), distiller)
    assert all(torch.isfinite(loss) for loss in losses)
    assert list(distiller.log)[:3] == ["cross", "self", "attention"]


def test_blocks_without_a_term_keep_nothing_of_a_step():
    toy = ZOO["separate"]
    host = toy.build()
    weights = {name: {"weight": 0.0} for name in ("cross", "self", "attention")}
    distiller = inpaint_distill.attach(host, make_optimizer(host), completion=True, config=weights)
    image, mask = batch()
    restored = toy.call(host, image, mask)
    assert distiller.loss(image, mask) == 0
    assert distiller._forwards.last is None
    assert not distiller._watch._features._kept
    assert injected(host).source is not None
    restored.sum().backward()
