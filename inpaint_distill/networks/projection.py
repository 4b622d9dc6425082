"""The convolutions that bring one feature to the shape of another."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["Projection"]


class Projection(nn.Module):
    """Bring a feature to another's channels and resolution.

    Self-distillation's ``f_l`` (DGI: a convolution; the kernel and the stride are ours) and the student-side
    predictor ``h_l`` (ours, after I-JEPA). Starts as the identity where the channels are equal.

    Args:
        channels: Channels of the input.
        target: Channels of the output.
        stride: Resolution ratio; a 3x3 kernel above 1, else 1x1.
    """

    def __init__(self, channels: int, target: int, stride: int = 1) -> None:
        super().__init__()
        kernel = 1 if stride == 1 else 3
        self.conv = nn.Conv2d(channels, target, kernel, stride=stride, padding=kernel // 2)
        if channels == target:
            nn.init.dirac_(self.conv.weight)
            nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, feature: Tensor, size: tuple[int, int]) -> Tensor:
        """Map (B, C, H, W) to (B, target, *size)."""
        out: Tensor = self.conv(feature)
        return out if out.shape[2:] == size else F.adaptive_avg_pool2d(out, size)
