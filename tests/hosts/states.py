"""Hosts that keep state, overwrite their features or are not deterministic."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from hosts.base import WIDTHS, Down, Plain, Up, block
from hosts.outputs import ImageOutput, PartialBlock

__all__ = [
    "Aliases",
    "BatchNorm",
    "CachedTensor",
    "DataSpectralNorm",
    "DefaultActivation",
    "Gated",
    "HookSpectralNorm",
    "InPlace",
    "MaskUpdater",
    "Noisy",
    "PooledNorm",
    "PrivateCache",
    "Quantised",
    "Rebuilt",
    "Recurrent",
    "SharedActivation",
    "SilentModes",
    "Sliced",
]


class InPlace(Down):
    """Overwrites each stage's output afterwards, with modules and with functions."""

    def __init__(self):
        super().__init__(4, lambda i, o, s=1: nn.Conv2d(i, o, 3, s, 1))
        self.up = Up()

    def forward(self, x):
        x = F.leaky_relu_(self.enc0(x), 0.1)
        x = F.elu(self.enc1(x), inplace=True)
        return self.up(self.enc2(x).add_(0.5).clamp_(min=0))


def _batch_norm_block(inputs, outputs, stride=1):
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class BatchNorm(Plain):
    """Moves batch statistics, and activates in place."""

    def __init__(self):
        super().__init__(4, _batch_norm_block)


class _GatedConvolution(nn.Conv2d):
    def __init__(self, inputs, outputs, stride=1, dilation=1, act=nn.ELU()):  # noqa: B008 - as public hosts have it
        super().__init__(inputs, 2 * outputs, 3, stride, dilation, dilation)
        self.act = act

    def forward(self, x):
        feature, gate = super().forward(x).chunk(2, 1)
        return self.act(feature) * gate.sigmoid()


class Gated(Down):
    """One activation inside all layers, a default argument of theirs; dilated layers follow the encoder."""

    def __init__(self):
        super().__init__(4, _GatedConvolution)
        self.wide0, self.wide1 = (_GatedConvolution(WIDTHS[-1], WIDTHS[-1], dilation=each) for each in (2, 4))
        self.up = Up()

    def forward(self, x):
        return self.up(self.wide1(self.wide0(super().forward(x))))


class SharedActivation(nn.Module):
    """One activation object serves every stage."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, s, 1) for i, o, s in ((4, 8, 1), (8, 12, 2), (12, 16, 2)))
        self.act = nn.ELU()
        self.up = Up()

    def forward(self, x):
        for conv in self.convs:
            x = self.act(conv(x))
        return self.up(x)


_ELU = nn.ELU()


class DefaultActivation(SharedActivation):
    """The activation is a default argument, the same for all hosts of the class; the constructor ends in eval mode."""

    def __init__(self, act=_ELU):
        super().__init__()
        self.act = act
        self.eval()


class Aliases(Plain):
    """Every stage hangs under three names, and two layers share a weight."""

    def __init__(self):
        super().__init__(4)
        self.encoder = nn.ModuleList([self.enc0, self.enc1, self.enc2])
        self.levels = nn.ModuleDict({"fine": self.enc0, "middle": self.enc1, "coarse": self.enc2})
        self.mix, self.again = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 1)
        self.again.weight = self.mix.weight

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        return self.up(feature + self.again(F.elu(self.mix(feature))))


class Sliced(nn.Module):
    """One sequence of layers, run in slices and one by one: the sequence itself is never called."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(*Down(4).children(), Up())

    def forward(self, x):
        x = self.net[:2](x)
        for layer in self.net[2:]:
            x = layer(x)
        return x


class PooledNorm(Plain):
    """Weighs its channels by batch-normalised 1 x 1 maps: a batch of one fails in training."""

    def __init__(self):
        super().__init__(4)
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.BatchNorm2d(16), nn.Sigmoid())

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        return self.up(feature * self.gate(feature))


class MaskUpdater(PartialBlock):
    """A partial convolution with a kernel that is a plain tensor, which ``.to()`` misses, and the last mask kept."""

    def __init__(self, inputs, outputs, stride=1):
        super().__init__(inputs, outputs, stride)
        self.ones, self.reach = torch.ones(1, 1, 3, 3), None

    def forward(self, pair):
        feature, known = pair
        self.ones = self.ones.to(known)
        self.reach = F.conv2d(known[:, :1], self.ones, stride=self.stride, padding=1).clamp(0, 1)
        feature = F.leaky_relu(self.conv(feature * known), 0.1)
        return feature, self.reach.expand(-1, self.conv.out_channels, -1, -1)


