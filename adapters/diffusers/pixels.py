"""What is known about the networks of diffusers that take pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.adapters.diffusers.levels import last_blocks
from inpaint_distill.adapters.packaged import PackageAdapter, PackageVariant
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.adapter import Variant

__all__ = ["DiffusersPixelAdapter"]

_IMAGE = ("sample",)
_IN_OUT: dict[str, Any] = {"in_channels": 4, "out_channels": 3, "layers_per_block": 1, "norm_num_groups": 8}
_AUTOENCODER: dict[str, Any] = {
    **_IN_OUT,
    "block_out_channels": (16, 32, 32),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
}


def _at_time_zero(image: Tensor) -> HostCall:
    return HostCall((torch.zeros(len(image), dtype=torch.long, device=image.device),))


class DiffusersPixelAdapter(PackageAdapter):
    """Adapt a U-Net or an autoencoder of diffusers that takes image and hole and gives the restored image back."""

    name: ClassVar[str] = "diffusers-pixels"
    module: ClassVar[str] = "diffusers"
    networks: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "AutoencoderKL": _AUTOENCODER,
        "VQModel": {**_AUTOENCODER, "num_vq_embeddings": 64},
        "UNet2DModel": {
            **_IN_OUT,
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        },
    }
    variants: ClassVar[tuple[Variant, ...]] = (
        *(
            PackageVariant(
                source="diffusers",
                kind=kind,
                has=("encoder.down_blocks", "decoder.up_blocks"),
                convention=Convention("image+hole", outputs=(_IMAGE,)),
            )
            for kind in ("AutoencoderKL", "VQModel")
        ),
        PackageVariant(
            source="diffusers",
            kind="UNet2DModel",
            has=("conv_in", "down_blocks", "mid_block"),
            convention=Convention("image+hole", outputs=(_IMAGE,), extra=_at_time_zero),
        ),
    )

    def stages(self, host: nn.Module) -> Sequence[str]:
        """Return the last block of each level on the way down."""
        unet = hasattr(unwrap(host), "down_blocks")
        return last_blocks(unwrap(host), "down_blocks" if unet else "encoder.down_blocks")
