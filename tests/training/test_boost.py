from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from inpaint_distill.cli import main
from inpaint_distill.config import from_dict, to_dict
from inpaint_distill.training.ablation import Contrast
from inpaint_distill.training.boost import planned
from inpaint_distill.training.lock import locked
from inpaint_distill.training.result import compare
from inpaint_distill.training.settings import BoostSettings
from inpaint_distill.training.statistics import paired_interval

TINY = {
    "host": "partial-conv",
    "host_options": {"width": 4, "levels": 2},
    "size": 16,
    "batch": 2,
    "steps": 4,
    "seeds": [0, 1],
    "lrs": [0.001],
    "evaluations": 2,
    "train_images": 12,
    "eval_images": 8,
    "jobs": 1,
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A whole study through the command line, on a folder of photographs with broken files among them."""
    folder = tmp_path_factory.mktemp("study")
    photos = folder / "photos"
    photos.mkdir()
    for index in range(30):
        Image.effect_noise((24, 20), 60 + index).convert("RGB").save(photos / f"{index:02}.png")
    (photos / "broken.png").write_bytes(b"no image")
    config = folder / "study.yaml"
    config.write_text(yaml.safe_dump({**TINY, "data": str(photos), "train_images": None}))
    assert main(["boost", "--config", str(config), "--out", str(folder / "out")]) == 0
    return folder / "out"


def test_a_study_writes_result_report_and_figures(study):
    assert {
        "result.json",
        "report.html",
        "table.md",
        "panels.png",
        "preview.png",
        "curves.png",
        "differences.png",
    } <= set(os.listdir(study))
    report = (study / "report.html").read_text()
    assert "http://" not in report
    assert "https://" not in report
    assert "broken.png" in report


def test_the_result_holds_every_run_and_pairs_them(study):
    result = json.loads((study / "result.json").read_text())
    assert [(run["arm"], run["seed"]) for run in result["runs"]] == [
        (arm, seed) for seed in (0, 1) for arm in ("bare", "distilled", "bare_equal_time")
    ]
    scores = {(run["arm"], run["seed"]): run["scores"]["hole_psnr"]["all"] for run in result["runs"]}
    row = next(
        row
        for row in result["comparisons"]
        if (row["split"], row["comparison"], row["metric"], row["bin"]) == ("test", "steps", "hole_psnr", "all")
    )
    assert row["differences"] == [scores["distilled", seed] - scores["bare", seed] for seed in (0, 1)]
    interval = paired_interval([scores["bare", s] for s in (0, 1)], [scores["distilled", s] for s in (0, 1)])
    assert (row["mean"], row["low"], row["high"]) == (interval.mean, interval.low, interval.high)
    assert result["versions"]["torch"]
    assert result["data"]["skipped"][0][0] == "broken.png"


def test_the_settings_in_the_result_repeat_the_study(study):
    result = json.loads((study / "result.json").read_text())
    settings = from_dict(BoostSettings, result["settings"])
    assert settings.seeds == (0, 1)
    assert settings.data is not None
    # The result file itself is a configuration: a finished study is found again, run for run.
    assert main(["boost", "--config", str(study / "result.json"), "--out", str(study), "--resume"]) == 0
    assert json.loads((study / "result.json").read_text())["runs"] == result["runs"]


def test_a_folder_with_another_study_is_not_written_to(study, capsys):
    config = str(study / "result.json")
    assert main(["boost", "--config", config, "--out", str(study)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert main(["boost", "--config", config, "--out", str(study), "--resume", "--steps", "5"]) == 2
    assert "steps = 4 (now 5)" in capsys.readouterr().err


def test_a_study_is_not_resumed_with_other_images_or_weights(tmp_path, capsys):
    photos, weights, config, out = (tmp_path / name for name in ("photos", "mine.pth", "study.yaml", "out"))
    photos.mkdir()
    for index in range(30):
        Image.effect_noise((24, 20), 60 + index).convert("RGB").save(photos / f"{index:02}.png")
    settings = from_dict(BoostSettings, {**TINY, "data": str(photos), "start": str(weights), "seeds": [0]})
    config.write_text(yaml.safe_dump(to_dict(settings)))

    def save(scale):
        host = settings.adapter().build(**settings.host_options)
        torch.save({name: value * scale for name, value in host.state_dict().items()}, weights)

    def resumed():
        code = main(["boost", "--config", str(config), "--out", str(out), "--resume"])
        return code, capsys.readouterr().err

    save(1)
    assert resumed()[0] == 0
    assert len(json.loads((out / "result.json").read_text())["data"]["sha256"]) == 64
    assert resumed()[0] == 0
    save(2)
    code, told = resumed()
    assert (code, "other weights to start from than before" in told) == (2, True)
    for file in photos.glob("1*.png"):
        file.unlink()
    code, told = resumed()
    assert (code, "other images or masks and other weights to start from than before" in told) == (2, True)


@pytest.mark.parametrize("kind", ["missing", "empty", "unreadable"])
def test_a_folder_without_images_is_an_error(kind, tmp_path, capsys):
    folder = tmp_path / "photos"
    if kind != "missing":
        folder.mkdir()
    if kind == "unreadable":
        (folder / "a.jpg").write_bytes(b"nothing")
    assert main(["boost", "--data", str(folder), "--out", str(tmp_path / "out")]) == 2
    assert "photos" in capsys.readouterr().err


def test_an_unknown_host_is_an_error_with_a_near_name(tmp_path, capsys):
    assert main(["boost", "--host", "gated-cnv", "--out", str(tmp_path / "out")]) == 2
    assert "gated-conv" in capsys.readouterr().err


def long_study(folder, output=subprocess.PIPE):
    """Begin a study that takes hours, in a session of its own; return its process."""
    config = folder / "long.yaml"
    config.write_text(yaml.safe_dump({**TINY, "steps": 50000, "evaluations": 5000, "equal_time": False}))
    words = ["boost", "--config", str(config), "--out", str(folder / "out")]
    return subprocess.Popen(
        [sys.executable, "-m", "inpaint_distill.cli", *words],
        stdout=output,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # A job in the background of a shell ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def workers(process):
    """Return the folders in /proc of a study's worker processes."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError):
            pid, _, state, _, _, session = entry.read_text().replace("(", " ").replace(")", " ").split()[:6]
            if int(session) == process.pid and int(pid) != process.pid and state != "Z":
                found.append(entry.parent)
    return [each for each in found if b"spawn_main" in (each / "cmdline").read_bytes()]


def wait_for(happened, seconds):
    """Wait until something has happened, and return whether it has."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not happened():
        time.sleep(0.02)
    return bool(happened())


def interrupted(process):
    """Press Ctrl-C in a study and return what it said."""
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "--resume" in output
    assert "Traceback" not in output
    return output


@pytest.mark.skipif(sys.platform == "win32", reason="needs process groups")
def test_ctrl_c_leaves_a_study_that_can_be_resumed_and_that_nobody_else_trains_until_then(tmp_path, capsys):
    process = long_study(tmp_path)
    out = tmp_path / "out"
    assert wait_for(lambda: process.poll() is not None or list(out.glob("runs/*.checkpoint")), 300)
    assert main(["boost", "--config", str(tmp_path / "long.yaml"), "--out", str(out), "--resume"]) == 2
    assert "another process that trains it now" in capsys.readouterr().err
    interrupted(process)
    assert list(out.glob("runs/*.checkpoint"))
    with locked(out):
        pass


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_ctrl_c_while_the_workers_start_is_as_quiet(tmp_path):
    process = long_study(tmp_path)
    assert wait_for(lambda: workers(process), 300)
    interrupted(process)
    assert not workers(process)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
def test_workers_of_a_study_that_is_killed_save_and_end(tmp_path):
    process = long_study(tmp_path, subprocess.DEVNULL)
    try:
        assert wait_for(lambda: list(tmp_path.glob("out/runs/*.checkpoint")), 300)
        assert workers(process)
    finally:
        process.kill()
        process.wait(timeout=30)
    with locked(tmp_path / "out"):  # nothing that a killed process leaves is in the way
        assert wait_for(lambda: not workers(process), 60)


@pytest.mark.parametrize(("ratio", "longer"), [(1.4, 140), (0.9, 100)])
def test_the_runs_come_pair_by_pair_and_the_longer_one_takes_the_same_time(ratio, longer):
    runs = planned(BoostSettings(steps=100, seeds=(4, 7)), lr=2e-3, ratio={"bare": 1.0, "distilled": ratio})
    assert [(run.arm, run.seed, run.steps) for run in runs[:3]] == [
        ("bare", 4, 100),
        ("distilled", 4, 100),
        ("bare_equal_time", 4, longer),
    ]
    assert {run.lr for run in runs} == {2e-3}


def test_a_study_of_fine_tuning_starts_every_arm_from_a_host_that_was_trained_alone(tmp_path):
    plain, tuned, config = tmp_path / "plain", tmp_path / "tuned", tmp_path / "study.yaml"
    values = {**TINY, "host": "gated-conv", "host_options": {"width": 4}, "size": 32}  # which has no buffers
    config.write_text(yaml.safe_dump({**values, "lrs": [1e-2]}))
    assert main(["boost", "--config", str(config), "--out", str(plain)]) == 0
    anew = {"pretrain_steps": 4, "pretrain_lr": 1e-2, "steps": 3, "lrs": [1e-12], "fade": None}
    config.write_text(yaml.safe_dump({**values, **anew, "variants": ["completion", "distilled"]}))
    assert main(["boost", "--config", str(config), "--out", str(tuned)]) == 0
    before, after = (json.loads((folder / "result.json").read_text()) for folder in (plain, tuned))
    scores = {(run["arm"], run["seed"]): run["scores"]["hole_psnr"]["all"] for run in after["runs"]}
    arms = ("bare", "completion", "distilled", "bare_equal_time")
    assert list(scores)[:2] == [("pretrained", 0), ("pretrained", 1)]
    for run in before["runs"]:
        if run["arm"] == "bare":  # the very host that a study which does not fine-tune trains
            assert scores["pretrained", run["seed"]] == run["scores"]["hole_psnr"]["all"]
    for seed in (0, 1):  # at a rate that changes nothing, all end where it was
        assert [scores[arm, seed] for arm in arms] == pytest.approx([scores["pretrained", seed]] * len(arms), abs=1e-4)
    assert {run["steps"] for run in after["runs"] if run["arm"] == "pretrained"} == {4}
    assert (tuned / "runs" / "pretrained-seed1000-steps4-lr0.01.json").exists(), "the rate is tuned from one of its own"
    assert "trained alone for 4 steps before" in (tuned / "report.html").read_text()


def test_a_seed_without_its_partner_is_left_out():
    def run(arm, seed, value):
        names = ("hole_psnr", "psnr", "ssim", "l1")
        return {"arm": arm, "seed": seed, "scores": {name: {"all": value} for name in names}}

    runs = [run("bare", 0, 1.0), run("distilled", 0, 2.0), run("distilled", 1, 9.0)]
    rows = compare(runs, Contrast("steps", "bare", "distilled"), "test")
    assert [(row["pairs"], row["mean"]) for row in rows] == [(1, 1.0)] * 4
