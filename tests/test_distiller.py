"""The two lines in a user's loop: what they change, what they leave behind, and what a resumed run repeats."""

import copy
import gc
import weakref

import pytest
import timm.optim
import torch
from hosts import EVERY_HOST, ZOO, batch, batches, footprint, make_optimizer, reconstruct, same, state_of, train
from torch.nn import functional as F

import inpaint_distill
from inpaint_distill import Config, FrozenTeacher, TermConfig
from inpaint_distill.companion import CompanionOptimizer
from inpaint_distill.errors import CaptureError, ConfigError, PlanError, ReplayError, StateError
from inpaint_distill.networks.meta import meta_parameters
from inpaint_distill.state import read_state, write_state

QUICK = {"warmup": 0, "ema_decay": 0.9}
FIXED = {**QUICK, "balance": "none"}  # counts from the first step on
PLAIN = ZOO["separate"]


def data(count, start=0, toy=PLAIN):
    """Batches of the size that a host takes."""
    return batches(count, start, size=toy.size)


# -- ways to use it ----------------------------------------------------------------------------------------------------


def test_planning_from_an_image_and_a_mask_taps_what_the_first_forward_would():
    image, mask = batch()
    host = PLAIN.build()
    early = inpaint_distill.attach(host, image=image, mask=mask)
    assert [stage.name for stage in early.plan.stages] == ["enc0", "enc1", "enc2"]
    early.detach()
    late = inpaint_distill.attach(host)
    assert late.plan is None
    PLAIN.call(host, image, mask)
    assert late.plan.stages == early.plan.stages


@pytest.mark.parametrize("name", ["root_attention", "multi_head"])
def test_attention_is_compared_alike_whether_planned_early_or_at_the_first_forward(name):
    toy, runs = ZOO[name], []
    image, mask = batch()
    for early in ({"image": image, "mask": mask}, {}):
        host = toy.build()
        optimizer = make_optimizer(host)
        distiller = inpaint_distill.attach(host, optimizer, config=FIXED, **early)
        losses = train(toy, host, optimizer, batches(3), distiller)
        runs.append([losses, distiller.log["attention"], state_of(host)])
        assert distiller.log["attention"] > 0
    assert same(runs[0], runs[1])


def test_the_context_manager_detaches_also_after_an_error():
    host = PLAIN.build()
    before = footprint(host)
    with inpaint_distill.attach(host, config=QUICK) as distiller:
        PLAIN.call(host, *batch())
        distiller.loss(*batch())
    assert footprint(host) == before
    with pytest.raises(ReplayError), inpaint_distill.attach(host, config=QUICK) as distiller:
        _train_on_the_wrong_batch(host, distiller)
    assert footprint(host) == before


def _train_on_the_wrong_batch(host, distiller):
    PLAIN.call(host, *batch(0))
    distiller.loss(*batch(1))


def test_paused_forwards_are_not_watched_and_the_loss_is_zero():
    host = PLAIN.build()
    distiller = inpaint_distill.attach(host, config=FIXED)
    image, mask = batch()
    with distiller.paused():
        PLAIN.call(host, image, mask)
        assert distiller.plan is None
        loss = distiller.loss(image, mask)
    assert loss == 0
    assert not loss.requires_grad
    PLAIN.call(host, image, mask)
    with distiller.paused(), torch.no_grad():
        PLAIN.call(host, *batch(7))  # a validation forward between the step's forward and its loss
    assert distiller.loss(image, mask) > 0


def test_validation_under_no_grad_between_forward_and_loss_does_not_disturb():
    host = PLAIN.build()
    distiller = inpaint_distill.attach(host, config=FIXED)
    image, mask = batch()
    PLAIN.call(host, image, mask)
    with torch.no_grad():
        PLAIN.call(host, *batch(7, count=3))
    assert distiller.loss(image, mask) > 0


def test_without_an_optimizer_the_user_steps_the_distiller():
    runs = []
    for given in (True, False):
        host = PLAIN.build()
        optimizer = make_optimizer(host, torch.optim.AdamW, weight_decay=0.01)
        distiller = inpaint_distill.attach(host, optimizer if given else None, config=QUICK)
        for image, mask in batches(3):
            loss = reconstruct(PLAIN, host, image, mask) + distiller.loss(image, mask)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if not given:
                distiller.step()
        runs.append(state_of(host))
    assert same(runs[0], runs[1])


