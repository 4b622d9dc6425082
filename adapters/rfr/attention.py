"""Knowledge-consistent attention: scores that remember those of the recurrence before."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["KnowledgeConsistentAttention", "Memory"]

Memory: TypeAlias = tuple[Tensor, Tensor]
"""Scores (B, keys, h, w) of the last recurrence, and where the feature was known in it, (B, 1, h, w)."""


class KnowledgeConsistentAttention(nn.Module):
    """Rebuild a feature from itself, consistently from one recurrence to the next (Li et al., CVPR 2020, section 3.3).

    Places are compared by cosine similarity, averaged over the neighbours of the query (Eq. 4), and a softmax over the
    keys gives the scores of this recurrence. Where the query was known in the last one, both are blended::

        score = share * score' + (1 - share) * score of the last recurrence

    The rebuilt feature is joined to the original by a 1 x 1 convolution. The similarity is multiplied by ``scale``
    before the softmax (ours: averaged cosines alone leave the scores almost uniform), and ``share`` is the sigmoid of
    what is learnt (ours: it stays a share).
    """

    def __init__(self, channels: int, neighbours: int = 3, scale: float = 10.0) -> None:
        super().__init__()
        self.neighbours = neighbours
        self.scale = scale
        self.share = nn.Parameter(torch.zeros(()))
        self.join = nn.Conv2d(2 * channels, channels, 1)

    def forward(self, feature: Tensor, known: Tensor, last: Memory | None) -> tuple[Tensor, Memory]:
        """Rebuild ``feature``.

        Args:
            feature: (B, C, h, w).
            known: (B, 1, H, W) of any size, 1 where the feature is known by now.
            last: What the last recurrence returned; ``None`` in the first.

        Returns:
            (B, C, h, w), and what the next recurrence needs.
        """
        size = (feature.shape[2], feature.shape[3])
        tokens = feature.flatten(2)
        unit = F.normalize(tokens, dim=1, eps=1e-4)
        similarity = torch.bmm(unit.transpose(1, 2), unit).reshape(feature.shape[0], -1, *size)
        similarity = F.avg_pool2d(similarity, self.neighbours, 1, self.neighbours // 2, count_include_pad=False)
        scores = torch.softmax(self.scale * similarity, dim=1)
        if last is not None:
            before, was_known = last
            scores = scores + was_known * torch.sigmoid(-self.share) * (before - scores)
        rebuilt = torch.bmm(tokens, scores.flatten(2)).reshape(feature.shape)
        output: Tensor = self.join(torch.cat([rebuilt, feature], dim=1))
        return output, (scores, F.interpolate(known, size))
