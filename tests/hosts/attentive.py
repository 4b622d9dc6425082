"""Hosts that differ in where their bottleneck attends, and how it shows."""

import torch
from torch import nn
from torch.nn import functional as F

from hosts.base import WIDTHS, Down, Plain

__all__ = ["Fused", "KeysPutOut", "Linear", "MultiHead", "ReturnedRows", "RootMethod", "SoftmaxModule"]

_WIDTH = WIDTHS[-1]


def _tokens(x):
    return x.flatten(2).mT


class Attentive(Plain):
    """Adds to the bottleneck (B, 16, H/4, W/4) what ``attend`` makes of it."""

    def __init__(self):
        super().__init__(4)

    def forward(self, *planes):
        feature = Down.forward(self, torch.cat(planes, 1))
        return self.up(feature + self.attend(feature))


class Weighing(Attentive):
    """Weighs tokens by products of queries and keys."""

    def __init__(self):
        super().__init__()
        self.query, self.key = nn.Conv2d(_WIDTH, _WIDTH, 1), nn.Conv2d(_WIDTH, _WIDTH, 1)

    def logits(self, x):
        return _tokens(self.query(x)) @ _tokens(self.key(x)).mT / _WIDTH**0.5


class RootMethod(Weighing):
    """Computes rows in a method of the root, which no hook of a layer sees."""

    def attend(self, x):
        return (self.logits(x).softmax(-1) @ _tokens(x)).mT.view_as(x)


class SoftmaxModule(Weighing):
    """Rows are the output of a submodule, then of a dropout."""

    def __init__(self):
        super().__init__()
        self.softmax, self.drop = nn.Softmax(-1), nn.Dropout(0.1)

    def attend(self, x):
        return (self.drop(self.softmax(self.logits(x))) @ _tokens(x)).mT.view_as(x)


class Rows(nn.Module):
    """Returns (feature, rows); the rows (B, N, H, W) look like a map of N channels."""

    def forward(self, logits, x):
        rows = logits.softmax(-1)
        return (rows @ _tokens(x)).mT.view_as(x), rows.mT.unflatten(2, x.shape[2:])


class ReturnedRows(Weighing):
    """Its attention layer returns the rows beside the feature."""

    def __init__(self):
        super().__init__()
        self.attention = Rows()

    def attend(self, x):
        return self.attention(self.logits(x), x)[0]


class RowsAlone(nn.Module):
    """Returns rows (B, N, H, W) of the whole image, and nothing else: the lowest map of the host, as it seems."""

    def forward(self, query, key):
        query, key = F.avg_pool2d(query, 2), F.avg_pool2d(key, 2)
        rows = (_tokens(query) @ _tokens(key).mT / _WIDTH**0.5).softmax(-1)
        return rows.mT.unflatten(2, query.shape[2:])


class KeysPutOut(Weighing):
    """Its rows, at half the resolution of the encoder's last stage, are all that a module of it puts out."""

    def __init__(self):
        super().__init__()
        self.rows = RowsAlone()

    def attend(self, x):
        rows, low = self.rows(self.query(x), self.key(x)).flatten(2).mT, F.avg_pool2d(x, 2)
        return F.interpolate((rows @ _tokens(low)).mT.view_as(low), scale_factor=2)


class Linear(Weighing):
    """Linear attention: a softmax of channels and one of places, and rows of neither."""

    def attend(self, x):
        query, key = _tokens(self.query(x)).softmax(-1), _tokens(self.key(x)).softmax(-2)
        return (query @ (key.mT @ _tokens(x))).mT.view_as(x)


class Fused(Attentive):
    """No rows exist: ``F.scaled_dot_product_attention``, with keys at half the resolution of the queries."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(_WIDTH, 3 * _WIDTH)

    def attend(self, x):
        query, key, value = self.project(_tokens(x)).unflatten(2, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        key, value = (each.unflatten(2, x.shape[2:])[:, :, ::2, ::2].flatten(2, 3) for each in (key, value))
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2).mT.view_as(x)


class MultiHead(Attentive):
    """Attends by ``nn.MultiheadAttention``."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(_WIDTH, 2, batch_first=True)

    def attend(self, x):
        tokens = _tokens(x)
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mT.view_as(x)