def test_the_added_networks_learn():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    train(PLAIN, host, optimizer, batches(1), distiller)
    before = copy.deepcopy(distiller._terms.state_dict())
    train(PLAIN, host, optimizer, batches(2), distiller)
    after = distiller._terms.state_dict()
    meta = {name for name, _ in meta_parameters(distiller._terms)}
    assert meta
    assert all(torch.equal(before[key], after[key]) == (key in meta) for key in before)


def test_a_smaller_last_batch_is_no_surprise():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    train(PLAIN, host, optimizer, [batch(0, count=3), batch(1, count=1), batch(2, count=3)], distiller)


def test_another_image_size_is_no_surprise():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    train(PLAIN, host, optimizer, [batch(0, size=32), batch(1, size=48), batch(2, size=32)], distiller)


def test_one_mask_serves_the_whole_batch():
    host = PLAIN.build()
    distiller = inpaint_distill.attach(host, config=FIXED)
    image, mask = batch(count=3)
    one = mask[:1]
    toy = ZOO["concatenated"]
    toy.call(host, image, one.expand(3, -1, -1, -1))
    shared = distiller.loss(image, one)
    toy.call(host, image, one.expand(3, -1, -1, -1))
    torch.testing.assert_close(distiller.loss(image, one.expand(3, -1, -1, -1)), shared)


def test_a_mask_of_booleans_or_bytes_gives_the_same_loss():
    values = []
    for dtype in (torch.float32, torch.bool, torch.uint8, torch.float64):
        host = PLAIN.build()
        distiller = inpaint_distill.attach(host, config=FIXED)
        image, mask = batch()
        PLAIN.call(host, image, mask)
        values.append(distiller.loss(image, mask.to(dtype)))
    assert all(torch.equal(value, values[0]) for value in values)


# -- the size of what is added -----------------------------------------------------------------------------------------


def test_no_step_gives_the_terms_more_than_their_share_of_the_gradient():
    toy = ZOO["batch_norm"]
    host = toy.build()
    distiller = inpaint_distill.attach(host, config={"warmup": 0, "cross": {"weight": 0.5}, "self": {"weight": 0.0}})
    features = []
    handle = host.enc2.register_forward_hook(lambda module, args, output: features.append(output))
    for image, mask in batches(3):
        features.clear()
        own = reconstruct(toy, host, image, mask)
        added = distiller.loss(image, mask)
        feature = next(each for each in features if each.requires_grad)  # the dry run and the teacher fire it too
        norms = [torch.autograd.grad(each, feature, retain_graph=True)[0].norm() for each in (own, added)]
        assert norms[1] <= 2 * norms[0], "one level's share may vary, not by an order of magnitude"
        (own + added).backward()
        distiller.step()
    handle.remove()


def test_the_log_names_the_terms_their_factors_and_the_sum():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    weights = {"cross": {"weight": 0.5}, "self": {"weight": 0.125}}
    distiller = inpaint_distill.attach(host, optimizer, config={**QUICK, **weights, "balance": "none"})
    assert distiller.log == {}
    train(PLAIN, host, optimizer, batches(1), distiller)
    log = distiller.log
    assert list(log) == ["cross", "self", "factor/cross", "factor/self", "loss"]
    assert not any(value.requires_grad for value in log.values())
    assert log["factor/cross"] == 0.5
    torch.testing.assert_close(log["loss"], 0.5 * log["cross"] + 0.125 * log["self"])


