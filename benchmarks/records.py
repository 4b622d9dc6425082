"""The hosts that the benchmarks of this folder run on: those of this package, of the package index, and any others.

A file of records adds models that are cloned by hand; it defines ``RECORDS``, a dict by name of dicts with

    source     where it is from
    build      () -> module; ``build_small`` may be a quicker one, for training
    call       (module, image, hole) -> its output; image (B, 3, H, W) in [-1, 1], hole 1 in the hole
    select     its output -> the restored image (B, 3, H, W) in [-1, 1]
    given      (image, hole) -> what loss() is given, where that is something else than these
    loss       (output, image, mask) -> what the look-ahead minimises, where no restored image is put out
    size       side of the image; ``batch`` images
    encoders   its encoders by name, each the stages from shallow to deep: a name, or (name, path), or (name, paths)
    wanted     which of the encoders are right
    attention  names of the modules that hold attention between places of the image
"""

from __future__ import annotations

import runpy
from typing import TYPE_CHECKING, Any

import torch

import inpaint_distill
from inpaint_distill import adapters
from inpaint_distill.errors import InpaintDistillError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["load_records", "picture"]


def load_records(files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """Return every record, those of the files last."""
    records = {**family_records(), **package_records()}
    for file in files:
        added = runpy.run_path(str(file))["RECORDS"]
        records |= {name: {**record, "group": "records given"} for name, record in added.items()}
    return records


def picture(record: dict[str, Any], batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return smooth random images and a hole for a record."""
    generator = torch.Generator().manual_seed(seed)
    size = record["size"]
    coarse = torch.rand(batch, record.get("channels", 3), 7, 7, generator=generator) * 2 - 1
    hole = torch.zeros(batch, 1, size, size)
    hole[:, :, size // 4 : size // 2, size // 4 : 3 * size // 4] = 1
    return torch.nn.functional.interpolate(coarse, (size, size), mode="bilinear"), hole


def family_records() -> dict[str, dict[str, Any]]:
    """Return a record for each family that this package can build and whose stages its adapter names."""
    found: dict[str, dict[str, Any]] = {}
    for name, adapter in adapters.families().items():
        try:
            host = adapter.build()
        except InpaintDistillError:
            continue  # its package is not installed
        if host is None or adapter.stages(host) is None:
            continue
        unpack = adapter.convention(host).unpack
        found[f"family {name}"] = {
            "source": f"inpaint_distill {inpaint_distill.__version__}",
            "build": adapter.build,
            "call": lambda m, image, hole, adapter=adapter: adapter.convention(m).pack(image, hole).run(m),
            "select": lambda output, unpack=unpack: unpack(output)[-1],
            "size": 64,
            "batch": 2,
            "channels": 4 if adapter.takes_latents(host) else 3,
            "adapter": adapter,
            "group": "families of this package",
        }
    return found


def package_records() -> dict[str, dict[str, Any]]:
    """Return records of models on the package index, whatever adapter knows them."""
    found: dict[str, dict[str, Any]] = {}

    def concatenated(m: nn.Module, image: Tensor, hole: Tensor) -> Any:
        return m(torch.cat([image * (1 - hole), hole], 1))

    def add(name: str, source: str, build: Any, stages: list[Any], attention: tuple[str, ...] = ()) -> None:
        found[name] = {
            "source": source,
            "build": build,
            "call": concatenated,
            "select": lambda output: getattr(output, "sample", output),
            "size": 64,
            "batch": 2,
            "encoders": {"main": stages},
            "wanted": ["main"],
            "attention": list(attention),
            "group": "models of the package index",
        }

    try:
        import segmentation_models_pytorch as smp

        source = f"segmentation_models_pytorch {smp.__version__}"

        def unet(encoder: str, **kwargs: Any) -> Any:
            return lambda: smp.Unet(encoder, encoder_weights=None, in_channels=4, classes=3, **kwargs)

        layers = ["encoder.relu", *(f"encoder.layer{level}" for level in range(1, 5))]
        add("smp Unet resnet18", source, unet("resnet18"), layers)
        swin = [f"encoder.model.layers_{level}" for level in range(4)]
        add("smp Unet swin_tiny", source, unet("tu-swin_tiny_patch4_window7_224", img_size=64), swin, tuple(swin))
    except ImportError:
        pass
    try:
        import monai
        from monai.networks.nets import UNet

        add(
            "monai UNet",
            f"monai {monai.__version__}",
            lambda: UNet(2, 4, 3, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2),
            ["model.0", "model.1.submodule.0", "model.1.submodule.1.submodule.1.submodule"],
        )
    except ImportError:
        pass
    try:
        import diffusers

        def autoencoder() -> nn.Module:
            return diffusers.AutoencoderKL(
                in_channels=4,
                out_channels=3,
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(32, 64, 64),
                layers_per_block=1,
                latent_channels=4,
                norm_num_groups=8,
            )

        add(
            "diffusers AutoencoderKL",
            f"diffusers {diffusers.__version__}",
            autoencoder,
            ["encoder.down_blocks.0.resnets.0", "encoder.down_blocks.1.resnets.0", "encoder.down_blocks.2"],
            ("encoder.mid_block.attentions.0", "decoder.mid_block.attentions.0"),
        )
    except ImportError:
        pass
    return found
