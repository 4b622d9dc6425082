from __future__ import annotations

import pytest
import torch
from torch import nn

from inpaint_distill.config import Config, LookaheadConfig
from inpaint_distill.training.data import load_data
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.stepper import Stepper

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="steps are recorded on CUDA")
STEPS = 60


def settings(**changes):
    return BoostSettings(
        **{
            "host": "partial-conv",
            "host_options": {"width": 4, "levels": 2},
            "size": 16,
            "batch": 3,
            "steps": STEPS,
            "evaluations": 2,
            "train_images": 20,
            "eval_images": 8,
            "fade": (0.2, 0.4),
            "distillation": Config(completion=True, warmup=0, lookahead=LookaheadConfig(every=8)),
            **changes,
        }
    )


def test_on_the_cpu_every_step_is_run():
    seen = []
    stepper = Stepper(lambda image, hole: seen.append((image, hole)) or image.sum(), torch.device("cpu"))
    image, hole = torch.ones(1, 3, 2, 2), torch.zeros(1, 1, 2, 2)
    for _ in range(3):
        assert stepper(image, hole, replay=True) == 12
    stepper.wait()
    assert len(seen) == 3


@on_cuda
@pytest.mark.parametrize("arm", ["bare", "distilled"])
@pytest.mark.parametrize("host", ["partial-conv", "mat"])
def test_steps_that_may_be_recorded_train_like_those_that_are_launched(arm, host):
    options = {"width": 4, "levels": 2} if host == "partial-conv" else {"width": 8, "heads": 2}
    study = settings(host=host, host_options=options, size=16 if host == "partial-conv" else 32, device="cuda")
    data = load_data(study)
    losses = []
    for record in (False, True):
        trainer = Trainer(Run(arm=arm, seed=3, steps=STEPS, lr=1e-3), study, data)
        torch.manual_seed(5)
        own = []
        for _ in range(STEPS):
            loss = trainer.train_step(record=record)
            trainer.stepper.wait()
            own.append(float(loss))
        losses.append(own)
        assert (trainer.stepper._graph is not None) == (record and arm == "bare")
        lr = trainer.optimizer.param_groups[0]["lr"]
        assert float(lr) == pytest.approx(float(trainer.scheduler.get_last_lr()[0]))
    torch.testing.assert_close(*losses, rtol=0.02, atol=0.02)
    assert losses[0][-5:] != losses[0][:5]


@on_cuda
def test_a_step_that_reads_a_value_back_is_launched_and_said_to_be():
    layer = nn.Linear(4, 4, device="cuda")

    def update(image, hole):
        layer.zero_grad()
        loss = layer(image).square().mean()
        if loss.item() > 0:
            loss.backward()
        return loss.detach()

    stepper = Stepper(update, torch.device("cuda"))
    image, hole = torch.randn(2, 4), torch.zeros(2, 4)
    first = stepper(image, hole)
    with pytest.warns(UserWarning, match="a step cannot be recorded"):
        second = stepper(image, hole, replay=True)
    third = stepper(image, hole, replay=True)
    stepper.wait()
    assert first == second == third
    assert layer.weight.grad is not None


@on_cuda
@pytest.mark.parametrize("arm", ["bare", "distilled"])
def test_a_training_on_cuda_resumes_where_it_was(arm, tmp_path):
    study = settings(device="cuda")
    data = load_data(study)
    run = Run(arm=arm, seed=3, steps=STEPS, lr=1e-3)
    for stop in (10, 40):
        with pytest.raises(KeyboardInterrupt):
            Trainer(run, study, data).train(tmp_path, lambda step, stop=stop: step != stop)
    trainer = Trainer(run, study, data)
    result = trainer.train(tmp_path, lambda step: step > 40)
    assert trainer.step == STEPS == result["steps"]