def test_once_distillation_has_faded_the_teacher_rests_and_nothing_looks_ahead():
    config = {**FIXED, "lookahead": {"every": 1}}
    torch.manual_seed(1)
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, decay=(1, 2), config=config)
    assert distiller.config.decay == (1, 2)
    train(PLAIN, host, optimizer, data(2), distiller)
    teacher, meta = state_of(distiller._teacher.module), [p.clone() for _, p in meta_parameters(distiller._terms)]
    assert distiller.log["cross"] > 0
    assert "inpainting after look-ahead" in distiller.log
    losses = train(PLAIN, host, optimizer, data(3, start=2), distiller)
    assert losses
    assert distiller.log == {}
    assert not distiller._lookahead._batches
    assert same(state_of(distiller._teacher.module), teacher)
    assert all(torch.equal(old, new) for old, (_, new) in zip(meta, meta_parameters(distiller._terms), strict=True))
    assert distiller._step == 5


def test_a_block_alone_keeps_no_moving_average():
    off = {name: {"weight": 0.0} for name in ("cross", "self", "attention")}
    torch.manual_seed(1)
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config={**off, "completion": True})
    train(PLAIN, host, optimizer, data(1), distiller)
    teacher, before = state_of(distiller._teacher.module), state_of(host)
    train(PLAIN, host, optimizer, data(2, start=1), distiller)
    assert same(state_of(distiller._teacher.module), teacher)
    assert not same(state_of(host), before)
    assert distiller._step == 3


def test_the_terms_fade_in_and_out_with_the_steps():
    config = Config(warmup=2, decay=(3, 5), balance="none", self_=TermConfig(weight=0.0), cross=TermConfig(weight=1.0))
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    factors = []
    for image, mask in batches(6):
        own = reconstruct(PLAIN, host, image, mask)
        added = distiller.loss(image, mask)
        factors.append(float(distiller.log["factor/cross"]) if added.requires_grad else 0.0)
        optimizer.zero_grad()
        (own + added).backward()
        optimizer.step()
    assert factors == pytest.approx([0.5, 1.0, 1.0, 1.0, 0.5, 0.0])


def test_between_distilled_steps_the_loss_is_zero_the_teacher_rests_and_its_share_is_made_up_for(monkeypatch):
    config = {**FIXED, "every": 3, "self": {"weight": 0.0}, "cross": {"weight": 0.5}, "lookahead": {"every": 6}}
    torch.manual_seed(1)
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=config)
    factors, asked, objectives = [], [], []
    views = type(distiller._teacher).views

    def spy(*arguments):
        asked.append(distiller._step)
        return views(*arguments)

    monkeypatch.setattr(type(distiller._teacher), "views", spy)
    for image, mask in data(7):
        own = reconstruct(PLAIN, host, image, mask)
        added = distiller.loss(image, mask)
        factors.append(float(distiller.log["factor/cross"]) if added.requires_grad else float(added))
        optimizer.zero_grad()
        (own + added).backward()
        optimizer.step()
        objectives.append("inpainting after look-ahead" in distiller.log)
    assert factors == pytest.approx([1.5, 0, 0, 1.5, 0, 0, 1.5])
    assert asked == [0, 3, 4, 6]  # by the look-ahead after the fourth step too
    assert objectives == [False] * 3 + [True] * 4  # it has the batches of both distilled steps before it


def test_a_distiller_that_first_runs_between_distilled_steps_plans_at_once(tmp_path):
    config = {**FIXED, "every": 2}
    first = inpaint_distill.attach(host := PLAIN.build(), make_optimizer(host), config=config)
    train(PLAIN, host, first._optimizer, data(1), first)
    first.save(tmp_path / "distiller.safetensors")
    second = inpaint_distill.attach(host := PLAIN.build(), make_optimizer(host), config=config)
    second.load(tmp_path / "distiller.safetensors")
    train(PLAIN, host, second._optimizer, data(1), second)
    assert second.plan is not None
    second.save(tmp_path / "again.safetensors")


# -- leave no trace ----------------------------------------------------------------------------------------------------


def test_watching_restores_what_the_dry_run_does_to_private_attributes_and_lists():
    toy = ZOO["private_cache"]
    host = toy.build()
    inpaint_distill.plan(host, *batch())
    assert (host._last, host.history, host.calls) == (None, [], 0)


