"""EdgeConnect's image completion network."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.errors import ConfigError, InputError

__all__ = ["DilatedResidual", "EdgeConnectGenerator"]


class DilatedResidual(nn.Module):
    """Add what a convolution of dilation 2 and a plain one find (Nazeri et al., ICCVW 2019, appendix)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.wide = nn.Conv2d(channels, channels, 3, padding=2, dilation=2, padding_mode="reflect", bias=False)
        self.near = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="reflect", bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        seen = F.relu(F.instance_norm(self.wide(x)))
        return x + F.instance_norm(self.near(seen))


class EdgeConnectGenerator(nn.Module):
    """Fill an image along its edges: the second network of EdgeConnect (Nazeri et al., ICCVW 2019, section 3.2).

    Two strided convolutions down, dilated residual blocks, two steps up, instance normalisation throughout, after
    Johnson et al., ECCV 2016. The edge generator and the discriminators are not included. ``encoder`` is flat, so that
    a stage is the activation at a place in it, which is overwritten in place.

    Args:
        width: Channels at full resolution; the paper's is 64.
        blocks: Residual blocks at 1/4 resolution; the paper's number is 8.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(self, width: int = 64, blocks: int = 8) -> None:
        super().__init__()
        if width < 1 or blocks < 1:
            raise ConfigError(f"width={width}, blocks={blocks}", "a number below 1", "use positive numbers")
        self.encoder = nn.Sequential(nn.ReflectionPad2d(3))
        down = ((4, width, 7, 1), (width, 2 * width, 4, 2), (2 * width, 4 * width, 4, 2))
        for inputs, outputs, kernel, stride in down:
            self.encoder.append(nn.Conv2d(inputs, outputs, kernel, stride, stride // 2, bias=False))
            self.encoder.append(nn.InstanceNorm2d(outputs))
            self.encoder.append(nn.ReLU(inplace=True))
        self.middle = nn.Sequential(*(DilatedResidual(4 * width) for _ in range(blocks)))
        self.decoder = nn.Sequential()
        for inputs, outputs in ((4 * width, 2 * width), (2 * width, width)):
            self.decoder.append(nn.Upsample(scale_factor=2))
            self.decoder.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False))
            self.decoder.append(nn.InstanceNorm2d(outputs))
            self.decoder.append(nn.ReLU(inplace=True))
        self.decoder.append(nn.Conv2d(width, 3, 7, padding=3, padding_mode="reflect"))

    def forward(self, x: Tensor) -> Tensor:
        """Restore an image.

        Args:
            x: (B, 4, H, W): image in [0, 1] with white holes, and its edge map (1 on an edge, 0 elsewhere); H and W
                multiples of 4, at least 12.

        Returns:
            The image (B, 3, H, W) in [0, 1], not composited.

        Raises:
            InputError: If the shape does not fit.
        """
        if x.ndim != 4 or x.shape[1] != 4 or any(side % 4 or side < 12 for side in x.shape[2:]):
            raise InputError(
                "input (B, 4, H, W) with H and W multiples of 4, at least 12",
                f"shape {tuple(x.shape)}",
                "concatenate [image with white holes, edges] and pad or crop to multiples of 4",
            )
        image: Tensor = self.decoder(self.middle(self.encoder(x)))
        return (torch.tanh(image) + 1) / 2
