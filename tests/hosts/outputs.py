"""Hosts that differ in what they, or their stages, put out."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from hosts.base import WIDTHS, Down, Plain, Up, block

__all__ = [
    "NHWC",
    "CoarseFine",
    "DataclassOutput",
    "DictOutput",
    "ImageAndNone",
    "ImageOutput",
    "Interrupted",
    "LocalGlobal",
    "NamedSkips",
    "PartialBlock",
    "PartialConv",
    "Pictured",
    "ReturnsFeature",
    "Scales",
    "SkipTuples",
    "ThreeEncoders",
    "Tokens",
    "TrainingOnly",
]


@dataclass
class ImageOutput:
    """What diffusers-like hosts return."""

    sample: torch.Tensor
    commit_loss: float = 0.0


class ImageAndNone(Plain):
    """Returns (image, None)."""

    def forward(self, *planes):
        return super().forward(*planes), None


class DictOutput(Plain):
    """Returns a dict with members that are no images."""

    def forward(self, *planes):
        return {"out": super().forward(*planes), "aux": [0, None]}


class DataclassOutput(Plain):
    """Returns a dataclass."""

    def forward(self, *planes):
        return ImageOutput(super().forward(*planes))


class Scales(Plain):
    """Returns a list of the image at two scales, from a head each; the smaller one's loss may be left out.

    Args:
        coarse_first: In that order.
    """

    def __init__(self, coarse_first):
        super().__init__(4)
        self.coarse_first = coarse_first
        self.small = nn.Conv2d(WIDTHS[-1], 3, 1)

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        scales = [self.up(feature), self.small(feature)]
        return scales[::-1] if self.coarse_first else scales


class Pictured(Plain):
    """Returns (image, a picture of the bottleneck), the latter by way of numpy and without a gradient."""

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        picture = np.tanh(feature.detach().mean(1, keepdim=True).cpu().numpy())
        return self.up(feature), torch.from_numpy(picture)


class Predictor(nn.Module):
    """Goes down and up again by itself, and weighs the channels of another network's next stage."""

    def __init__(self):
        super().__init__()
        self.down, self.dec, self.weigh = Down(WIDTHS[1]), block(WIDTHS[-1], 8), nn.Conv2d(8, WIDTHS[-1], 1)

    def forward(self, x):
        weights = self.weigh(self.dec(F.interpolate(self.down(x), scale_factor=4)))
        return weights.mean((2, 3), keepdim=True), F.interpolate(weights, scale_factor=2)


class Interrupted(Plain):
    """A whole network runs between two stages of its encoder."""

    def __init__(self):
        super().__init__()
        self.predictor = Predictor()

    def forward(self, *planes):
        x = self.enc1(self.enc0(torch.cat(planes, 1)))
        weights, shift = self.predictor(x)
        return self.up(self.enc2(x) * weights.sigmoid()) + shift[:, :3]


class TrainingOnly(nn.Module):
    """A second network refines the first one's image in training mode alone."""

    def __init__(self):
        super().__init__()
        self.base, self.refine = Plain(), Plain()

    def forward(self, image, mask):
        restored = self.base(image, mask)
        return (restored, self.refine(image + restored * mask, mask)) if self.training else (restored, None)


class CoarseFine(nn.Module):
    """Two stages with an encoder each; returns (coarse, fine)."""

    def __init__(self):
        super().__init__()
        self.coarse = Plain(4)
        self.fine = Plain(4)

    def forward(self, image, mask):
        coarse = self.coarse(image, mask)
        return coarse, self.fine(coarse * mask + image * (1 - mask), mask)


class ThreeEncoders(nn.Module):
    """A coarse network, then two encoders side by side (DeepFill); returns (coarse, fine)."""

    def __init__(self):
        super().__init__()
        self.coarse = Plain(4)
        self.beside, self.down = Down(4), Down(4)
        self.up = Up(2 * WIDTHS[-1])

    def forward(self, image, mask):
        coarse = self.coarse(image, mask)
        x = torch.cat([coarse * mask + image * (1 - mask), mask], 1)
        return coarse, self.up(torch.cat([self.beside(x), self.down(x)], 1))