def test_other_peoples_hooks_stay_and_keep_their_order():
    host = PLAIN.build()
    calls = []
    handle = host.enc1.register_forward_hook(lambda *_: calls.append("user"))
    before = footprint(host)
    distiller = inpaint_distill.attach(host, config=QUICK)
    image, mask = batch()
    PLAIN.call(host, image, mask)
    distiller.loss(image, mask)
    distiller.detach()
    assert footprint(host) == before
    calls.clear()
    PLAIN.call(host, image, mask)
    assert calls == ["user"]
    handle.remove()


def test_a_dropped_distiller_leaves_inert_hooks_and_no_memory():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    train(PLAIN, host, optimizer, batches(1), distiller)
    image, mask = batch()
    kept = []
    handle = host.enc1.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    PLAIN.call(host, image, mask)  # a forward whose loss is never asked for
    gone = weakref.ref(distiller)
    del distiller
    gc.collect()
    assert gone() is None
    assert kept[0]() is None, "the tapped feature lives as long as the host"
    bare, other = PLAIN.build(), PLAIN.build()
    bare.load_state_dict(host.state_dict())
    other.load_state_dict(host.state_dict())
    handle.remove()
    first, second = (make_optimizer(each) for each in (bare, other))
    assert same(train(PLAIN, host, optimizer, []), [])
    train(PLAIN, bare, first, batches(1))
    train(PLAIN, other, second, batches(1))
    assert same(state_of(bare)["host"], state_of(other)["host"])
    torch.testing.assert_close(PLAIN.call(host, image, mask), PLAIN.call(host, image, mask))


def test_no_feature_outlives_the_step():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=QUICK)
    kept = []
    handle = host.enc1.register_forward_hook(lambda module, args, output: kept.append(weakref.ref(output)))
    train(PLAIN, host, optimizer, batches(2), distiller)
    handle.remove()
    assert len(kept) >= 2
    assert all(reference() is None for reference in kept)
    distiller.detach()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"stages": ["enc0", "nothing"]}, PlanError),
        ({"stages": ["enc0"]}, ConfigError),
        ({"teacher": "frozen"}, ConfigError),
        ({"teacher": torch.nn.Linear(3, 3)}, Exception),
    ],
    ids=["unknown stage", "too few stages", "no images", "no encoder in the teacher"],
)
def test_an_error_in_attach_leaves_nothing_installed(arguments, error):
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    before, image_mask = footprint(host), dict(zip(("image", "mask"), batch(), strict=True))
    random = torch.get_rng_state()
    with pytest.raises(error):
        inpaint_distill.attach(host, optimizer, **image_mask, **arguments)
    assert footprint(host) == before
    assert not optimizer._optimizer_step_post_hooks
    assert torch.equal(torch.get_rng_state(), random)
    if isinstance(arguments.get("teacher"), torch.nn.Module):
        assert arguments["teacher"].training
        assert not arguments["teacher"]._forward_hooks


def test_an_error_in_the_first_forward_leaves_nothing_installed():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    before = footprint(host)
    distiller = inpaint_distill.attach(host, optimizer, stages=["enc0", "nothing"])
    with pytest.raises(PlanError, match="nothing"):
        PLAIN.call(host, *batch())
    assert footprint(host) == before
    assert not optimizer._optimizer_step_post_hooks
    PLAIN.call(host, *batch())
    with pytest.raises(CaptureError, match="detached"):
        distiller.loss(*batch())


def test_after_detach_a_second_distiller_can_be_attached():
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    for _ in range(2):
        with inpaint_distill.attach(host, optimizer, config=QUICK) as distiller:
            train(PLAIN, host, optimizer, batches(1), distiller)


def test_the_teacher_may_be_a_foreign_module_and_is_given_back():
    teacher = ZOO["white_holes"].build()
    teacher.enc1.eval()
    flags = [part.training for part in teacher.modules()]
    before = footprint(teacher)
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    weights = copy.deepcopy(teacher.state_dict())
    with inpaint_distill.attach(host, optimizer, teacher=teacher, config=QUICK) as distiller:
        losses = train(PLAIN, host, optimizer, batches(2), distiller)
    assert all(torch.isfinite(loss) for loss in losses)
    assert [part.training for part in teacher.modules()] == flags
    assert footprint(teacher) == before
    assert same(teacher.state_dict(), weights)


