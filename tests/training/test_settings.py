from __future__ import annotations

import json

import pytest
import yaml

from inpaint_distill.config import from_dict, load_yaml, to_dict
from inpaint_distill.errors import ConfigError
from inpaint_distill.training.settings import BoostSettings, Run

CHANGED = BoostSettings(
    host="unet",
    host_options={"width": 8},
    data="photos",
    seeds=(3, 5),
    lrs=(1e-3,),
    fade=None,
    tune_steps=7,
    jobs=1,
    score_test=False,
    variants=("cross", "all", "no_norm", "widened"),
    widened_options={"width": 12},
)


@pytest.mark.parametrize("settings", [BoostSettings(), CHANGED])
@pytest.mark.parametrize("form", ["yaml", "json"])
def test_settings_come_back_from_a_file_as_they_went_in(settings, form, tmp_path):
    file = tmp_path / f"settings.{form}"
    plain = to_dict(settings)
    file.write_text(yaml.safe_dump(plain) if form == "yaml" else json.dumps(plain))
    assert from_dict(BoostSettings, load_yaml(file)) == settings


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"steps": 0}, "steps"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [1, 1]}, "seeds"),
        ({"lrs": [0.0]}, "lrs"),
        ({"fade": [0.9, 0.1]}, "fade"),
        ({"step": 3}, "step"),
        ({"pretrain_steps": 3}, "pretrain_lr"),
        ({"pretrain_lr": 1e-3}, "pretrain_steps"),
        ({"pretrain_steps": 0, "pretrain_lr": 1e-3}, "pretrain_steps"),
        ({"pretrain_steps": 3, "pretrain_lr": 0.0}, "pretrain_lr"),
        ({"start": "a.pt", "pretrain_steps": 3, "pretrain_lr": 0.1}, "leave one of them out"),
        ({"start": "a.pt", "variants": ["widened"], "widened_options": {"width": 8}}, "start, the weights of another"),
        (
            {"pretrain_steps": 3, "pretrain_lr": 0.1, "variants": ["widened"], "widened_options": {"width": 8}},
            "widened",
        ),
        ({"size": "64"}, "size"),
        ({"device": "tpu"}, "device"),
        ({"distillation": {"cross": {"weigth": 1.0}}}, "weigth"),
    ],
)
def test_a_wrong_setting_is_named(values, name):
    with pytest.raises(ConfigError, match=name):
        from_dict(BoostSettings, values)


def test_the_fade_is_laid_over_the_steps_of_the_run():
    settings = BoostSettings(fade=(0.5, 1.0))
    assert settings.distillation_for("distilled", 200).decay == (100, 200)
    assert settings.distillation_for("cross", 1).decay == (0, 1)
    assert BoostSettings(fade=None).distillation_for("distilled", 200).decay is None


def test_the_bare_host_has_no_distillation():
    assert BoostSettings().distillation_for("bare", 200) is None
    assert BoostSettings().distillation_for("bare_equal_time", 200) is None


def test_the_learning_rate_is_not_chosen_on_a_seed_of_the_study():
    settings = BoostSettings(seeds=(0, 1, 1000, 2000))
    assert {run.seed for run in settings.trials()}.isdisjoint(settings.seeds)


def test_runs_that_differ_have_files_that_differ():
    runs = [
        Run(arm=arm, seed=s, steps=n, lr=lr)
        for arm in ("bare", "distilled")
        for s in (0, 1)
        for n in (9, 10)
        for lr in (1e-3, 2e-3)
    ]
    assert len({run.name for run in runs}) == len(runs)
