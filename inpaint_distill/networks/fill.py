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
    from below what is not known (the pull-push of Gortler et al., The Lumigraph, SIGGRAPH 1996). Each level is smoothed
    once where it was filled (ours), which brings it closer to the solution of Laplace's equation.

    Args:
        feature: (B, C, H, W). Where nothing is known, it is not read.
        known: (B, 1, H, W), the share of each pixel that is known, from 0 to 1.

    Returns:
        (B, C, H, W): the feature where all is known, a mixture where a part is, and 0 everywhere if nothing is.

    >>> row = torch.tensor([[[[1.0, 9.0, 9.0, 3.0]]]])
    >>> pull_push(row, torch.tensor([[[[1.0, 0.0, 0.0, 1.0]]]])).round(decimals=2)
    tensor([[[[1.0000, 1.6700, 2.3300, 3.0000]]]])
    """
    known = known.to(feature.dtype)
    levels = [(torch.where(known > 0, feature, 0), known)]
    while max(levels[-1][0].shape[2:]) > 1:
        values, certainty = levels[-1]
        pooled = F.avg_pool2d(torch.cat([values * certainty, certainty], dim=1), 2, ceil_mode=True)
        weight = pooled[:, -1:]
        levels.append((pooled[:, :-1] / weight.clamp_min(_TINY), (_SATURATION * weight).clamp(max=1)))
    filled = levels.pop()[0]
    for values, certainty in reversed(levels):
        filled = F.interpolate(filled, size=values.shape[2:], mode="bilinear", align_corners=False)
        filled = torch.lerp(filled, values, certainty)
        filled = torch.lerp(F.avg_pool2d(filled, 3, 1, 1, count_include_pad=False), values, certainty)
    return filled
