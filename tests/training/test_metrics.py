import math

import pytest
import torch
from torchmetrics.image import PeakSignalNoiseRatio, StructuralSimilarityIndexMeasure

from inpaint_distill.errors import InputError
from inpaint_distill.training.masks import free_form, ratio_bin
from inpaint_distill.training.metrics import METRICS, PSNR_CAP, composite, score, summarise


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(5, 3, 24, 24, generator=generator) * 2 - 1
    restored = (image + 0.5 * torch.randn(image.shape, generator=generator)) * 1.2
    return restored, image, free_form(5, 24, seed=0).float()


def test_hole_psnr_and_l1_agree_with_a_naive_reference(batch):
    scores = score(*batch)
    for index, (restored, image, hole) in enumerate(zip(*batch, strict=True)):
        errors = [
            (max(-1.0, min(1.0, restored[c, y, x].item())) - image[c, y, x].item()) / 2
            for c in range(3)
            for y in range(24)
            for x in range(24)
            if hole[0, y, x] == 1
        ]
        mse = sum(error**2 for error in errors) / len(errors)
        assert scores["hole_psnr"][index].item() == pytest.approx(-10 * math.log10(mse), abs=1e-4)
        assert scores["l1"][index].item() == pytest.approx(sum(map(abs, errors)) / (3 * 24 * 24), rel=1e-5)


def test_psnr_and_ssim_are_those_of_torchmetrics_on_the_composite(batch):
    scores = score(*batch)
    shown = composite(*batch)
    for index in range(5):
        one = (shown[index : index + 1] + 1) / 2, (batch[1][index : index + 1] + 1) / 2
        torch.testing.assert_close(scores["psnr"][index], PeakSignalNoiseRatio(data_range=1.0)(*one))
        torch.testing.assert_close(scores["ssim"][index], StructuralSimilarityIndexMeasure(data_range=1.0)(*one))


def test_known_pixels_do_not_count(batch):
    restored, image, hole = batch
    other = torch.where(hole > 0.5, restored, torch.full_like(image, 99.0))
    for name, values in score(other, image, hole).items():
        assert torch.equal(values, score(*batch)[name])


def test_a_constant_error_has_the_psnr_of_the_book():
    image = torch.zeros(1, 3, 16, 16)
    hole = torch.zeros(1, 1, 16, 16)
    hole[..., :4] = 1
    scores = score(image + 0.2, image, hole)
    assert scores["hole_psnr"].item() == pytest.approx(20, abs=1e-4)
    assert scores["psnr"].item() == pytest.approx(20 + 10 * math.log10(4), abs=1e-4)
    assert scores["l1"].item() == pytest.approx(0.1 / 4)


def test_a_perfect_image_reaches_the_caps(batch):
    _, image, hole = batch
    scores = score(image, image, hole)
    assert scores["hole_psnr"].tolist() == scores["psnr"].tolist() == [PSNR_CAP] * 5
    torch.testing.assert_close(scores["ssim"], torch.ones(5))
    assert scores["l1"].tolist() == [0] * 5


def test_one_image_is_a_batch_too(batch):
    scores = score(*(tensor[:1] for tensor in batch))
    assert tuple(scores) == METRICS
    assert all(values.shape == (1,) for values in scores.values())


def test_ill_fitting_arguments_are_errors(batch):
    restored, image, hole = batch
    with pytest.raises(InputError, match="shapes"):
        score(restored[:2], image, hole)
    with pytest.raises(InputError, match="shapes"):
        score(restored, image, hole.expand(-1, 3, -1, -1))
    with pytest.raises(InputError, match="empty hole"):
        score(restored, image, torch.zeros_like(hole))


def test_summary_averages_all_and_each_bin(batch):
    bins = ratio_bin(batch[2])
    values = torch.arange(5.0)
    assert summarise({"psnr": values}, bins) == {
        "psnr": {"all": 2.0, "10-20": 2.0, "20-30": 1.0, "30-40": 2.0, "40-50": 3.0}
    }
    assert bins.tolist() == [0, 1, 2, 3, 0]


def test_summary_leaves_out_empty_bins():
    summary = summarise({"l1": torch.tensor([1.0, 2.0, 6.0])}, torch.tensor([3, 3, -1]))
    assert summary == {"l1": {"all": 3.0, "40-50": 1.5}}
