"""The network that most toy hosts share: three resolutions down, two up."""

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["WIDTHS", "Down", "Plain", "Up", "block"]

WIDTHS = (8, 12, 16)


def block(inputs, outputs, stride=1):
    """Convolve and activate, as one named module."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.LeakyReLU(0.1))


class Down(nn.Module):
    """An encoder: (B, inputs, H, W) to (B, 8, H, W), (B, 12, H/2, W/2) and (B, 16, H/4, W/4)."""

    def __init__(self, inputs, make=block):
        super().__init__()
        first, second, third = WIDTHS
        self.enc0 = make(inputs, first)
        self.enc1 = make(first, second, 2)
        self.enc2 = make(second, third, 2)

    def forward(self, x):
        return self.enc2(self.enc1(self.enc0(x)))


class Up(nn.Module):
    """A decoder back to an image without activation."""

    def __init__(self, width=WIDTHS[-1], outputs=3):
        super().__init__()
        self.dec = block(width, 8)
        self.out = nn.Conv2d(8, outputs, 3, padding=1)

    def forward(self, x):
        x = self.dec(F.interpolate(x, scale_factor=2))
        return self.out(F.interpolate(x, scale_factor=2))


class Plain(Down):
    """Encoder and decoder; arguments are concatenated along the channels."""

    def __init__(self, inputs=4, make=block):
        super().__init__(inputs, make)
        self.up = Up()

    def forward(self, *planes):
        return self.up(super().forward(torch.cat(planes, 1)))
