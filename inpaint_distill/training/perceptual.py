"""How a restored image looks to a trained network: LPIPS and FID, where its weights lie; nothing is downloaded."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

from inpaint_distill.training.metrics import composite

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["NETWORK_METRICS", "fid", "lpips", "not_measured"]

NETWORK_METRICS = ("lpips", "fid")

# By metric: the packages that it needs and the file in torch hub's folder from which they take its weights.
_NEEDS = {
    "lpips": ("torchvision", "alexnet-owt-7be5be79.pth"),
    "fid": ("torch_fidelity", "weights-inception-2015-12-05-6726825d.pth"),
}
_LPIPS_SIDE = 64  # pixels: AlexNet leaves 3 x 3 positions of it in its deepest layers, of 32 pixels a single one
_BATCH = 32


def not_measured(images: int) -> dict[str, str]:
    """Return why LPIPS, FID or both cannot be measured here.

    Args:
        images: Number of images that there are to score.

    Returns:
        The reason by metric; a metric that can be measured is left out.
    """
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    found = {}
    for metric, (package, file) in _NEEDS.items():
        if find_spec(package) is None:
            found[metric] = f"the package {package} is not installed"
        elif not (folder / file).is_file():
            found[metric] = f"{file} is not in torch hub's folder of checkpoints, and nothing is downloaded"
    if images < 2:
        found.setdefault("fid", "it takes two images or more")
    return found


@torch.no_grad()
def lpips(restored: Tensor, image: Tensor, hole: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Return the LPIPS of each composited image (Zhang et al., CVPR 2018; AlexNet, version 0.1): 0 is equal.

    Images whose shorter side is below 64 pixels are enlarged to it bilinearly: of fewer, AlexNet's deepest layers keep
    hardly a position. Such values compare arms with each other, not with those of other work.

    Args:
        restored: (B, 3, H, W), what the host returned, composited or not.
        image: Complete image (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = hole.
        device: Where the network runs.

    Returns:
        Distances (B,), on the CPU.
    """
    network = LearnedPerceptualImagePatchSimilarity(net_type="alex").net.to(device)
    values = [
        network(_enlarged(shown.to(device)), _enlarged(truth.to(device))).reshape(-1).cpu()
        for shown, truth in _batches(restored, image, hole)
    ]
    return torch.cat(values)


@torch.no_grad()
def fid(
    restored: Tensor,
    image: Tensor,
    hole: Tensor,
    device: torch.device | str = "cpu",
    feature: int | nn.Module = 2048,
) -> float:
    """Return the Frechet distance of the composited images from the true ones (FID; Heusel et al., NeurIPS 2017).

    It grows as images become fewer, far beyond any difference between hosts: compare it only between sets of the same
    images and holes.

    Args:
        restored: (B, 3, H, W), what the host returned, composited or not; at least two.
        image: Complete image (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 = hole.
        device: Where the network runs.
        feature: Layer of Inception v3, by its number of channels, or a network of your own on images in [0, 1].
    """
    metric = FrechetInceptionDistance(feature=feature, normalize=True).to(device)
    for shown, truth in _batches(restored, image, hole):
        metric.update((truth.to(device) + 1) / 2, real=True)
        metric.update((shown.to(device) + 1) / 2, real=False)
    return float(metric.compute())


def _batches(restored: Tensor, image: Tensor, hole: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield composited and true images, some at a time, in float32."""
    shown = composite(restored, image, hole)
    for pair in zip(torch.split(shown, _BATCH), torch.split(image, _BATCH), strict=True):
        yield pair[0].float(), pair[1].float()


def _enlarged(images: Tensor) -> Tensor:
    height, width = images.shape[2:]
    scale = _LPIPS_SIDE / min(height, width)
    if scale <= 1:
        return images
    return F.interpolate(images, (round(height * scale), round(width * scale)), mode="bilinear", align_corners=False)
