"""A finished run is not trained again, whatever its arm; one that has lost a file is."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from inpaint_distill.adapters import get
from inpaint_distill.completed import load_host
from inpaint_distill.config import AttentionConfig, Config, TermConfig
from inpaint_distill.state import read_state
from inpaint_distill.training import pool as pool_module
from inpaint_distill.training.ablation import CHANGES, VARIANTS
from inpaint_distill.training.data import load_data
from inpaint_distill.training.kept import DISTILLER, HOST, IMAGES, RESULT, is_finished, kept_file
from inpaint_distill.training.settings import BoostSettings, Run

OPTIONS = {"width": 4, "levels": 3}
SETTINGS = BoostSettings(
    host_options=OPTIONS,
    widened_options=OPTIONS,
    size=16,
    batch=2,
    steps=2,
    evaluations=1,
    train_images=4,
    eval_images=4,
    distillation=Config(teacher_steps=1),
)
ZERO = TermConfig(weight=0.0)
WEIGHTLESS = Config(cross=ZERO, self_=ZERO, attention=AttentionConfig(weight=0.0))
ARMS = ["bare", "bare_equal_time", "widened", "distilled", *VARIANTS, *CHANGES]
ARMS.remove("attention")  # of which this host has none


@pytest.fixture(scope="module")
def data():
    return load_data(SETTINGS)


@pytest.fixture
def finish(data, tmp_path, monkeypatch):
    """Train a run as a worker does, and return its endings."""

    def train(run, settings):
        worker = {"messages": SimpleNamespace(put=lambda _: None), "stop": SimpleNamespace(is_set=lambda: False)}
        monkeypatch.setattr(pool_module, "_worker", {"settings": settings, "data": data, "folder": tmp_path, **worker})
        assert not is_finished(tmp_path, run, settings)
        pool_module._train(run)
        assert is_finished(tmp_path, run, settings)
        return {file.name.removeprefix(f"{run.name}.") for file in tmp_path.iterdir()}

    return train


@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")  # of one that was trained for a step
@pytest.mark.parametrize("arm", ARMS)
def test_a_run_leaves_what_makes_it_finished_and_without_any_of_it_is_not(finish, tmp_path, arm):
    run = Run(arm=arm, seed=0, steps=2, lr=1e-3)
    alone = arm in ("bare", "bare_equal_time", "widened")
    assert finish(run, SETTINGS) == {RESULT, IMAGES, HOST} | (set() if alone else {DISTILLER})
    for file in list(tmp_path.iterdir()):
        content = file.read_bytes()
        file.unlink()
        assert not is_finished(tmp_path, run, SETTINGS)
        file.write_bytes(content)


@pytest.mark.parametrize("completion", [False, True])
def test_a_distiller_of_no_weight_is_waited_for_only_where_it_has_blocks(finish, completion):
    settings = replace(SETTINGS, distillation=replace(WEIGHTLESS, completion=completion))
    written = finish(Run(arm="distilled", seed=0, steps=2, lr=1e-3), settings)
    assert (DISTILLER in written) == completion


def test_a_trial_leaves_its_result_alone(finish):
    assert finish(Run(arm="bare", seed=1000, steps=2, lr=1e-3, trial=True), SETTINGS) == {RESULT}


def test_a_host_of_a_study_is_loaded_as_any_saved_host(finish, tmp_path, data):
    run = Run(arm="distilled", seed=0, steps=2, lr=1e-3)
    settings = replace(SETTINGS, distillation=Config(completion=True))
    finish(run, settings)
    adapter = get(settings.host)
    host = load_host(adapter.build(**OPTIONS), kept_file(tmp_path, run, HOST)).eval()
    images = read_state(kept_file(tmp_path, run, IMAGES))[0]["restored"]
    with torch.no_grad():
        assert torch.equal(adapter.call(host, data.test.images, data.test.holes), images)
