from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F

from inpaint_distill.training import perceptual
from inpaint_distill.training.ablation import Contrast
from inpaint_distill.training.data import load_data
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.masks import free_form
from inpaint_distill.training.metrics import composite
from inpaint_distill.training.perceptual import fid, lpips, not_measured
from inpaint_distill.training.result import compare
from inpaint_distill.training.scoring import evaluate, restore
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.tables import markdown_overview, measured, overview

STUDY = BoostSettings(
    host="partial-conv",
    host_options={"width": 4, "levels": 2},
    size=16,
    batch=2,
    steps=2,
    evaluations=2,
    train_images=8,
    eval_images=6,
)


def batch(count, size):
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(count, 3, size, size, generator=generator) * 2 - 1
    restored = (image + 0.5 * torch.randn(image.shape, generator=generator)) * 1.2
    return restored, image, free_form(count, size, seed=0).float()


def reference_lpips(first, second, features):
    """LPIPS from its paper in float64: unit channel vectors of five layers, squared difference, weights, mean."""
    file = Path(torchmetrics.__file__).parent / "functional/image/lpips_models/alex.pth"
    weights = torch.load(file, map_location="cpu", weights_only=True)
    shift = torch.tensor([-0.030, -0.088, -0.188], dtype=torch.float64)[:, None, None]
    scale = torch.tensor([0.458, 0.448, 0.450], dtype=torch.float64)[:, None, None]
    both = [(image.double() - shift) / scale for image in (first, second)]
    total = torch.zeros(len(first), dtype=torch.float64)
    for level, (index, stride, padding) in enumerate(((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))):
        if level in (1, 2):
            both = [F.max_pool2d(each, 3, 2) for each in both]
        weight, bias = (features[f"features.{index}.{name}"].double() for name in ("weight", "bias"))
        both = [F.relu(F.conv2d(each, weight, bias, stride, padding)) for each in both]
        difference = (F.normalize(both[0]) - F.normalize(both[1])).square()
        total += (difference * weights[f"lin{level}.model.1.weight"].double()).sum(1).mean((1, 2))
    return total


@pytest.mark.parametrize("size", [32, 64, 80])
def test_lpips_is_that_of_its_paper_for_each_image(alexnet, size):
    restored, image, hole = batch(3, size)
    shown = composite(restored, image, hole)
    if size < 64:
        shown, image_64 = (F.interpolate(each, (64, 64), mode="bilinear") for each in (shown, image))
    found = lpips(restored, image, hole)
    expected = reference_lpips(shown, image_64 if size < 64 else image, alexnet)
    assert found.shape == (3,)
    assert found.min() > 0
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-7)


def test_lpips_of_many_images_is_that_of_each_and_of_the_truth_zero(alexnet, monkeypatch):
    monkeypatch.setattr(perceptual, "_BATCH", 2)
    restored, image, hole = batch(5, 24)
    one_by_one = torch.cat([lpips(*(each[i : i + 1] for each in (restored, image, hole))) for i in range(5)])
    torch.testing.assert_close(lpips(restored, image, hole), one_by_one)
    assert lpips(image, image, hole).tolist() == [0] * 5


class Pooled(nn.Module):
    num_features = 12

    def forward(self, images):
        assert images.min() >= 0
        assert images.max() <= 1
        return F.adaptive_avg_pool2d(images, 2).flatten(1)


def test_fid_is_the_frechet_distance_of_the_two_sets():
    restored, image, hole = batch(40, 16)
    shown = composite(restored, image, hole)
    first, second = (Pooled()((each.double() + 1) / 2).numpy() for each in (image, shown))
    root = scipy.linalg.sqrtm(np.cov(first.T) @ np.cov(second.T)).real
    expected = np.square(first.mean(0) - second.mean(0)).sum() + np.trace(np.cov(first.T) + np.cov(second.T) - 2 * root)
    assert fid(restored, image, hole, feature=Pooled()) == pytest.approx(expected, rel=1e-4)
    assert fid(image, image, hole, feature=Pooled()) == pytest.approx(0, abs=1e-7)


