"""The host that a recipe describes."""

import itertools
import math

import torch
from torch import nn
from torch.nn import functional as F

from hosts.outputs import ImageOutput

__all__ = ["Host"]

_PLANES = {"rgb_known": 6, "ones": 5, "ones_and_mask": 6, "white": 3}  # all others have 4


class Level(nn.Module):
    """One level of an encoder; what it takes and puts out is a tensor, a tuple or a dict."""

    def __init__(self, recipe, inputs, outputs, stride, act):
        super().__init__()
        self.form = recipe.form
        pool = {"max": nn.MaxPool2d, "late": nn.MaxPool2d, "average": nn.AvgPool2d}.get(recipe.down)
        layers = []
        for number in range(recipe.depth):
            goes_down = number == 0 and stride > 1 and pool is None
            if number == 0 and stride > 1 and recipe.down in ("max", "average"):
                layers.append(pool(stride))
            kernel = 2 * stride - 1 if goes_down and stride > 2 else 3
            layers.append(nn.Conv2d(inputs, outputs, kernel, stride if goes_down else 1, kernel // 2))
            layers += {
                "none": [],
                "batch": [nn.BatchNorm2d(outputs)],
                "group": [nn.GroupNorm(4, outputs)],
                "instance": [nn.InstanceNorm2d(outputs, affine=True)],
            }[recipe.normalisation]
            if act is not None or number + 1 < recipe.depth:
                layers.append(act or nn.ReLU())
            inputs = outputs
        if stride > 1 and recipe.down == "late":
            layers.append(pool(stride))
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        feature = self.layers(_feature(x))
        return {"tensor": feature, "tuple": (feature, 0), "dict": {"level": 1, "feature": feature}}[self.form]


def _feature(x):
    return x["feature"] if isinstance(x, dict) else x[0] if isinstance(x, tuple) else x


class Attention(nn.Module):
    """Attention over all places of a map, with a residual."""

    def __init__(self, kind, channels, heads):
        super().__init__()
        self.kind, self.heads = kind, heads
        if kind == "mha":
            self.mha = nn.MultiheadAttention(channels, heads, batch_first=True)
        else:
            self.project = nn.Linear(channels, 3 * channels)

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        if self.kind == "mha":
            out = self.mha(tokens, tokens, tokens, need_weights=False)[0]
        else:
            query, key, value = self.project(tokens).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
            if self.kind == "sdpa":
                out = F.scaled_dot_product_attention(query, key, value)
            else:
                out = (query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])).softmax(-1) @ value
            out = out.transpose(1, 2).flatten(2)
        return x + out.transpose(1, 2).unflatten(2, x.shape[2:])


class Residual(nn.Module):
    """A residual block whose first activation is not in place."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return x + 0.1 * self.conv(F.elu(x))


class Network(nn.Module):
    """Encoder, bottleneck and decoder, from a stack of planes to an image."""

    def __init__(self, recipe, planes):
        super().__init__()
        self.recipe = recipe
        act = {"module": nn.ELU(), "in_place": nn.ReLU(inplace=True), "function": None}[recipe.activation]
        widths = (planes, *recipe.widths)
        self.levels = nn.ModuleList(
            Level(recipe, *pair, stride, act)
            for pair, stride in zip(itertools.pairwise(widths), recipe.strides, strict=True)
        )
        self.middle = Residual(widths[-1]) if recipe.repeats else None
        self.attention = Attention(recipe.attention, widths[-1], recipe.heads) if recipe.attention != "none" else None
        self.decoder = nn.ModuleList(
            nn.Conv2d(below + (above if recipe.skips == "cat" else 0), above, 3, padding=1)
            for above, below in itertools.pairwise(recipe.widths)
        )
        self.tail = nn.Conv2d(widths[1], 8, 3, padding=1) if recipe.tail else None
        self.out = nn.Conv2d(8 if recipe.tail else widths[1], 3, 3, padding=1)

    def forward(self, x):
        size, skips, state = x.shape[2:], [], x
        for level in self.levels:
            state = level(state)
            if self.recipe.activation == "function":
                F.leaky_relu_(_feature(state), 0.1)
            skips.append(_feature(state))
        x = skips.pop()
        for _ in range(self.recipe.repeats):
            x = self.middle(x)
        if self.attention is not None:
            x = self.attention(x)
        for conv, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = F.interpolate(x, skip.shape[2:])
            x = F.elu(conv(torch.cat([x, skip], 1) if self.recipe.skips == "cat" else x))
            x = x + skip if self.recipe.skips == "add" else x
        x = F.interpolate(x, size)
        return self.out(x if self.tail is None else F.elu(self.tail(x)))


class Host(nn.Module):
    """One network or two, each run once or on its own result; takes the planes of any convention."""

    def __init__(self, recipe):
        super().__init__()
        self.recipe = recipe
        planes = _PLANES.get(recipe.convention, 4)
        self.networks = nn.ModuleList(Network(recipe, planes) for _ in range(1 + recipe.two_stage))

    def forward(self, *planes, picture=None, holes=None, mode=None):
        if picture is not None:
            planes = (picture, holes)
        elif isinstance(planes[0], dict):
            planes = planes[0]["pixels"]
        size = planes[0].shape[2:]
        planes = [F.interpolate(plane.float(), size) for plane in planes if plane.ndim == 4]  # not words
        if self.recipe.convention == "whole":
            planes[0] = planes[0] * (1 - planes[1])
        planes = torch.cat(planes, 1)
        first = 1 if self.recipe.convention in ("mask_first", "centred_mask") else 0
        images = []
        for network in self.networks:
            for _ in range(self.recipe.passes):
                images.append(network(planes))
                planes = torch.cat([planes[:, :first], images[-1], planes[:, first + 3 :]], 1)
        fine = images[-1]
        return {
            "tensor": fine,
            "tuple": (images[0], fine),
            "dict": {"out": fine, "aux": [0, None]},
            "dataclass": ImageOutput(fine),
        }[self.recipe.output]
