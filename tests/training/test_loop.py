from __future__ import annotations

import dataclasses
from dataclasses import replace

import pytest
import torch

from inpaint_distill.config import AttentionConfig, Config, LookaheadConfig, TermConfig
from inpaint_distill.networks.fill import pull_push
from inpaint_distill.training.cost import step_cost
from inpaint_distill.training.data import Batches, EvalSet, load_data
from inpaint_distill.training.loop import Trainer, reconstruction_loss
from inpaint_distill.training.scoring import evaluate, interpolated, mean_fill, restore
from inpaint_distill.training.settings import BoostSettings, Run

SETTINGS = BoostSettings(
    host="partial-conv",
    host_options={"width": 4, "levels": 2},
    size=16,
    batch=3,
    steps=6,
    evaluations=3,
    train_images=20,
    eval_images=8,
    fade=None,
    distillation=Config(warmup=0, balance_every=2, lookahead=LookaheadConfig(every=2)),
)


@pytest.fixture(scope="module")
def data():
    return load_data(SETTINGS)


def run_of(arm, **changes):
    return Run(arm=arm, **{"seed": 3, "steps": 6, "lr": 1e-3, **changes})


def weights(trainer):
    return {name: value.clone() for name, value in trainer.host.state_dict().items()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_every_arm_starts_from_the_same_weights_and_sees_the_same_batches(data):
    arms = [Trainer(run_of(arm), SETTINGS, data) for arm in ("bare", "distilled", "bare_equal_time")]
    for other in arms[1:]:
        assert_equal(weights(arms[0]), weights(other))
        for trainer in arms:
            trainer.batches = Batches(data, SETTINGS.size, SETTINGS.batch, trainer.run.seed)
        for _ in range(9):  # more than one pass over the images
            for own, same in zip(arms[0].batches.draw(), other.batches.draw(), strict=True):
                assert torch.equal(own, same)


def test_distillation_changes_the_weights_and_weight_zero_does_not(data):
    zero = TermConfig(weight=0.0)
    nothing = Config(cross=zero, self_=zero, attention=AttentionConfig(weight=0.0))
    off = dataclasses.replace(SETTINGS, distillation=nothing)
    trained = {}
    for name, arm, settings in (("bare", "bare", SETTINGS), ("on", "distilled", SETTINGS), ("off", "distilled", off)):
        trainer = Trainer(run_of(arm), settings, data)
        for _ in range(4):
            trainer.train_step()
        trained[name] = weights(trainer)
    assert_equal(trained["bare"], trained["off"])
    assert any(not torch.equal(value, trained["on"][name]) for name, value in trained["bare"].items())


@pytest.mark.parametrize("arm", ["bare", "distilled", "completion", "unroll", "all"])
def test_a_run_that_was_stopped_ends_as_if_it_had_not_been(data, arm, tmp_path):
    whole = Trainer(run_of(arm), SETTINGS, data)
    expected = whole.train(tmp_path, lambda step: True)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    with pytest.raises(KeyboardInterrupt):
        Trainer(run_of(arm), SETTINGS, data).train(stopped, lambda step: step < 3)
    torch.manual_seed(99)
    resumed = Trainer(run_of(arm), SETTINGS, data)
    result = resumed.train(stopped, lambda step: True)
    assert_equal(weights(whole), weights(resumed))
    assert result["scores"] == expected["scores"]
    assert result["val_scores"] == expected["val_scores"]
    assert [point["step"] for point in result["curve"]] == [2, 4, 6]


def test_a_run_that_ended_between_two_points_is_still_scored_at_its_end(data, tmp_path):
    settings = dataclasses.replace(SETTINGS, evaluations=4)
    result = Trainer(run_of("bare", steps=5), settings, data).train(tmp_path, lambda step: True)
    assert result["curve"][-1]["step"] == 5


def test_channel_weights_are_kept_at_every_point_of_the_curve_and_over_a_stop(data, tmp_path, monkeypatch):
    given = {"rho/encoder.0": torch.tensor([1 / 3, 2 / 3])}
    monkeypatch.setattr("inpaint_distill.distiller.Distiller.channel_weights", given)
    with pytest.raises(KeyboardInterrupt):
        Trainer(run_of("distilled"), SETTINGS, data).train(tmp_path, lambda step: step < 3)
    result = Trainer(run_of("distilled"), SETTINGS, data).train(tmp_path, lambda step: True)
    expected = {"rho/encoder.0": [0.333333, 0.666667]}
    assert result["channel_weights"] == [{"step": step, "weights": expected} for step in (2, 4, 6)]
    assert Trainer(run_of("bare"), SETTINGS, data).train(tmp_path, lambda step: True)["channel_weights"] == []


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 25])
def test_a_run_may_be_as_short_as_one_step(data, steps, tmp_path):
    settings = dataclasses.replace(SETTINGS, evaluations=1)
    result = Trainer(run_of("bare", steps=steps), settings, data).train(tmp_path, lambda step: True)
    assert [point["step"] for point in result["curve"]] == [steps]


