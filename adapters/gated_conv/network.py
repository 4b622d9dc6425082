"""DeepFill v2: gated convolutions in the two-stage layout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inpaint_distill.adapters.contextual_attention.two_stage import TwoStageGenerator
from inpaint_distill.adapters.gated_conv.layers import GatedConv
from inpaint_distill.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["GatedConvGenerator"]


class GatedConvGenerator(TwoStageGenerator):
    """Inpaint with gated convolutions: DeepFill v2 (Yu et al., ICCV 2019). The discriminator is not included.

    Args:
        width: Channels of the first level's convolution, half of them features and half gates, as the released
            model counts them; its width is 48. A multiple of 4.
        dilations: Dilations of the bottleneck.

    Raises:
        ConfigError: If ``width`` is not a positive multiple of 4.
    """

    def __init__(self, width: int = 48, dilations: Sequence[int] = (2, 4, 8, 16)) -> None:
        if width < 4 or width % 4:
            raise ConfigError(f"width={width}", "not a positive multiple of 4", "use 4, 8, 12, ...")
        super().__init__(width // 2, dilations, GatedConv, torch.tanh)
