"""What is known about the U-Net of latent inpainting."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.adapters.diffusers.levels import last_blocks, last_self_attention
from inpaint_distill.adapters.packaged import PackageAdapter, PackageVariant
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.adapter import Variant

__all__ = ["DiffusersLatentAdapter"]

_CALL = partial(Convention, "noisy+hole+image", scale="latent", outputs=(("sample",),))
_TOKENS = 77  # a text as CLIP cuts it


class DiffusersLatentAdapter(PackageAdapter):
    """Adapt the U-Net of latent inpainting (Rombach et al., CVPR 2022).

    It takes nine channels: the noisy latents of the complete image, the hole, and the latents of the emptied image. Its
    output is the noise. In a dry run there is none, the time is 0, and the text says nothing.
    """

    name: ClassVar[str] = "diffusers-inpainting-unet"
    restores: ClassVar[bool] = False
    module: ClassVar[str] = "diffusers"
    networks: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "UNet2DConditionModel": {
            "in_channels": 9,
            "out_channels": 4,
            "layers_per_block": 1,
            "block_out_channels": (16, 32, 32),
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 2,
            "norm_num_groups": 8,
        }
    }
    variants: ClassVar[tuple[Variant, ...]] = (
        PackageVariant(
            source="diffusers",
            kind="UNet2DConditionModel",
            has=("conv_in", "down_blocks", "mid_block"),
            channels=9,
            convention=_CALL(),
        ),
    )

    def convention(self, host: nn.Module) -> Convention:
        """Return how ``host`` is called, with a text of the width that it was made for."""
        super().convention(host)
        return _CALL(extra=partial(_conditions, unwrap(host)))

    def stages(self, host: nn.Module) -> Sequence[str]:
        """Return the last block of each level on the way down."""
        return last_blocks(unwrap(host), "down_blocks")

    def attention(self, host: nn.Module) -> Sequence[str]:
        """Return the last self-attention of each level on the way down."""
        return last_self_attention(unwrap(host), "down_blocks")


def _conditions(host: Any, latents: Tensor) -> HostCall:
    """Return time and text: Stable Diffusion's, and what its XL sizes add."""
    config, images = host.config, len(latents)
    width = config.encoder_hid_dim or config.cross_attention_dim
    if not isinstance(width, int):  # one for each level; the text is the same
        width = width[0]
    # A ramp: between words that are all alike there is nothing to attend to.
    text = torch.linspace(-1, 1, _TOKENS * width, dtype=latents.dtype, device=latents.device).view(1, _TOKENS, width)
    more: dict[str, Any] = {"encoder_hidden_states": text.expand(images, -1, -1)}
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        added = {"text_embeds": latents.new_zeros(images, pooled), "time_ids": latents.new_zeros(images, 6)}
        more["added_cond_kwargs"] = added
    return HostCall((torch.zeros(images, dtype=torch.long, device=latents.device),), more)
