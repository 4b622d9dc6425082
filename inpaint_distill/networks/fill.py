"""Fill the hole of a feature by interpolation, without parameters."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["pull_push"]

_SATURATION = 4  # one known pixel of four is as good as all of them
_TINY = 1e-6


def pull_push(feature: Tensor, known: Tensor) -> Tensor:
    """Interpolate the unknown pixels of a feature smoothly from the known ones around them.

    Pull: halve the feature until a single pixel is left, averaging what is known alone. Push: double it again, and take
    from below what is not known (the pull-push of Gortler et al., The Lumigraph, SIGGRAPH 1996). Each level but the
    finest is smoothed once where it was filled (ours): closer to the solution of Laplace's equation.

    Args:
        feature: (B, C, H, W). Where nothing is known, it is not read.
        known: (B, 1, H, W), the share of each pixel that is known, from 0 to 1.

    Returns:
        (B, C, H, W): the feature where all is known, a mixture where a part is, and 0 everywhere if nothing is.

    >>> row = torch.tensor([[[[1.0, 9.0, 9.0, 3.0]]]])
    >>> pull_push(row, torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]]))
    tensor([[[[1.0000, 1.5000, 2.5000, 3.0000]]]])
    """
    certainty = known.to(feature.dtype)
    part = torch.where(certainty > 0, feature * certainty, 0)  # of each level what is known, times how certain it is
    levels = []
    while max(part.shape[2:]) > 1:
        levels.append((part, 1 - certainty))
        weight = F.avg_pool2d(certainty, 2, ceil_mode=True)
        certainty = (_SATURATION * weight).clamp(max=1)
        part = F.avg_pool2d(part, 2, ceil_mode=True) * (certainty / weight.clamp_min(_TINY))
    filled = part / certainty.clamp_min(_TINY)
    for level, (part, doubt) in reversed(list(enumerate(levels))):
        filled = F.interpolate(filled, size=part.shape[2:], mode="bilinear", align_corners=False)
        filled = torch.addcmul(part, filled, doubt)
        if level:
            filled = torch.addcmul(part, _smooth(filled), doubt)
    return filled


def _smooth(feature: Tensor) -> Tensor:
    """Average 3x3 pixels, those beyond the border left out; on a CPU five times as fast as ``avg_pool2d``."""
    channels = feature.shape[1]
    box = feature.new_ones(channels, 1, 3, 3)
    count = F.conv2d(feature.new_ones(1, 1, *feature.shape[2:]), box[:1], padding=1)
    return F.conv2d(feature, box, padding=1, groups=channels) / count
