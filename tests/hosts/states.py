"""Hosts that keep state, overwrite their features or are not deterministic."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm

from hosts.base import Down, Plain, Up, block

__all__ = [
    "BatchNorm",
    "CachedTensor",
    "DataSpectralNorm",
    "HookSpectralNorm",
    "InPlace",
    "Noisy",
    "PrivateCache",
    "Recurrent",
    "SharedActivation",
    "SilentModes",
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
    """Runs its encoder three times on its own result."""

    def __init__(self):
        super().__init__()
        self.down = Down(4, block)
        self.up = Up()

    def forward(self, x):
        image, mask = x[:, :3], x[:, 3:]
        for _ in range(3):
            image = image * (1 - mask) + self.up(self.down(torch.cat([image, mask], 1))) * mask
        return image