def test_a_trial_never_looks_at_the_test_images(data, tmp_path):
    blind = dataclasses.replace(data, test=EvalSet(data.test.images[:0], data.test.holes[:0]))
    result = Trainer(run_of("bare", trial=True), SETTINGS, blind).train(tmp_path, lambda step: True)
    assert result["scores"] == {}
    assert result["curve"][-1]["hole_psnr"] > 0


def test_the_frozen_teacher_is_trained_on_the_training_images(data):
    settings = dataclasses.replace(SETTINGS, distillation=Config(teacher="frozen", teacher_steps=4, warmup=0))
    trainer = Trainer(run_of("distilled"), settings, data)
    trainer.train_step()
    assert trainer.distiller is not None
    assert "frozen" in trainer.distiller.plan.teacher
    assert trainer.distiller.log["cross"] > 0


def test_evaluation_leaves_training_mode_and_statistics_alone(data):
    trainer = Trainer(run_of("bare"), SETTINGS, data)
    before = weights(trainer)
    restored = restore(trainer.host, trainer.adapter, data.val, batch=3)
    assert restored.shape == data.val.images.shape
    assert trainer.host.training
    assert_equal(before, weights(trainer))
    one_by_one = torch.cat(
        [
            restore(trainer.host, trainer.adapter, EvalSet(i[None], h[None]))
            for i, h in zip(data.val.images, data.val.holes, strict=True)
        ]
    )
    torch.testing.assert_close(restored, one_by_one, rtol=1e-4, atol=1e-5)
    assert evaluate(data.val.images, data.val)["hole_psnr"]["all"] == 100.0


def test_the_hosts_loss_counts_hole_and_known_pixels_alike():
    image = torch.zeros(1, 3, 4, 4)
    hole = torch.zeros(1, 1, 4, 4)
    hole[..., 0, 0] = 1
    inside, outside = image + hole, image + (1 - hole)
    assert reconstruction_loss((inside,), image, hole).item() == pytest.approx(1.0)
    assert reconstruction_loss((outside,), image, hole).item() == pytest.approx(1.0)
    assert reconstruction_loss((inside, image), image, hole).item() == pytest.approx(0.5)


def test_filling_with_the_mean_colour_is_scored_as_by_hand(data):
    values = []
    for image, hole in zip(data.val.images.double(), data.val.holes.double(), strict=True):
        known = (1 - hole)[0].bool()
        fill = torch.stack([channel[known].mean() for channel in image])[:, None, None]
        squared = (image - fill).square()[:, ~known].mean() / 4  # on the scale [0, 1]
        values.append(-10 * torch.log10(squared))
    assert mean_fill(data.val) == pytest.approx(torch.stack(values).mean().item(), abs=1e-4)


