"""What joins texture and structure, and what spreads the result over the image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.contextual_attention.attention import ContextualAttention

__all__ = ["ContextualAggregation", "GatedFusion", "TextureProjection"]


class GatedFusion(nn.Module):
    """Let texture and structure pass to each other through gates (Guo et al., ICCV 2021, Eq. 2 to 5).

    Each side gets the other, times a sigmoid gate that sees both, times a factor that starts at 0.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.texture_gate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.structure_gate = nn.Conv2d(2 * channels, channels, 3, padding=1)
        self.texture_factor = nn.Parameter(torch.zeros(()))
        self.structure_factor = nn.Parameter(torch.zeros(()))

    def forward(self, texture: Tensor, structure: Tensor) -> Tensor:
        """Map two features (B, C, H, W) to their fusion (B, 2 C, H, W)."""
        both = torch.cat([texture, structure], dim=1)
        to_structure = torch.sigmoid(self.texture_gate(both)) * texture
        to_texture = torch.sigmoid(self.structure_gate(both)) * structure
        return torch.cat(
            [texture + self.structure_factor * to_texture, structure + self.texture_factor * to_structure], dim=1
        )


class ContextualAggregation(nn.Module):
    """Rebuild a feature from its own patches, and look at it at four scales (section 3.3).

    The attention is contextual attention over the whole map: the paper's has no mask, and no propagation. At every
    pixel a softmax weighs dilated convolutions of rates 1, 2, 4 and 8.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attention = ContextualAttention(propagate=False)
        self.scales = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=rate, dilation=rate) for rate in (1, 2, 4, 8)
        )
        self.weights = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, len(self.scales), 1),
            nn.Softmax(dim=1),
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape; H and W are even."""
        x = self.attention(feature, torch.zeros_like(feature[:, :1]))
        seen = torch.stack([F.relu(scale(x)) for scale in self.scales], dim=1)
        weights: Tensor = self.weights(x)
        return (weights.unsqueeze(2) * seen).sum(dim=1)


class TextureProjection(nn.Module):
    """Make an image of the texture alone, for its own loss (section 3.1): a residual block and a 1 x 1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.head = nn.Conv2d(channels, 3, 1)

    def forward(self, texture: Tensor) -> Tensor:
        """Map (B, C, H, W) to an image (B, 3, H, W) in [-1, 1]."""
        return torch.tanh(self.head(F.relu(texture + self.block(texture))))