# -- save and load -----------------------------------------------------------------------------------------------------


def test_a_state_can_be_loaded_before_and_after_the_first_forward(tmp_path):
    path = tmp_path / "state"
    host = PLAIN.build()
    optimizer = make_optimizer(host)
    distiller = inpaint_distill.attach(host, optimizer, config=FIXED)
    train(PLAIN, host, optimizer, batches(2), distiller)
    distiller.save(path)
    values = []
    for early in (True, False):
        other = PLAIN.build()
        other.load_state_dict(host.state_dict())
        second = inpaint_distill.attach(other, config=FIXED)
        if not early:
            PLAIN.call(other, *batch(5))
            second.loss(*batch(5))
        second.load(path)
        PLAIN.call(other, *batch(6))
        values.append(second.loss(*batch(6)))
    assert values[0] > 0
    assert torch.equal(values[0], values[1])


def test_a_state_of_other_settings_or_another_host_is_refused(tmp_path):
    path = tmp_path / "state"
    host = PLAIN.build()
    distiller = inpaint_distill.attach(host, config=QUICK)
    with pytest.raises(StateError, match="not run"):
        distiller.save(path)
    PLAIN.call(host, *batch())
    distiller.save(path)
    with pytest.raises(StateError, match="warmup"):
        inpaint_distill.attach(PLAIN.build(), config={**QUICK, "warmup": 7}).load(path)
    other = ZOO["two_stage"]
    host = other.build()
    stranger = inpaint_distill.attach(host, config=QUICK)
    stranger.load(path)
    before = host.fine.enc0._forward_hooks.copy()
    with pytest.raises(StateError, match="fine"):
        other.call(host, *batch())
    assert host.fine.enc0._forward_hooks == before
    with pytest.raises(StateError, match="existing"):
        distiller.save(tmp_path / "no" / "such" / "folder")


def test_a_state_of_another_kind_of_teacher_is_refused_also_where_the_settings_say_nothing_of_it(tmp_path):
    def begin(teacher):
        host = PLAIN.build()
        return host, inpaint_distill.attach(host, teacher=teacher, config=QUICK)

    host, distiller = begin(None)
    PLAIN.call(host, *batch())
    distiller.save(tmp_path / "state")
    host, other = begin(FrozenTeacher(batch()[0], steps=1))
    with pytest.raises(StateError, match="'ema'; this is 'frozen'"):
        other.load(tmp_path / "state")
    PLAIN.call(host, *batch())
    other.loss(*batch())
    assert len(other._teacher.errors) == 1, "nothing of it was kept"
    tensors, values = read_state(tmp_path / "state")
    del values["teacher"]  # as earlier versions wrote it
    write_state(tmp_path / "earlier", tensors, values)
    host, again = begin(None)
    again.load(tmp_path / "earlier")
    PLAIN.call(host, *batch())
    assert again.plan is not None


# -- the plan ----------------------------------------------------------------------------------------------------------


def test_the_plan_prints_as_a_table_and_a_stage_of_it_can_be_passed_back():
    image, mask = batch()
    host = PLAIN.build()
    plan = inpaint_distill.plan(host, image, mask)
    lines = str(plan).splitlines()
    assert all(any(stage.name in line and str(stage.channels) in line for line in lines) for stage in plan.stages)
    with inpaint_distill.attach(host, image=image, mask=mask, stages=plan.stages[1:]) as distiller:
        assert distiller.plan.stages == plan.stages[1:]
        assert "cross" in str(distiller.plan)
        assert "ema" in str(distiller.plan)


@pytest.mark.parametrize("name", ["separate", "in_place", "overwrites", "multi_head", "batch_norm", "unet"])
def test_a_plan_is_the_same_under_inference_mode(name):
    toy = EVERY_HOST[name]
    host, plans = toy.build(), []
    for inference in (False, True):
        with torch.inference_mode(inference):
            plans.append(inpaint_distill.plan(host, *batch(**toy.images), adapter=toy.adapter))
    assert plans[0] == plans[1]


