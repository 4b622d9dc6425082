"""Contextual attention: rebuild every patch of a feature from the known patches that resemble it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ContextualAttention"]


class ContextualAttention(nn.Module):
    """Copy features from known places by patch similarity (Yu et al., CVPR 2018, section 4.1).

    The feature is its own query and its own key. Both are averaged over ``rate`` x ``rate`` cells, and a token is the
    ``patch_size`` x ``patch_size`` neighbourhood of a cell. Tokens are compared by cosine similarity, similarity is
    propagated to pairs of neighbours, and the raw ``2 rate`` x ``2 rate`` patches of the keys are pasted with the
    softmax of ``scale`` x similarity as weights; overlaps are averaged. There are no parameters.

    The softmax runs over the last dimension of one (B, queries, keys) tensor, where queries = keys = H/rate x W/rate,
    row-major, and every row sums to 1. A key whose cell touches the hole of its own sample gets weight 0; a sample
    without a single known cell weighs all its keys alike.

    The released code leaves hole keys in the sum and drops every key whose neighbourhood touches the hole, by the
    first sample's mask. Excluding before the softmax, per sample and by cell, is ours.

    Args:
        patch_size: Side of a matched neighbourhood, in cells; odd.
        rate: Side of a cell, in feature pixels; even.
        scale: Inverse temperature of the softmax.
        propagate: Whether to add the similarity of equally shifted pairs, left-right and then top-down.
    """

    def __init__(self, patch_size: int = 3, rate: int = 2, scale: float = 10.0, propagate: bool = True) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.rate = rate
        self.scale = scale
        self.propagate = propagate

    def extra_repr(self) -> str:
        """Show the settings in ``print(module)``."""
        return f"patch_size={self.patch_size}, rate={self.rate}, scale={self.scale}, propagate={self.propagate}"

    def forward(self, feature: Tensor, hole: Tensor) -> Tensor:
        """Rebuild ``feature`` from its known patches.

        Args:
            feature: (B, C, H, W); H and W are multiples of ``rate``.
            hole: (B, 1, h, w) of any size not below the grid of cells, above 0 in the hole.

        Returns:
            (B, C, H, W).
        """
        height, width = feature.shape[-2] // self.rate, feature.shape[-1] // self.rate
        cells = F.avg_pool2d(feature, self.rate)
        tokens = F.normalize(F.unfold(cells, self.patch_size, padding=self.patch_size // 2), dim=1, eps=1e-4)
        similarity = torch.bmm(tokens.transpose(1, 2), tokens)
        if self.propagate:
            similarity = _propagate(similarity, height, width)
        in_hole = F.adaptive_max_pool2d(hole, (height, width)).flatten(2) > 0
        # The lowest finite number instead of -inf: a row without any known key becomes uniform instead of NaN.
        logits = (self.scale * similarity).masked_fill(in_hole, torch.finfo(similarity.dtype).min)
        attention = torch.softmax(logits, dim=-1)
        return self._paste(feature, attention)

    def _paste(self, feature: Tensor, attention: Tensor) -> Tensor:
        """Paste the raw patches of all keys at every query, weighted by ``attention``, and average the overlaps."""
        window = {"kernel_size": 2 * self.rate, "stride": self.rate, "padding": self.rate // 2}
        size = feature.shape[-2:]
        patches = F.unfold(feature, **window)
        pasted = F.fold(torch.bmm(patches, attention.transpose(1, 2)), size, **window)
        overlap = F.fold(F.unfold(feature.new_ones(1, 1, *size), **window), size, **window)
        return pasted / overlap


def _propagate(similarity: Tensor, height: int, width: int) -> Tensor:
    """Add the similarity of pairs shifted alike by one token: s(q, k) + s(q - 1, k - 1) + s(q + 1, k + 1).

    First along rows, then along columns (paper, Eq. 2, k = 1); pairs that leave the grid count as 0.

    Args:
        similarity: (B, height x width queries, height x width keys).
        height: Rows of the token grid.
        width: Columns of the token grid.

    Returns:
        (B, queries, keys).
    """
    batch = similarity.shape[0]
    # Over one row of queries and one row of keys the sum runs along the diagonal: a convolution with the unit matrix.
    diagonal = torch.eye(3, dtype=similarity.dtype, device=similarity.device)[None, None]
    grid = similarity.reshape(batch, height, width, height, width).transpose(2, 3)
    grid = F.conv2d(grid.reshape(-1, 1, width, width), diagonal, padding=1)
    grid = grid.reshape(batch, height, height, width, width).permute(0, 3, 4, 1, 2)
    grid = F.conv2d(grid.reshape(-1, 1, height, height), diagonal, padding=1)
    grid = grid.reshape(batch, width, width, height, height).permute(0, 3, 1, 4, 2)
    return grid.reshape(batch, height * width, height * width)