def test_a_metric_without_its_weights_or_package_is_told_and_nothing_is_downloaded(alexnet, monkeypatch):
    monkeypatch.setattr(perceptual, "find_spec", lambda package: object())
    assert list(not_measured(2)) == ["fid"]
    assert "weights-inception-2015-12-05" in not_measured(2)["fid"]
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    (folder / "weights-inception-2015-12-05-6726825d.pth").touch()
    assert not_measured(2) == {}
    assert "two images" in not_measured(1)["fid"]
    monkeypatch.setattr(perceptual, "find_spec", lambda package: None if package == "torch_fidelity" else object())
    assert not_measured(2) == {"fid": "the package torch_fidelity is not installed"}
    monkeypatch.setenv("TORCH_HOME", str(folder))
    assert "alexnet-owt" in not_measured(2)["lpips"]
    data = load_data(STUDY)
    assert set(evaluate(data.val.images, data.val, torch.device("cpu"))) == {"hole_psnr", "psnr", "ssim", "l1"}


@pytest.mark.parametrize("score_test", [True, False])
def test_networks_score_only_what_a_study_ends_with(alexnet, score_test, tmp_path):
    settings = dataclasses.replace(STUDY, score_test=score_test)
    data = load_data(settings)
    trainer = Trainer(Run(arm="bare", seed=0, steps=2, lr=1e-3), settings, data)
    result = json.loads(json.dumps(trainer.train(tmp_path, lambda step: True)))
    scores, last = (result["scores"], data.test) if score_test else (result["val_scores"], data.val)
    expected = lpips(restore(trainer.host, trainer.adapter, last), last.images, last.holes)
    assert scores["lpips"]["all"] == pytest.approx(expected.double().mean().item())
    assert scores["lpips"].keys() == scores["psnr"].keys()
    assert ("lpips" in result["val_scores"]) is not score_test
    assert all("lpips" not in point for point in result["curve"])
    assert list(result["not_measured"]) == ["fid"]
    trial = Trainer(Run(arm="bare", seed=0, steps=2, lr=1e-3, trial=True), settings, data)
    result = trial.train(tmp_path, lambda step: True)
    assert "lpips" not in result["val_scores"]
    assert result["not_measured"] == {}


def test_set_distances_are_in_the_scores_where_their_network_is_there(monkeypatch):
    data = load_data(STUDY)
    monkeypatch.setattr("inpaint_distill.training.scoring.not_measured", lambda images: {"lpips": "no weights"})
    monkeypatch.setattr("inpaint_distill.training.scoring.fid", lambda *given: fid(*given, feature=Pooled()))
    scores = evaluate(data.val.images * 0.5, data.val, torch.device("cpu"))
    expected = fid(data.val.images * 0.5, data.val.images, data.val.holes, feature=Pooled())
    assert scores["fid"] == {"all": expected}
    assert "lpips" not in scores


def test_a_lower_lpips_and_fid_is_a_gain_and_a_run_without_them_is_left_out():
    def run(arm, seed, value, networks=True):
        names = ("hole_psnr", "psnr", "ssim", "l1", *(("lpips", "fid") if networks else ()))
        scores = {name: {"all": value + seed / 8} for name in names}
        return {"arm": arm, "seed": seed, "scores": scores, "val_scores": {}}

    contrast = Contrast("steps", "bare", "distilled")
    runs = [run("bare", seed, 2.0) for seed in range(3)] + [run("distilled", seed, 1.0 + seed / 9) for seed in range(3)]
    cost = {"ratio": {"bare": 1.0, "distilled": 1.5}}
    result = {"comparisons": compare(runs, contrast, "test"), "runs": runs, "cost": cost}
    outcomes = {metric: overview(result, "test", (metric,))[1][2].outcome for metric in measured(result, "test")}
    assert outcomes == {
        **{"hole_psnr": "loss", "psnr": "loss", "ssim": "loss"},
        **{"l1": "gain", "lpips": "gain", "fid": "gain"},
    }
    head, _, host, row = markdown_overview(result).strip().splitlines()[2:]
    assert "| LPIPS ↓ | FID ↓ |" in head
    assert {line.count("|") for line in (head, host, row)} == {head.count("|")}
    later = [run("bare", 3, 2.0, networks=False), run("distilled", 3, 1.0), *runs]
    pairs = {row["metric"]: row["pairs"] for row in compare(later, contrast, "test")}
    assert pairs == {"hole_psnr": 4, "psnr": 4, "ssim": 4, "l1": 4, "lpips": 3, "fid": 3}
    without = [run("bare", 0, 2.0, networks=False), run("distilled", 0, 1.0, networks=False)]
    result = {"comparisons": compare(without, contrast, "test"), "runs": without, "cost": cost}
    assert "LPIPS" not in markdown_overview(result)
