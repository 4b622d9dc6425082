"""Run a host over the images that are scored, and score it and what needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from inpaint_distill.networks.fill import pull_push
from inpaint_distill.training.masks import ratio_bin
from inpaint_distill.training.metrics import score, summarise
from inpaint_distill.training.perceptual import fid, lpips, not_measured

if TYPE_CHECKING:
    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.training.data import EvalSet, StudyData
    from inpaint_distill.training.settings import BoostSettings

__all__ = ["evaluate", "interpolated", "mean_fill", "restore", "scored"]


@torch.no_grad()
def restore(host: nn.Module, adapter: Adapter, data: EvalSet, batch: int = 64) -> Tensor:
    """Return the host's images (N, 3, H, W) for a set, in eval mode; its training flags are given back."""
    modes = {module: module.training for module in host.modules()}
    device = next(host.parameters()).device
    host.eval()
    parts = [
        adapter.call(host, images.to(device), holes.to(device)).cpu()
        for images, holes in zip(torch.split(data.images, batch), torch.split(data.holes, batch), strict=True)
    ]
    for module, training in modes.items():
        module.training = training
    return torch.cat(parts)


def evaluate(restored: Tensor, data: EvalSet, networks: torch.device | None = None) -> dict[str, dict[str, float]]:
    """Score restored images by metric and bin of the hole ratio; FID, which is of a set, over all of them alone.

    Args:
        restored: (N, 3, H, W), as from :func:`restore`.
        data: The truth.
        networks: Where LPIPS and FID are computed, as far as their networks are at hand; ``None`` leaves them out.
    """
    found = summarise(score(restored, data.images, data.holes), ratio_bin(data.holes))
    if networks is not None:
        missing = not_measured(len(restored))
        if "lpips" not in missing:
            values = lpips(restored, data.images, data.holes, networks)
            found |= summarise({"lpips": values}, ratio_bin(data.holes))
        if "fid" not in missing:
            found["fid"] = {"all": fid(restored, data.images, data.holes, networks)}
    return found


def mean_fill(data: EvalSet) -> float:
    """Return the hole PSNR of filling each hole with the mean colour of its known pixels: what no host may miss."""
    known = 1 - data.holes
    colour = (data.images * known).sum((2, 3), keepdim=True) / known.sum((2, 3), keepdim=True).clamp_min(1)
    return float(score(colour.expand_as(data.images), data.images, data.holes)["hole_psnr"].mean())


def interpolated(data: EvalSet) -> float:
    """Return the hole PSNR of interpolating each hole from the pixels around it: what a trained host should exceed."""
    filled = pull_push(data.images, 1 - data.holes)
    return float(score(filled, data.images, data.holes)["hole_psnr"].mean())


def scored(settings: BoostSettings, data: StudyData) -> EvalSet:
    """Return the images that a study ends with: the test images, or the validation images where it keeps off those."""
    return data.test if settings.score_test else data.val