def test_a_stage_passed_with_clone_keeps_a_copy():
    host = PLAIN.build()
    stages = [inpaint_distill.Stage(name=name, clone=True) for name in ("enc0", "enc1")]
    distiller = inpaint_distill.attach(host, stages=stages)
    PLAIN.call(host, *batch())
    assert all(stage.clone for stage in distiller.plan.stages)


def test_globs_choose_stages_in_the_order_in_which_they_run():
    host = PLAIN.build()
    distiller = inpaint_distill.attach(host, stages=["enc[12]"])
    PLAIN.call(host, *batch())
    assert [stage.name for stage in distiller.plan.stages] == ["enc1", "enc2"]


def test_an_in_place_host_is_tapped_before_it_overwrites():
    toy = ZOO["in_place"]
    host = toy.build()
    distiller = inpaint_distill.attach(host, config={"balance": "none"})
    image, mask = batch()
    toy.call(host, image, mask)
    features = distiller._watch.take((32, 32)).features
    x = F.conv2d(torch.cat([image * (1 - mask), mask], 1), host.enc0.weight, host.enc0.bias, padding=1)
    torch.testing.assert_close(features[0], x)


@pytest.mark.parametrize(
    ("settings", "device"), [({"capturable": True}, "meta"), ({"fused": True}, "meta"), ({}, "cpu")]
)
def test_a_fused_or_captured_optimizer_counts_its_steps_beside_the_parameters(settings, device):
    """As torch's own ``load_state_dict`` does; a count on the CPU would stop such an optimizer on a device."""
    parameter = torch.nn.Parameter(torch.zeros(2, device="meta"))
    companion = CompanionOptimizer([parameter], torch.optim.Adam([parameter]))
    companion.inner.param_groups[0].update(settings)
    companion.load({"0.step": torch.tensor(3.0), "0.exp_avg": torch.zeros(2)}, {})
    state = companion.inner.state[parameter]
    assert state["step"].device.type == device
    assert state["exp_avg"].device.type == "meta"


@pytest.mark.parametrize("fused", [False, True])
def test_a_learning_rate_that_is_a_tensor_is_followed_like_a_number(fused):
    """Such a rate is read by a captured step each time it is replayed; a schedule changes it in place."""
    runs = []
    for lr in (1e-2, torch.tensor(1e-2)):
        host = PLAIN.build()
        image, mask = batch()
        optimizer = make_optimizer(host, torch.optim.Adam, lr=lr, fused=fused)
        distiller = inpaint_distill.attach(host, optimizer, image=image, mask=mask, completion=True, config=FIXED)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=30, cycle_momentum=False)
        losses = train(PLAIN, host, optimizer, data(8), distiller, schedule)
        followed = [float(group["lr"]) for group in distiller._companion.inner.param_groups]
        assert followed == pytest.approx([float(schedule.optimizer.param_groups[0]["lr"])], rel=0.2)
        runs.append((torch.stack(losses), torch.cat([p.detach().flatten() for p in host.parameters()])))
    for number, tensor in zip(*runs, strict=True):
        torch.testing.assert_close(number, tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", ["lamb", "adan", "adafactorbv"])
def test_what_an_optimizer_keeps_outside_its_moments_or_in_types_of_its_own_is_resumed_bit_for_bit(name, tmp_path):
    toy = ZOO["separate"]

    def begin():
        host = toy.build()
        optimizer = timm.optim.create_optimizer_v2(host, opt=name, lr=1e-2)
        return host, optimizer, inpaint_distill.attach(host, optimizer, lookahead="off", config={"warmup": 0})

    host, optimizer, distiller = begin()
    train(toy, host, optimizer, batches(3), distiller)
    kept = copy.deepcopy(host.state_dict()), copy.deepcopy(optimizer.state_dict())
    distiller.save(tmp_path / "state")
    train(toy, host, optimizer, batches(3, 3), distiller)
    expected = distiller._terms.state()[0]
    host, optimizer, distiller = begin()
    host.load_state_dict(kept[0])
    optimizer.load_state_dict(kept[1])
    distiller.load(tmp_path / "state")
    train(toy, host, optimizer, batches(3, 3), distiller)
    assert same(expected, distiller._terms.state()[0])
