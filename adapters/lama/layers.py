"""The fast Fourier convolution: a local and a global branch that exchange what they see."""

from __future__ import annotations

from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FourierConv", "FourierUnit", "Pair", "SpectralTransform"]

Pair: TypeAlias = tuple[Tensor, Tensor | int]
"""The local and the global feature; the latter is the number 0 where there is none."""


class FourierUnit(nn.Module):
    """Convolve the spectrum: every output pixel sees the whole map (Chi et al., NeurIPS 2020, section 3.2).

    Real and imaginary parts of the real 2-D FFT are channels of a 1 x 1 convolution with BatchNorm and ReLU.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2 * channels, 2 * channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(2 * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        # There is no FFT of bfloat16, and one of float16 for powers of two only.
        exact = x.to(torch.promote_types(x.dtype, torch.float32))
        spectrum = torch.fft.rfft2(exact, norm="ortho")
        parts = torch.cat([spectrum.real, spectrum.imag], dim=1).to(x.dtype)
        real, imag = F.relu(self.norm(self.conv(parts)), inplace=True).to(exact.dtype).chunk(2, dim=1)
        output: Tensor = torch.fft.irfft2(torch.complex(real, imag), s=x.shape[-2:], norm="ortho")
        return output.to(x.dtype)


class SpectralTransform(nn.Module):
    """Put a Fourier unit between two 1 x 1 convolutions, at half the channels and with a residual connection.

    The second unit over quarters of the map ("local Fourier unit") is left out, as in the released configurations.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.reduce = nn.Sequential(
            nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU(inplace=True)
        )
        self.unit = FourierUnit(inner)
        self.expand = nn.Conv2d(inner, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        x = self.reduce(x)
        output: Tensor = self.expand(x + self.unit(x))
        return output


class FourierConv(nn.Module):
    """Convolve a (local, global) pair, with BatchNorm and ReLU on each part.

    Suvorov et al., WACV 2022, figure 2::

        local'  = conv(local) + conv(global)
        global' = conv(local) + spectral_transform(global)

    Args:
        local: Channels of the local part, in and out.
        spectral: Channels of the global part, in and out; 0 for none, then it is the number 0.
        kernel_size: Side of the three convolutions' kernels.
        stride: Their stride; 1 where a global part comes in.
        pad: Whether to pad by reflection.
    """

    def __init__(
        self, local: tuple[int, int], spectral: tuple[int, int], kernel_size: int = 3, stride: int = 1, pad: bool = True
    ) -> None:
        super().__init__()

        def conv(in_channels: int, out_channels: int) -> nn.Conv2d:
            padding = kernel_size // 2 if pad else 0
            return nn.Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, bias=False, padding_mode="reflect"
            )

        self.local_to_local = conv(local[0], local[1])
        self.local_to_global = conv(local[0], spectral[1]) if spectral[1] else None
        self.global_to_local = conv(spectral[0], local[1]) if spectral[0] else None
        self.spectrum = SpectralTransform(spectral[1]) if all(spectral) else None
        self.norm_local = nn.BatchNorm2d(local[1])
        self.norm_global = nn.BatchNorm2d(spectral[1]) if spectral[1] else None

    def forward(self, x: Tensor | Pair) -> Pair:
        """Map a pair of (B, in, H, W), or a local part alone, to a pair of (B, out, H / stride, W / stride)."""
        local, spectral = x if isinstance(x, tuple) else (x, 0)
        output = self.local_to_local(local)
        if self.global_to_local is not None:
            output = output + self.global_to_local(spectral)
        output = F.relu(self.norm_local(output), inplace=True)
        if self.local_to_global is None or self.norm_global is None:
            return output, 0
        whole = self.local_to_global(local)
        if self.spectrum is not None:
            whole = whole + self.spectrum(spectral)
        return output, F.relu(self.norm_global(whole), inplace=True)