def test_interpolation_fills_smooth_images_better_than_one_colour():
    ramp = torch.linspace(-1, 1, 16).expand(2, 3, 16, 16)
    hole = torch.zeros(2, 1, 16, 16)
    hole[..., 4:12, 4:12] = 1
    smooth = EvalSet(ramp, hole)
    assert interpolated(smooth) > mean_fill(smooth) + 10
    torch.manual_seed(0)
    noise = EvalSet(torch.rand(2, 3, 16, 16) * 2 - 1, hole)
    assert interpolated(noise) < mean_fill(noise)


@pytest.mark.parametrize("arm", ["bare", "distilled"])
def test_an_interpolated_host_sees_its_holes_filled_and_the_known_pixels_as_they_are(data, arm):
    trainer = Trainer(Run(arm=arm, seed=0, steps=6, lr=1e-3), replace(SETTINGS, interpolate=True), data)
    seen = []
    trainer.host.register_forward_pre_hook(lambda module, args: seen.append(args) if torch.is_grad_enabled() else None)
    trainer.train_step()
    image, known = seen[-1]
    hole = 1 - known[:, :1]
    assert (image * hole).any()
    torch.testing.assert_close(image, pull_push(image * (1 - hole), 1 - hole))


def test_training_masks_and_evaluation_masks_do_not_overlap(data):
    def flat(masks):
        return {tuple(mask.flatten().bool().tolist()) for mask in masks}

    assert flat(data.masks).isdisjoint(flat(data.val.holes) | flat(data.test.holes))
    assert data.masks.any()


@pytest.mark.parametrize("fade", [None, (0.25, 0.5)])
def test_a_step_is_timed_side_by_side_and_what_has_faded_by_itself(data, fade):
    threads = torch.get_num_threads()
    cost = step_cost(replace(SETTINGS, fade=fade), data, 1e-3, rounds=3)
    assert torch.get_num_threads() == threads
    assert set(cost["step_seconds"]) == {"bare", "distilled"}
    assert min(cost["step_seconds"].values()) > 0
    assert cost["ratio"]["bare"] == 1.0
    assert cost["rounds"] == 3
    active = cost["ratio_active"]["distilled"]
    if fade is None:
        assert not cost["ratio_faded"]
        assert cost["ratio"]["distilled"] == active
    else:
        assert cost["ratio"]["distilled"] == pytest.approx((active + cost["ratio_faded"]["distilled"]) / 2)


def test_what_never_fades_a_wider_host_and_one_alone_are_timed_once(data):
    variants = ("no_fade", "widened", "cross")
    settings = replace(SETTINGS, variants=variants, widened_options=SETTINGS.host_options, fade=(0.25, 0.5))
    cost = step_cost(settings, data, 1e-3, rounds=1)
    assert set(cost["ratio_active"]) == {"bare", *variants}
    assert set(cost["ratio_faded"]) == {"cross"}


@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")  # its few steps teach it little
def test_the_training_of_a_frozen_teacher_is_part_of_what_its_arm_costs(data):
    costs = []
    for steps in (20, 200):
        distillation = replace(SETTINGS.distillation, teacher="frozen", teacher_steps=steps)
        costs.append(step_cost(replace(SETTINGS, distillation=distillation, fade=None), data, 1e-3, rounds=3))
    few, many = (cost["seconds_beforehand"]["distilled"] for cost in costs)
    assert many > 3 * few > 0
    bare = costs[1]["step_seconds"]["bare"]
    assert costs[1]["ratio"]["distilled"] > costs[1]["ratio_active"]["distilled"] + many / (bare * SETTINGS.steps) / 3
    assert step_cost(SETTINGS, data, 1e-3, rounds=1)["seconds_beforehand"] == {}


def test_what_fades_in_half_the_time_costs_most_for_half_as_long(data):
    cost = step_cost(replace(SETTINGS, variants=("early_fade",), fade=(0.25, 0.5)), data, 1e-3, rounds=3)
    active, faded = (cost[key]["early_fade"] for key in ("ratio_active", "ratio_faded"))
    assert cost["ratio"]["early_fade"] == pytest.approx(0.25 * active + 0.75 * faded)
