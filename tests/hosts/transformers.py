"""Hosts whose tokens attend in windows, after a class token, or to words."""

import torch
from torch import nn
from torch.nn import functional as F

from hosts.base import WIDTHS, Up
from hosts.outputs import Tokens

__all__ = ["ClassToken", "Windowed", "Worded"]


class Attention(nn.Module):
    """Attend from tokens (B, N, C) to these or to others, with two heads; ``hide`` (windows, N, N) is added."""

    def __init__(self, channels):
        super().__init__()
        self.query, self.pair = nn.Linear(channels, channels), nn.Linear(channels, 2 * channels)
        self.softmax, self.project = nn.Softmax(-1), nn.Linear(channels, channels)

    def forward(self, tokens, others=None, hide=None):
        others = tokens if others is None else others
        query = self.query(tokens).unflatten(2, (2, -1)).transpose(1, 2)
        key, value = self.pair(others).unflatten(2, (2, 2, -1)).permute(2, 0, 3, 1, 4)
        logits = query @ key.mT / query.shape[-1] ** 0.5
        if hide is not None:
            logits = (logits.unflatten(0, (-1, len(hide))) + hide[:, None]).flatten(0, 1)
        return self.project((self.softmax(logits) @ value).transpose(1, 2).flatten(2))


# -- windows -----------------------------------------------------------------------------------------------------------


def _cut(x, window):
    """Cut (B, H, W, C) into windows (B * windows, window * window, C), row by row."""
    return x.unflatten(2, (-1, window)).unflatten(1, (-1, window)).transpose(2, 3).flatten(3, 4).flatten(0, 2)


class Block(nn.Module):
    """Windows of (B, H, W, C), padded to a whole number of them, and of the map rolled by ``shift_size`` (Swin)."""

    def __init__(self, channels, window, shift):
        super().__init__()
        self.window_size, self.shift_size = window, shift
        self.norm, self.attn = nn.LayerNorm(channels), Attention(channels)

    def forward(self, x):
        _, height, width, channels = x.shape
        window, shift = self.window_size, self.shift_size
        seen = F.pad(self.norm(x), (0, 0, 0, -width % window, 0, -height % window))
        rows, columns = seen.shape[1] // window, seen.shape[2] // window
        roll = tuple(shift if number > 1 else 0 for number in (rows, columns))
        seen = torch.roll(seen, (-roll[0], -roll[1]), (1, 2))
        seen = self.attn(_cut(seen, window), hide=self.hide(seen, roll) if any(roll) else None)
        seen = seen.view(-1, rows, columns, window, window, channels).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x + torch.roll(seen, roll, (1, 2))[:, :height, :width]

    def hide(self, x, roll):
        """Keep apart what only the roll has brought together: 0, or -100 between two regions of one window."""
        region = x.new_zeros(1, *x.shape[1:3], 1)
        for axis, shift in enumerate(roll, 1):
            ends = torch.arange(x.shape[axis], device=x.device) >= x.shape[axis] - shift
            region = 2 * region + ends.view([-1 if each == axis else 1 for each in range(4)])
        region = _cut(region, self.window_size)
        return (region != region.mT) * -100.0


class Merge(nn.Module):
    """Make one token of four, (B, H, W, C) to (B, H/2, W/2, outputs)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.reduce = nn.Linear(4 * inputs, outputs)

    def forward(self, x):
        return self.reduce(x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).transpose(2, 3).flatten(3))


class Windowed(nn.Module):
    """Two levels (B, H, W, C) of attention in windows, as they lie and shifted by half of one.

    Args:
        window: Side of a window. Windows of 7 do not tile the 16 x 16 and 8 x 8 tokens of an image of 32 pixels.
    """

    def __init__(self, window):
        super().__init__()
        first, second = WIDTHS[1:]
        self.layers = nn.ModuleList(
            nn.Sequential(Merge(inputs, width), Block(width, window, 0), Block(width, window, window // 2))
            for inputs, width in ((4, first), (first, second))
        )
        self.up = Up()

    def forward(self, x):
        x = x.permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x)
        return self.up(x.permute(0, 3, 1, 2))


# -- tokens that are no places -----------------------------------------------------------------------------------------


class Joint(nn.Module):
    """Attend among all tokens (B, more + N, C)."""

    def __init__(self):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(WIDTHS[1]), Attention(WIDTHS[1])

    def forward(self, tokens):
        return tokens + self.attn(self.norm(tokens))


class ClassToken(Tokens):
    """A class token goes before those of the image, (B, 1 + N, C), and is dropped by the root."""

    def __init__(self):
        super().__init__()
        self.mix, self.token = Joint(), nn.Parameter(torch.randn(1, 1, WIDTHS[1]))

    def mixed(self, tokens):
        return self.mix(torch.cat([self.token.expand(len(tokens), -1, -1), tokens], 1))[:, 1:]


class Worded(Tokens):
    """Words (B, T, C), an argument, are looked at by the image's tokens, and then go before them."""

    def __init__(self):
        super().__init__()
        self.look, self.mix = Attention(WIDTHS[1]), Joint()

    def mixed(self, tokens, words):
        tokens = tokens + self.look(tokens, words)
        return self.mix(torch.cat([words, tokens], 1))[:, words.shape[1] :]
