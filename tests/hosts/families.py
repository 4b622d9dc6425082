"""The reference hosts of ``adapters/``, small, in the clothes of the toy zoo."""

from dataclasses import dataclass, field

import pytest

from hosts.adapted import ADAPTED
from hosts.zoo import ZOO, ToyHost
from inpaint_distill import adapters

__all__ = ["EVERY_HOST", "FAMILIES", "SAMPLE", "Family", "FamilyHost"]


@dataclass(frozen=True)
class Family:
    """A small host of a family, and what its real one cannot do either.

    Attributes:
        kwargs: Arguments of ``build``.
        package: What has to be installed.
        sizes: Image sizes that it takes.
        batch: Least number of images in training.
        noisy: It draws random numbers in evaluation too.
        bounded: Its images stay within [-1, 1].
        channels: Channels of an image; 4 where it works on latents.
    """

    kwargs: dict = field(default_factory=dict)
    package: str = "torch"
    sizes: tuple = ((64, 64), (32, 32), (64, 96))
    batch: int = 1
    noisy: bool = False
    bounded: bool = True
    channels: int = 3


FAMILIES = {
    "gated-conv": Family({"width": 8}),
    "contextual-attention": Family({"width": 4}),
    "partial-conv": Family({"width": 4}),
    "unet": Family({"width": 4}),
    "edge-connect": Family({"width": 8}),
    "aot-gan": Family({"width": 8}),
    "lama": Family({"width": 4}),
    "rfr": Family({"width": 4, "iterations": 3}, bounded=False),
    "ctsdg": Family({"width": 4}),
    "mi-gan": Family({"width": 8}, sizes=((64, 64),), bounded=False),
    "mat": Family({"width": 8, "heads": 2}, sizes=((64, 64), (32, 32), (64, 128)), noisy=True, bounded=False),
    "segmentation-models": Family(
        {"encoder_name": "tu-mobilenetv3_small_050"},
        package="segmentation_models_pytorch",
        sizes=((64, 64), (64, 96)),
        bounded=False,
    ),
    "monai": Family(package="monai", bounded=False),
    "diffusers-pixels": Family(package="diffusers", bounded=False),
    "diffusers-inpainting-unet": Family(
        package="diffusers", sizes=((16, 16), (32, 32), (16, 24)), bounded=False, channels=4
    ),
}


class FamilyHost(ToyHost):
    """A host of a family, called through its adapter; ``trait`` is the family's name."""

    def build(self, seed=0):
        pytest.importorskip(FAMILIES[self.trait].package)
        return super().build(seed)

    def call(self, host, image, mask):
        return adapters.get(self.trait).call(host, image, mask)

    @property
    def size(self):
        """Side of the smallest square image that it takes."""
        return min(height for height, width in FAMILIES[self.trait].sizes if height == width)

    @property
    def channels(self):
        return FAMILIES[self.trait].channels

    @property
    def given(self):
        """Leave nothing out but a loss on what is no restored image."""
        return {} if adapters.get(self.trait).restores else {"inpainting_loss": _of_noise}


def _of_noise(output, image, mask):
    return (output.sample - image).abs().mean()


def _host(name):
    return FamilyHost(name, lambda: adapters.get(name).build(**FAMILIES[name].kwargs).train())


EVERY_HOST = {**ZOO, **ADAPTED, **{name: _host(name) for name in FAMILIES}}

# For what is too slow to be tried on every host: one for each way to pass a mask, to put a feature out, to hold state.
SAMPLE = (
    "separate_known",
    "keywords",
    "two_stage",
    "partial_conv",
    "tokens",
    "in_place",
    "batch_norm",
    "hook_spectral_norm",
    "recurrent",
    "gated-conv",
    "contextual-attention",
    "lama",
    "mat",
)
