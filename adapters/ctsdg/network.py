"""The CTSDG generator."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from inpaint_distill.adapters.ctsdg.layers import ContextualAggregation, GatedFusion, TextureProjection
from inpaint_distill.adapters.partial_conv.network import DecoderStage, EncoderStage
from inpaint_distill.errors import ConfigError, InputError

__all__ = ["CTSDGGenerator"]


class CTSDGGenerator(nn.Module):
    """Inpaint texture and structure together (Guo et al., ICCV 2021, figure 2). The discriminator is not included.

    Two U-Nets of partial convolutions. Each decoder starts from the bottleneck of the *other* encoder and takes its
    skips from its own. The head that draws edges from the structure, for a loss of its own, is left out: it does not
    reach the image.

    Args:
        width: Channels of the first stages; the paper's is 64. Channels double up to ``8 width``.
        levels: Number of stages, each at half the resolution of the one before; the paper's is 7.

    Raises:
        ConfigError: If ``width`` is below 1 or ``levels`` below 2.
    """

    def __init__(self, width: int = 64, levels: int = 7) -> None:
        super().__init__()
        if width < 1 or levels < 2:
            found = "no channels, or fewer than two levels"
            raise ConfigError(f"width={width}, levels={levels}", found, "use width >= 1 and levels >= 2")
        self.texture_encoder = _encoder(3, width, levels)
        self.structure_encoder = _encoder(2, width, levels)
        self.texture_decoder = _decoder(3, width, levels)
        self.structure_decoder = _decoder(2, width, levels)
        self.projection = TextureProjection(width)
        self.fusion = GatedFusion(width)
        self.enter = nn.Conv2d(2 * width, width, 3, stride=2, padding=1)
        self.aggregation = ContextualAggregation(width)
        self.leave = nn.Conv2d(2 * width, width, 3, padding=1)
        self.head = nn.Conv2d(3 * width, 3, 1)

    def forward(self, image: Tensor, drawing: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Restore an image.

        Args:
            image: (B, 3, H, W) in [-1, 1], 0 in the hole; H and W multiples of 2^levels.
            drawing: (B, 2, H, W): edges in [0, 1] and grey values in [-1, 1], both 0 in the hole.
            known: (B, 1, H, W), 1 where the image is known, 0 in the hole.

        Returns:
            The image (B, 3, H, W) in [-1, 1], not composited, and the one that the texture alone gives.

        Raises:
            InputError: If the size does not fit.
        """
        multiple = 2 ** len(self.texture_encoder)
        if image.shape[2] % multiple or image.shape[3] % multiple:
            raise InputError(
                f"an image whose sides are multiples of {multiple}",
                f"shape {tuple(image.shape)}",
                "pad or crop the image, or build the network with fewer levels",
            )
        textures = _encode(self.texture_encoder, image, known)
        structures = _encode(self.structure_encoder, drawing, known)
        deepest = structures.pop(), textures.pop()
        texture = _decode(self.texture_decoder, deepest[0], textures)
        structure = _decode(self.structure_decoder, deepest[1], structures)
        fused = self.fusion(texture, structure)
        x = F.leaky_relu(self.enter(fused), 0.2)
        x = F.leaky_relu(self.leave(torch.cat([x, self.aggregation(x)], dim=1)), 0.2)
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return torch.tanh(self.head(torch.cat([x, fused], dim=1))), self.projection(texture)


def _channels(in_channels: int, width: int, levels: int) -> list[int]:
    return [in_channels, *(width * 2 ** min(level, 3) for level in range(levels))]


def _encoder(in_channels: int, width: int, levels: int) -> nn.ModuleList:
    """Stack partial convolutions with kernels of 7, 5, 5 and then 3 pixels."""
    channels = _channels(in_channels, width, levels)
    kernels = [7, 5, 5, *[3] * levels]
    return nn.ModuleList(
        EncoderStage(channels[level], channels[level + 1], kernels[level], normalise=level > 0)
        for level in range(levels)
    )


def _decoder(in_channels: int, width: int, levels: int) -> nn.ModuleList:
    """Stack the way back to the full resolution, where the input itself is the skip."""
    channels = _channels(in_channels, width, levels)
    return nn.ModuleList(
        DecoderStage(channels[level + 1], channels[level], channels[max(level, 1)]) for level in reversed(range(levels))
    )


def _encode(encoder: nn.ModuleList, x: Tensor, known: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Return (feature, mask) of the input and of every stage."""
    states = [(x, known.expand_as(x))]
    for stage in encoder:
        states.append(stage(states[-1]))
    return states


def _decode(decoder: nn.ModuleList, state: tuple[Tensor, Tensor], skips: list[tuple[Tensor, Tensor]]) -> Tensor:
    for stage in decoder:
        state = stage(state, skips.pop())
    return state[0]
