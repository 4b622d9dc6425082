"""Look into the hosts of a finished study: does the hole show in their features, with and without distillation."""

from __future__ import annotations

import math
import shlex
import sys
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from inpaint_distill import __version__
from inpaint_distill.config import to_dict
from inpaint_distill.errors import ConfigError
from inpaint_distill.files import read_json, write_json, write_text
from inpaint_distill.training.ablation import BARE, WHOLE
from inpaint_distill.training.attention_view import attention_sites, pixel_attention, watch_attention
from inpaint_distill.training.data import EvalSet, load_data
from inpaint_distill.training.evidence import energy, energy_ratio, hole_agreement, sides
from inpaint_distill.training.evidence_table import LevelValues, arm_title, markdown, sentences, summarise
from inpaint_distill.training.explained import (
    explained,
    explained_markdown,
    explained_sentences,
    summarise_explained,
)
from inpaint_distill.training.feature_figures import channel_weights, network_maps
from inpaint_distill.training.scoring import restore
from inpaint_distill.training.trained import TEACHER, features, load_trained, open_study, run_network, same_draws

if TYPE_CHECKING:
    from rich.console import Console

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.training.trained import FinishedStudy, Trained

__all__ = ["inspect_study"]

SCHEMA = 1


def inspect_study(
    folder: Path,
    out: Path,
    *,
    arm: str = WHOLE,
    images: int = 64,
    image: int | None = None,
    pixel: tuple[int, int] | None = None,
    console: Console,
) -> dict[str, Any]:
    """Compare teacher, host alone and host with distillation, in their features and in what they give back.

    Written are ``inspect.json``, ``table.md``, ``features.png`` and, where the host has attention or the arm channel
    weights, ``attention.png`` and ``channel_weights.png``. What is measured are the study's first validation
    images with the holes they are always scored with; every network is in eval mode, and the teacher sees complete
    images.

    Args:
        folder: A study written by ``inpaint-distill boost``.
        out: Where everything is written; created if missing.
        arm: What is compared with the host alone.
        images: How many validation images are measured; fewer where the study has fewer.
        image: Which validation image is drawn, from 0; by default the one with the thickest hole of those measured.
        pixel: Row and column of the hole pixel whose attention is drawn; by default the one deepest in the hole.
        console: Where the table and what was written are printed.

    Returns:
        The content of ``inspect.json``.

    Raises:
        StateError: ``folder`` is no finished study, or its weights were not kept or do not fit.
        ConfigError: No such arm, image or pixel.
    """
    if images < 1:
        raise ConfigError(f"{images} images", "none to measure", "give a number >= 1")
    study = open_study(folder, arm)
    adapter = study.settings.adapter()
    # The validation images do not depend on how many are read for training.
    data = load_data(replace(study.settings, train_images=1)).val
    measured = EvalSet(data.images[:images], data.holes[:images])
    index, place = _choose(data.holes, len(measured.images), image, pixel)
    drawn = EvalSet(data.images[index : index + 1], data.holes[index : index + 1])
    trained = [load_trained(study, *pair, data) for pair in study.pairs]
    levels = summarise([_measure(each, arm, adapter, measured) for each in trained], arm)
    given_back = summarise_explained([_explain(each, arm, adapter, measured) for each in trained])
    result = {
        "schema": SCHEMA,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "versions": {"inpaint_distill": __version__, "torch": torch.__version__},
        "settings": to_dict(study.settings),
        "arm": arm,
        "seeds": [each.seed for each in trained],
        "images": len(measured.images),
        "drawn": {"image": index, "pixel": list(place), "seed": trained[0].seed},
        "levels": levels,
        "explained": given_back,
    }
    result["sentences"] = [*explained_sentences(given_back, arm), *sentences(result)]
    out.mkdir(parents=True, exist_ok=True)
    files = _draw(study, trained[0], arm, adapter, drawn, place, out)
    result["figures"] = [file.name for file in files]
    table = f"{markdown(result)}\n{explained_markdown(given_back, arm)}"
    write_text(out / "table.md", table)
    write_json(out / "inspect.json", result)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    for file in (*files, out / "table.md", out / "inspect.json"):
        console.print(f"written: {file}", markup=False, highlight=False, soft_wrap=True)
    return result


def _choose(
    holes: Tensor, measured: int, image: int | None, pixel: tuple[int, int] | None
) -> tuple[int, tuple[int, int]]:
    """Return the image that is drawn and the pixel whose attention is, or say why they cannot be."""
    count, height, width = holes.shape[0], *holes.shape[2:]
    depth = _depth(holes)
    if image is None:
        image = int(depth[:measured].flatten(1).amax(1).argmax())
    elif not 0 <= image < count:
        raise ConfigError(f"validation image {image}", f"{count} of them", f"give a number from 0 to {count - 1}")
    if pixel is None:
        return image, divmod(int(depth[image].argmax()), width)
    row, column = pixel
    asked = f"the attention of pixel ({row}, {column}) of validation image {image}"
    if not (0 <= row < height and 0 <= column < width):
        raise ConfigError(asked, f"an image of {height} rows and {width} columns", "give a row and a column inside it")
    if not holes[image, 0, row, column]:
        near = tuple(divmod(int(depth[image].argmax()), width))
        raise ConfigError(asked, "a known pixel", f"give one in the hole, such as {near[0]} {near[1]}")
    return image, pixel