class PartialBlock(nn.Module):
    """Convolve what is known and say how far the knowledge now reaches; (feature, known)."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.stride = stride

    def forward(self, pair):
        feature, known = pair
        reach = F.max_pool2d(known[:, :1], 3, self.stride, 1)
        return F.leaky_relu(self.conv(feature * known), 0.1), reach.expand(-1, self.conv.out_channels, -1, -1)


class PartialConv(Down):
    """Stages put out (feature, mask), and so does the host."""

    def __init__(self, make=PartialBlock):
        super().__init__(3, make)
        self.up = Up()

    def forward(self, image, known):
        feature, reach = super().forward((image, known))
        return self.up(feature), F.interpolate(reach[:, :3], scale_factor=4)


class ReturnsFeature(Plain):
    """Returns (image, bottleneck), for the author's own feature loss; the decoder is a single module."""

    def __init__(self):
        super().__init__()
        self.up = nn.ConvTranspose2d(WIDTHS[-1], 3, 4, 4)

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        return self.up(feature), feature


class GlobalBlock(nn.Module):
    """A block on (local, global), where the global half is the int 0 at first (LaMa)."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__()
        self.local = block(inputs, outputs, stride)

    def forward(self, pair):
        local, other = pair
        return self.local(local), other


class LocalGlobal(Down):
    """Stages put out (feature, 0)."""

    def __init__(self):
        super().__init__(4, GlobalBlock)
        self.up = Up()

    def forward(self, x):
        return self.up(super().forward((x, 0))[0])


class NamedSkips(nn.Module):
    """One encoder module whose output is a dict of features; nothing inside it is a module call of its own level."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = (DictBlock(i, o, s) for i, o, s in ((4, 8, 1), (8, 12, 2), (12, 16, 2)))
        self.up = Up()

    def forward(self, x):
        skips = self.third(self.second(self.first({"feature": x})))
        return self.up(skips["feature"])


class DictBlock(nn.Module):
    """Takes and puts out a dict; the convolution is functional, so that no submodule can be tapped instead."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3) * 0.1)
        self.stride = stride

    def forward(self, state):
        feature = F.leaky_relu(F.conv2d(state["feature"], self.weight, stride=self.stride, padding=1), 0.1)
        return {"level": self.stride, "feature": feature}


class SkipBlock(nn.Module):
    """Convolve, then go down; (next resolution, (this resolution,)), as diffusers' blocks."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv, self.down = block(inputs, outputs), block(outputs, outputs, 2)

    def forward(self, x):
        skip = self.conv(x)
        return self.down(skip), (skip,)


class SkipTuples(nn.Module):
    """A U-Net whose blocks put out (x, skips): the first tensor is that of the next resolution."""

    def __init__(self):
        super().__init__()
        first, second, third = WIDTHS
        self.down = nn.ModuleList([SkipBlock(4, first), SkipBlock(first, second)])
        self.middle = block(second, third)
        self.up = nn.ModuleList([block(third + second, second), block(second + first, first)])
        self.out = nn.Conv2d(first, 3, 3, padding=1)

    def forward(self, *planes):
        x, skips = torch.cat(planes, 1), ()
        for down in self.down:
            x, new = down(x)
            skips += new
        x = self.middle(x)
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skip], 1))
        return self.out(x)


class Tokens(nn.Module):
    """Embeds patches as tokens (B, N, C) and merges four into one."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(4 * 4, WIDTHS[1])
        self.mix = nn.Sequential(nn.LayerNorm(WIDTHS[1]), nn.Linear(WIDTHS[1], WIDTHS[1]), nn.GELU())
        self.merge = nn.Linear(4 * WIDTHS[1], WIDTHS[2])
        self.up = Up()

    def mixed(self, tokens):
        return self.mix(tokens)

    def forward(self, x, *more):
        height, width = x.shape[2] // 2, x.shape[3] // 2
        tokens = self.mixed(self.embed(F.unfold(x, 2, stride=2).transpose(1, 2)), *more)
        grid = tokens.transpose(1, 2).unflatten(2, (height, width))
        tokens = self.merge(F.unfold(grid, 2, stride=2).transpose(1, 2))
        return self.up(tokens.transpose(1, 2).unflatten(2, (height // 2, width // 2)))


class ChannelsLast(nn.Module):
    """A block on (B, H, W, C) that halves the resolution."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.linear = nn.Linear(4 * inputs, outputs)

    def forward(self, x):
        batch, height, width, channels = x.shape
        parts = x.view(batch, height // 2, 2, width // 2, 2, channels).transpose(2, 3)
        return F.gelu(self.linear(parts.reshape(batch, height // 2, width // 2, 4 * channels)))


class NHWC(nn.Module):
    """Features are (B, H, W, C), as in timm's Swin."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([ChannelsLast(4, WIDTHS[1]), ChannelsLast(WIDTHS[1], WIDTHS[2])])
        self.up = Up()

    def forward(self, x):
        x = x.permute(0, 2, 3, 1).contiguous()
        for layer in self.layers:
            x = layer(x)
        return self.up(x.permute(0, 3, 1, 2))
