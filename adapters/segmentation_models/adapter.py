"""What is known about the networks of segmentation_models_pytorch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from inpaint_distill.adapters.packaged import PackageAdapter, PackageVariant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from inpaint_distill.host.adapter import Variant

__all__ = ["SegmentationModelsAdapter"]

_SOURCE = "segmentation_models_pytorch"
# Three channels leave no room for the hole: it is painted into the image.
_CALLS: tuple[tuple[int, str, Literal["zero", "white"]], ...] = ((4, "image+hole", "zero"), (3, "image", "white"))
_SMALL: dict[str, Any] = {"encoder_name": "resnet18", "encoder_weights": None, "in_channels": 4, "classes": 3}


class SegmentationModelsAdapter(PackageAdapter):
    """Adapt every decoder of segmentation_models_pytorch, over every encoder of its own or of timm."""

    name: ClassVar[str] = "segmentation-models"
    module: ClassVar[str] = _SOURCE
    networks: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "Unet": {**_SMALL, "decoder_channels": (64, 32, 32, 16, 16)},
        "UnetPlusPlus": {**_SMALL, "decoder_channels": (64, 32, 32, 16, 16)},
        "MAnet": {**_SMALL, "decoder_channels": (64, 32, 32, 16, 16)},
        "Linknet": _SMALL,
        "FPN": _SMALL,
        "PSPNet": _SMALL,
        "PAN": _SMALL,
        "DeepLabV3": _SMALL,
        "DeepLabV3Plus": _SMALL,
        "UPerNet": _SMALL,
        "Segformer": _SMALL,
        "DPT": {**_SMALL, "encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True},
    }
    variants: ClassVar[tuple[Variant, ...]] = tuple(
        PackageVariant(
            source=_SOURCE,
            kind=kind,
            has=("encoder", "decoder", "segmentation_head", *more),
            channels=channels,
            convention=Convention(words, fill=fill, outputs=(image,)),
        )
        for kind in ("DPT", "SegmentationModel")  # the latter is the base of all
        for more, image in ((("classification_head",), (0,)), ((), ()))
        for channels, words, fill in _CALLS
    )

    def stages(self, host: nn.Module) -> Sequence[Stage] | None:
        """Return the features that the encoder hands to the decoder, one for each resolution.

        An encoder puts them out as a list, and so they are known for every one of them; what a decoder does at these
        resolutions is not mistaken for them.
        """
        found = self.variant(host)
        if found is None or found.kind == "DPT":  # its transformer keeps one resolution
            return None
        encoder: Any = unwrap(host).encoder
        # At the end of the list a dilated encoder keeps the resolution. A transformer has no map in place of the first.
        strides = {min(2**index, encoder.output_stride): index for index in range(len(encoder.out_channels))}
        return [Stage(name="encoder", select=(index,)) for index in strides.values() if encoder.out_channels[index] > 4]
