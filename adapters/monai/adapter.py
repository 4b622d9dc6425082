"""What is known about the networks of MONAI."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from inpaint_distill.adapters.packaged import PackageAdapter, PackageVariant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inpaint_distill.host.adapter import Variant
    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.targets import Target
    from inpaint_distill.host.tree import Path

__all__ = ["MonaiAdapter"]


def _variant(
    kind: str,
    *has: str,
    output: Path = (),
    stages: tuple[Target | Stage, ...] | None = None,
    attention: tuple[Target | AttentionSite, ...] | None = (),
) -> PackageVariant:
    convention = Convention("image+hole", outputs=(output,))
    return PackageVariant(source="monai", kind=kind, has=has, convention=convention, stages=stages, attention=attention)


_IN_OUT: dict[str, Any] = {"spatial_dims": 2, "in_channels": 4, "out_channels": 3}


class MonaiAdapter(PackageAdapter):
    """Adapt U-shaped networks of MONAI that take image and hole as four channels."""

    name: ClassVar[str] = "monai"
    module: ClassVar[str] = "monai.networks.nets"
    networks: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "UNet": {**_IN_OUT, "channels": (16, 32, 64, 128), "strides": (2, 2, 2), "num_res_units": 2},
        "BasicUNet": {**_IN_OUT, "features": (16, 16, 32, 64, 64, 16)},
        "BasicUNetPlusPlus": {**_IN_OUT, "features": (16, 16, 32, 64, 64, 16)},
        "AttentionUnet": {**_IN_OUT, "channels": (16, 32, 64, 128), "strides": (2, 2, 2)},
        "DynUNet": {
            **_IN_OUT,
            "kernel_size": (3, 3, 3, 3),
            "strides": (1, 2, 2, 2),
            "upsample_kernel_size": (2, 2, 2),
            "filters": (16, 32, 64, 64),
        },
        "SwinUNETR": {**_IN_OUT, "feature_size": 12},
        "UNETR": {**_IN_OUT, "img_size": 64, "feature_size": 8, "hidden_size": 48, "mlp_dim": 96, "num_heads": 4},
    }
    variants: ClassVar[tuple[Variant, ...]] = (
        _variant("UNet", "model.1.submodule"),
        _variant("AttentionUnet", "model.1.submodule"),
        _variant("BasicUNet", "down_4", stages=("conv_0", "down_[1-4]")),
        _variant("BasicUNetPlusPlus", "conv_4_0", output=(0,), stages=("conv_[0-4]_0",)),
        _variant("DynUNet", "bottleneck", stages=("input_block", "downsamples.[0-9]", "bottleneck")),
        _variant("SwinUNETR", "swinViT", attention=None),
        # Its transformer keeps one resolution; the others are made for the skip connections.
        _variant("UNETR", "vit", stages=("encoder[1-4]", Stage(name="vit", select=(0,))), attention=None),
    )

    def stages(self, host: nn.Module) -> Sequence[Target | Stage] | None:
        """Return the encoder stages of ``host``; two networks hold each level in the one above."""
        found = self.variant(host)
        if found is not None and found.kind in ("UNet", "AttentionUnet"):
            return _nested_stages(unwrap(host))
        return super().stages(host)


def _nested_stages(host: nn.Module) -> list[str]:
    """Name what each level does before it hands over to the next, deepest last; one for each resolution."""
    above, names = "model", []
    while isinstance(level := host.get_submodule(above), nn.Sequential) and "1" in level._modules:
        names.append(f"{above}.0")
        above = f"{above}.1.submodule"
    names.append(above)
    # What is at the resolution of the level above takes its place.
    return [name for name, after in zip(names, [*names[1:], ""], strict=True) if not after or _goes_down(host, after)]


def _goes_down(host: nn.Module, name: str) -> bool:
    first = next(module for module in host.get_submodule(name).modules() if isinstance(module, nn.Conv2d))
    return first.stride[0] > 1