def _depth(holes: Tensor) -> Tensor:
    """Count for each pixel how often the hole can be eroded by a pixel before it is lost, (B, 1, H, W).

    Beyond the border of the image there is no hole: what is deep is surrounded by what is known.
    """
    depth, left = torch.zeros_like(holes), holes
    while bool(left.any()):
        depth = depth + left
        left = -F.max_pool2d(-F.pad(left, (1, 1, 1, 1)), 3, stride=1)
    return depth


def _measure(trained: Trained, arm: str, adapter: Adapter, data: EvalSet) -> list[LevelValues]:
    """Return what is measured at each level, per image."""
    stages, networks = trained.stages, trained.networks
    seen = {name: features(net, stages, adapter, data, complete=name == TEACHER) for name, net in networks.items()}
    whole = {name: features(networks[name], stages, adapter, data, complete=True) for name in (BARE, arm)}
    levels = []
    for index, stage in enumerate(stages):
        own = {name: maps[index] for name, maps in seen.items()}
        _, channels, height, width = own[BARE].shape
        known = int(sides(data.holes, (height, width))[1].sum())
        ratio = {name: energy_ratio(feature, data.holes) for name, feature in own.items()}
        values = {"energy_ratio": ratio, "hole_contrast": {name: (each - 1).abs() for name, each in ratio.items()}}
        if known >= channels:  # a map from more channels than cells fits any teacher
            values["hole_agreement"] = {
                name: hole_agreement(own[name], own[TEACHER], data.holes) for name in (BARE, arm)
            }
            values["self_agreement"] = {
                name: hole_agreement(own[name], whole[name][index], data.holes) for name in (BARE, arm)
            }
        levels.append(LevelValues(stage.label, channels, (height, width), stage.stride, known, values))
    return levels


def _explain(trained: Trained, arm: str, adapter: Adapter, data: EvalSet) -> dict[str, Any]:
    """Return what host alone and arm give back of the images."""
    found = {}
    for name in (BARE, arm):
        with same_draws():
            restored = restore(trained.networks[name], adapter, data)
        found[name] = explained(restored, data.images, data.holes)
    return found


def _draw(
    study: FinishedStudy, trained: Trained, arm: str, adapter: Adapter, data: EvalSet, pixel: tuple[int, int], out: Path
) -> list[Path]:
    """Write the figures of one image and of the channel weights; return those that there is something to draw for."""
    image, hole = data.images[0], data.holes[0, 0]
    titles = {TEACHER: "teacher", BARE: "host alone", arm: arm_title(arm)}
    shown = {title: image if name == TEACHER else image * (1 - hole) for name, title in titles.items()}
    maps = {
        titles[name]: features(network, trained.stages, adapter, data, complete=name == TEACHER)
        for name, network in trained.networks.items()
    }
    rows = []
    for index, stage in enumerate(trained.stages):
        drawn, notes = {}, {}
        for title, levels in maps.items():
            drawn[title], ratio = _relative_energy(levels[index], data.holes)
            notes[title] = "no cell on one side" if math.isnan(ratio) else f"hole / outside = {ratio:.2f}"
        _, channels, height, width = maps[titles[BARE]][index].shape
        rows.append((f"{stage.label}\n{channels} x {height} x {width}", drawn, notes))
    scale = "energy / mean outside"
    files = [network_maps(shown, rows, hole, out / "features.png", scale=scale)]
    rows = [
        (label, {titles[name]: each for name, each in found.items()}, {})
        for label, found in _attention(trained, adapter, data, pixel)
    ]
    if rows:
        path = out / "attention.png"
        files.append(network_maps(shown, rows, hole, path, scale="attention weight", pixel=pixel))
    run = read_json(study.file(study.pairs[0][1], "json"), "the result of a run", "repeat the study")
    if points := run.get("channel_weights"):
        files.append(channel_weights(points, out / "channel_weights.png"))
    return files


def _relative_energy(feature: Tensor, hole: Tensor) -> tuple[Tensor, float]:
    """Return the energy (h, w) of one image's feature as a multiple of its mean outside the hole, and the ratio.

    On a level without a known cell the mean over all cells takes its place.
    """
    values = energy(feature)[0, 0]
    known = sides(hole, (feature.shape[2], feature.shape[3]))[1][0, 0]
    unit = values[known].mean() if bool(known.any()) else values.mean()
    return values / unit.clamp_min(1e-30), float(energy_ratio(feature, hole))


def _attention(
    trained: Trained, adapter: Adapter, data: EvalSet, pixel: tuple[int, int]
) -> list[tuple[str, dict[str, Tensor]]]:
    """Return, for each attention layer of the host, its label and the pixel's attention in each network."""
    size = (data.images.shape[2], data.images.shape[3])
    empty = torch.zeros_like(data.holes)
    runs = {
        name: partial(run_network, network, adapter, data.images, empty if name == TEACHER else data.holes)
        for name, network in trained.networks.items()
    }
    sites = attention_sites(trained.networks[BARE], runs[BARE], size, adapter.attention(trained.networks[BARE]))
    seen = {name: watch_attention(network, runs[name], sites) for name, network in trained.networks.items()}
    found = []
    for index, site in enumerate(sites):
        maps = {name: pixel_attention(each[index], site, pixel, size) for name, each in seen.items()}
        laid = {name: each for name, each in maps.items() if each is not None}
        if len(laid) == len(maps):
            found.append((f"{site.label}\n{site.queries} queries", laid))
    return found
