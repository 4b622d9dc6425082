"""How good a restored image is, one number per image, so that runs can be paired and binned by hole ratio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from inpaint_distill.errors import InputError
from inpaint_distill.training.masks import BIN_NAMES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["METRICS", "PSNR_CAP", "composite", "score", "summarise"]

METRICS = ("hole_psnr", "psnr", "ssim", "l1")
PSNR_CAP = 100.0


def composite(restored: Tensor, image: Tensor, hole: Tensor) -> Tensor:
    """Return ``restored``, clamped to [-1, 1], inside the hole and ``image`` outside it.

    Args:
        restored: (B, 3, H, W), what the host returned.
        image: Complete image (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = hole.
    """
    return torch.where(hole > 0.5, restored.clamp(-1.0, 1.0), image)


def score(restored: Tensor, image: Tensor, hole: Tensor) -> dict[str, Tensor]:
    """Compare restored images with the truth; the known pixels are copied from the truth first.

    Args:
        restored: (B, 3, H, W), what the host returned, composited or not.
        image: Complete image (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = hole.

    Returns:
        One float tensor (B,) per name in ``METRICS``, on the intensity scale [0, 1]:

        - ``hole_psnr``: PSNR in dB, the mean squared error taken over the hole pixels only, at most ``PSNR_CAP``.
        - ``psnr``: PSNR in dB over the whole composited image, at most ``PSNR_CAP``.
        - ``ssim``: structural similarity over the whole composited image (Gaussian window 11, sigma 1.5).
        - ``l1``: mean absolute error over the whole composited image, as a fraction, not a percentage.

    Raises:
        InputError: If the shapes do not belong together or a hole is empty.
    """
    if restored.shape != image.shape or hole.shape != (len(image), 1, *image.shape[2:]):
        raise InputError(
            "scores of restored, image and hole",
            f"shapes {tuple(restored.shape)}, {tuple(image.shape)} and {tuple(hole.shape)}",
            "give (B, 3, H, W) twice and (B, 1, H, W)",
        )
    ratio = (hole > 0.5).to(torch.float32).mean(dim=(1, 2, 3))
    if bool((ratio == 0).any()):
        raise InputError("scores inside the hole", "an empty hole", "leave out masks without a hole")
    truth = (image.to(torch.float32) + 1) / 2
    shown = (composite(restored, image, hole).to(torch.float32) + 1) / 2
    psnr = peak_signal_noise_ratio(shown, truth, data_range=1.0, reduction="none", dim=(1, 2, 3))
    # All the error lies in the hole, so its mean there is the mean over the image divided by the hole ratio.
    hole_psnr = psnr + 10 * torch.log10(ratio)
    ssim = structural_similarity_index_measure(shown, truth, data_range=1.0, reduction="none")
    return {
        "hole_psnr": hole_psnr.clamp(max=PSNR_CAP),
        "psnr": psnr.clamp(max=PSNR_CAP),
        "ssim": torch.as_tensor(ssim).reshape(-1),
        "l1": (shown - truth).abs().mean(dim=(1, 2, 3)),
    }


def summarise(scores: dict[str, Tensor], bins: Tensor) -> dict[str, dict[str, float]]:
    """Average each metric over all images and over those of each bin of hole ratios.

    Args:
        scores: One tensor (N,) per metric, as from :func:`score`.
        bins: Bin of each image (N,), as from :func:`inpaint_distill.training.masks.ratio_bin`.

    Returns:
        ``{metric: {"all": mean, "10-20": mean, ...}}``; a bin without images is left out.
    """
    summary: dict[str, dict[str, float]] = {}
    for metric, values in scores.items():
        values = values.to(torch.float64)
        summary[metric] = {"all": float(values.mean())}
        for index, name in enumerate(BIN_NAMES):
            chosen = values[bins == index]
            if len(chosen):
                summary[metric][name] = float(chosen.mean())
    return summary