def _rebuild(kind, arguments, state):
    module = kind(*arguments)
    vars(module).update(state)
    return module


class Rebuilt(Plain):
    """Copies and pickles run the constructor again, which draws random numbers (MAT)."""

    def __init__(self, inputs=4):
        super().__init__(inputs)
        self.inputs = inputs

    def __reduce__(self):
        return _rebuild, (type(self), (self.inputs,), vars(self))


class HookSpectralNorm(Plain):
    """Torch's own spectral norm: power iteration in a pre-forward hook, a non-leaf ``weight`` attribute."""

    def __init__(self):
        super().__init__(4, lambda i, o, s=1: nn.Sequential(spectral_norm(nn.Conv2d(i, o, 3, s, 1)), nn.ELU()))


class DataSpectral(nn.Module):
    """The spectral norm of many GAN repositories: power iteration through ``.data``, in eval mode too."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner
        weight = inner.weight
        del inner._parameters["weight"]
        inner.weight_bar = nn.Parameter(weight.data)
        inner.weight_u = nn.Parameter(F.normalize(torch.randn(weight.shape[0]), dim=0), requires_grad=False)

    def forward(self, x):
        inner = self.inner
        flat = inner.weight_bar.view(inner.weight_bar.shape[0], -1)
        v = F.normalize(flat.data.t() @ inner.weight_u.data, dim=0)
        inner.weight_u.data = F.normalize(flat.data @ v, dim=0)
        inner.weight = inner.weight_bar / inner.weight_u.dot(flat @ v)
        return F.leaky_relu(inner.forward(x), 0.1)


class DataSpectralNorm(Plain):
    """Bypasses ``__call__`` of the wrapped convolution, caches a non-leaf weight, changes state in every forward."""

    def __init__(self):
        super().__init__(4, lambda i, o, s=1: DataSpectral(nn.Conv2d(i, o, 3, s, 1)))


class CachedTensor(Plain):
    """Keeps its last feature, with its graph, as an attribute: ``copy.deepcopy`` fails after a forward."""

    def __init__(self):
        super().__init__(4)
        self.bottleneck = None

    def forward(self, x):
        self.bottleneck = Down.forward(self, x)
        return self.up(self.bottleneck)


class PrivateCache(Plain):
    """Keeps features in a private attribute and in a list, and counts its calls."""

    def __init__(self):
        super().__init__(4)
        self._last = None
        self.history = []
        self.calls = 0

    def forward(self, x):
        self._last = Down.forward(self, x)
        self.history.append(self._last)
        self.history[:] = self.history[-2:]
        self.calls += 1
        return self.up(self._last)


class Quantised(Plain):
    """Takes the nearest of its codes, straight through: what is restored shows the codes no gradient (VQModel)."""

    def __init__(self):
        super().__init__(4)
        self.codes = nn.Embedding(32, WIDTHS[-1])

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        places = feature.permute(0, 2, 3, 1)
        nearest = torch.cdist(places.detach().flatten(0, 2), self.codes.weight.detach()).argmin(1)
        codes = self.codes(nearest).view_as(places).permute(0, 3, 1, 2)
        commit = F.mse_loss(feature, codes.detach()) + F.mse_loss(codes, feature.detach())
        return ImageOutput(self.up(feature + (codes - feature).detach()), commit)


class SilentModes(Plain):
    """``train()`` and ``eval()`` return None."""

    def train(self, mode=True):
        super().train(mode)

    def eval(self):
        super().eval()


class Noisy(Plain):
    """Dropout and noise, in eval mode too."""

    def forward(self, *planes):
        feature = F.dropout(Down.forward(self, torch.cat(planes, 1)), 0.3, training=True)
        return self.up(feature + 0.1 * torch.randn_like(feature))


class Recurrent(nn.Module):
    """Runs its encoder several times on its own result."""

    def __init__(self, runs=3):
        super().__init__()
        self.runs = runs
        self.down = Down(4, block)
        self.up = Up()

    def forward(self, x):
        image, mask = x[:, :3], x[:, 3:]
        for _ in range(self.runs):
            image = image * (1 - mask) + self.up(self.down(torch.cat([image, mask], 1))) * mask
        return image
