"""The meta-networks: trained by the inpainting loss after a look-ahead, never by the distillation loss (DGI)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["ChannelWeights", "FeatureTransform", "MetaNetwork", "TokenWeights", "meta_parameters"]


_EPSILON = 1e-12  # of the layer norms, below the variance of the faintest features that hosts have


class MetaNetwork(nn.Module):
    """A network that shapes what is distilled.

    Its parameters take no gradient, so that no backward of the user's can reach them. A look-ahead puts copies that do
    in their place (``torch.func.functional_call``).
    """

    def freeze(self) -> None:
        """Put the parameters out of reach of every backward; subclasses call it once they are built."""
        self.requires_grad_(False)


def meta_parameters(module: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the parameters of all meta-networks inside a module with their names in it."""
    for prefix, part in module.named_modules():
        if isinstance(part, MetaNetwork):
            yield from part.named_parameters(prefix)


class FeatureTransform(MetaNetwork):
    """``gamma_l``: a convolution on the teacher's feature (DGI; 3x3 and the start at the identity are ours).

    Args:
        channels: Channels of the teacher's feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.dirac_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        self.freeze()

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        out: Tensor = self.conv(feature)
        return out


class ChannelWeights(MetaNetwork):
    """``rho^l`` and ``phi^l``: FC + softmax on a pooled feature (DGI; the zero start is L2T-ww's, the layer norm ours).

    Args:
        channels: Channels of the feature that is looked at.
        weighted: Number of weights.
    """

    def __init__(self, channels: int, weighted: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, weighted)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.freeze()

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, C, H, W) to weights (B, weighted), each row summing to 1."""
        pooled = feature.mean((2, 3))
        # Without it the learning rate would depend on the host's activation scale, which spans decades.
        return torch.softmax(self.linear(F.layer_norm(pooled, pooled.shape[1:], eps=_EPSILON)), dim=1)


class TokenWeights(MetaNetwork):
    """``t``: one convolution and a sigmoid on the feature that enters the attention (DGI; zero start and norm: ours).

    A 1x1 convolution over tokens is a linear layer.

    Args:
        channels: Channels of that feature.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.freeze()

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (B, N, C) to weights (B, N) in (0, 1), one half at the start."""
        out: Tensor = self.linear(F.layer_norm(tokens, tokens.shape[2:], eps=_EPSILON))
        return out.sigmoid().squeeze(2)
