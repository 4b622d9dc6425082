"""What the latent does: a mapping network with a moving average, and convolutions modulated by its style."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["MappingNetwork", "ModulatedConv"]


class MappingNetwork(nn.Module):
    """Map a latent to a style, and keep the moving average of the styles that training sees (Karras et al., 2020)."""

    average: Tensor

    def __init__(self, latent: int, style: int, decay: float = 0.995) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(latent, style), nn.LeakyReLU(0.2), nn.Linear(style, style), nn.LeakyReLU(0.2)
        )
        self.decay = decay
        self.register_buffer("average", torch.zeros(style))

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, latent) to (B, style)."""
        style: Tensor = self.layers(F.normalize(latent, dim=1) * latent.shape[1] ** 0.5)
        if self.training:
            with torch.no_grad():
                self.average.copy_(style.mean(0).to(self.average).lerp(self.average, self.decay))
        return style


class ModulatedConv(nn.Module):
    """Scale the channels by a style, convolve, and scale back to unit variance (Karras et al., CVPR 2020, section 2.2).

    Args:
        in_channels: Channels that come in.
        out_channels: Channels that go out.
        style: Length of the style.
    """

    def __init__(self, in_channels: int, out_channels: int, style: int) -> None:
        super().__init__()
        self.scales = nn.Linear(style, in_channels)
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(out_channels, 1, 1))

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        """Map (B, in, H, W) and a style (B, style) to (B, out, H, W)."""
        scales = 1 + self.scales(style)
        norm = (scales.square() @ self.weight.square().sum((2, 3)).t() + 1e-8).rsqrt()
        x = F.conv2d(x * scales[..., None, None], self.weight.to(x), padding=1) * norm[..., None, None]
        return F.leaky_relu(x + self.bias, 0.2)
