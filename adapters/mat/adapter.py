"""What is known about the MAT family."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.adapters.mat.network import MATGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.targets import Target

__all__ = ["MATAdapter"]

_RELEASED_LATENT = 512
_FIRST = "synthesis.first_stage"
# The last attention before each down-sampling, and the last at the lowest resolution.
_ATTENTION = tuple(f"{_FIRST}.tran.{stage}.blocks.{block}.attn" for stage, block in ((0, 1), (1, 2), (2, 3)))


def _latent(image: Tensor, size: int) -> Tensor:
    """Return the same latent (B, size) every time: a family is called alike for the host and for the teacher."""
    return _drawn(image.shape[0], size, image.device, image.dtype)


@cache  # a copy to the device at every call would wait for it, and keep a step from being recorded as a CUDA graph
def _drawn(count: int, size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(mode=False):  # it may be asked for in a validation first, and trained with later
        return torch.randn(count, size, generator=torch.Generator().manual_seed(0)).to(device, dtype)


def _released(image: Tensor) -> HostCall:
    return HostCall((_latent(image, _RELEASED_LATENT), None), {"noise_mode": "const"})


def _ours(image: Tensor) -> HostCall:
    return HostCall((_latent(image, MATGenerator.latent),))


# The authors' own and that of iopaint: the same modules, the same call.
_FENGLINGLWB = Variant(
    source="fenglinglwb/MAT",
    kind="Generator",
    has=(f"{_FIRST}.conv_first", f"{_FIRST}.tran.4.blocks.1.attn.softmax", "synthesis.enc", "mapping.fc7"),
    convention=Convention("image", "known", extra=_released),
    attention=_ATTENTION,
)
_OURS = Variant(
    source="inpaint_distill",
    kind="MATGenerator",
    has=("head.1", "body.2.blocks.1.attention", "mapping", "refine"),
    convention=Convention("image", "known", outputs=((1,), (0,)), extra=_ours),
    stages=(
        *(Stage(name=f"head.{index}", select=(0,), mask=(1,)) for index in range(2)),
        *(Stage(name=f"body.{index}", select=(0,), layout="tokens") for index in range(2)),
    ),
    attention=("body.0.blocks.1.attention", "body.1.blocks.1.attention"),
)


class MATAdapter(Adapter):
    """Adapt the mask-aware transformer (Li et al., CVPR 2022).

    Tapped is the first stage down to its lowest resolution: convolutions that put out (feature, mask), and transformer
    stages that put out (tokens, size, mask). The mask is 1 where the image is KNOWN. Features are mixed with noise in
    evaluation too, so that two runs differ.
    """

    name: ClassVar[str] = "mat"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _FENGLINGLWB)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`MATGenerator`, by default one that trains on a CPU at 64 px."""
        return MATGenerator(**{"width": 24, "heads": 4, **kwargs})

    def stages(self, host: nn.Module) -> Sequence[Target | Stage] | None:
        """Return the stages; in the released code, one convolution for each resolution above that of the tokens."""
        found = self.variant(host)
        if found is None or found.stages is not None:
            return found.stages if found else None
        # The last of these convolutions comes to the resolution of the first transformer stage.
        halvings = len(list(unwrap(host).get_submodule(f"{_FIRST}.enc_conv").children()))
        convolutions = [f"{_FIRST}.conv_first", *(f"{_FIRST}.enc_conv.{index}" for index in range(halvings - 1))]
        return (
            *(Stage(name=name, select=(0,), mask=(1,)) for name in convolutions),
            *(Stage(name=f"{_FIRST}.tran.{index}", select=(0,), layout="tokens") for index in range(3)),
        )
