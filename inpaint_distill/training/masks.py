"""Holes: free-form strokes drawn from a seed, or a folder of masks; 1 = hole, 0 = known."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageDraw

from inpaint_distill.errors import ConfigError, DataError
from inpaint_distill.training.images import find_files, read_rgb, reason_of, refusing_bombs, shown_name

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import Tensor

    Point = npt.NDArray[np.float64]

__all__ = ["BIN_NAMES", "RATIO_BINS", "free_form", "load_mask_folder", "mask_batch", "ratio_bin"]

RATIO_BINS = ((0.1, 0.2), (0.2, 0.3), (0.3, 0.4), (0.4, 0.5))
BIN_NAMES = tuple(f"{round(100 * low)}-{round(100 * high)}" for low, high in RATIO_BINS)


def free_form(count: int, size: int, *, seed: int, ratio: tuple[float, float] = (0.1, 0.5)) -> Tensor:
    """Draw brush-stroke masks, spread evenly over four equal parts of the range of hole ratios.

    A stroke is a walk whose direction swings back and forth, drawn with a thick round brush (free-form masks as
    described in DeepFill v2, Yu et al., ICCV 2019). Vertices are added until the ratio drawn for this mask is reached;
    a vertex that goes beyond the part of the range is taken back and drawn again, finer (ours).

    Args:
        count: How many masks; mask i depends on ``seed`` and i alone.
        size: Side in pixels.
        seed: Non-negative.
        ratio: Hole ratio, lowest (included) and highest (excluded); the default range has the parts ``RATIO_BINS``.

    Returns:
        Boolean tensor (count, 1, size, size).

    Raises:
        ConfigError: If the range is empty, not within [0, 1], or narrower than a few pixels.

    >>> masks = free_form(8, 32, seed=0)
    >>> ratio_bin(masks).tolist()
    [0, 1, 2, 3, 0, 1, 2, 3]
    """
    low, high = ratio
    area = size * size
    if not (0 <= low < high <= 1 and (high - low) * area >= 8):
        raise ConfigError(
            f"hole ratios {ratio} at size {size}", "no four parts with pixels in them", "give a wider range in [0, 1]"
        )
    # In whole pixels, where 0.3 is 0.3; the small number takes back the rounding of the product.
    edges = [math.ceil((low + (high - low) * part / 4) * area - 1e-6) for part in range(5)]
    masks = np.empty((count, 1, size, size), dtype=bool)
    for index in range(count):
        part = index % 4
        rng = np.random.default_rng([seed, index])
        masks[index, 0] = _strokes(rng, size, max(1, edges[part]), edges[part + 1])
    return torch.from_numpy(masks)


def _strokes(rng: np.random.Generator, size: int, lowest: int, limit: int) -> npt.NDArray[np.bool_]:
    """Draw strokes until at least ``lowest`` and fewer than ``limit`` pixels are covered."""
    goal = int(rng.integers(lowest, limit))
    canvas, fine, left = Image.new("L", (size, size)), 1.0, 0
    while _covered(canvas) < goal:
        if left == 0:
            left = int(rng.integers(4, 12))
            point = rng.uniform(0, size, 2)
            brush = rng.uniform(0.05, 0.16) * size
            mean_angle, swing = rng.uniform(0, 2 * math.pi), rng.uniform(math.pi / 5, math.pi / 2)
        left -= 1
        turn = swing if left % 2 else -swing
        angle = mean_angle + turn + rng.uniform(-math.pi / 8, math.pi / 8)
        length = max(0.0, rng.normal(1, 0.5)) * size * math.sqrt(2) / 8 * fine
        end = np.clip(point + length * np.array([math.cos(angle), math.sin(angle)]), 0, size - 1)
        attempt = canvas.copy()
        _segment(ImageDraw.Draw(attempt), point, end, brush * fine)
        if _covered(attempt) < limit:
            canvas, point = attempt, end
        else:
            fine, left = fine * 0.7, 0
    return np.asarray(canvas) > 0


def _covered(canvas: Image.Image) -> int:
    return canvas.histogram()[255]


def _segment(draw: ImageDraw.ImageDraw, start: Point, end: Point, width: float) -> None:
    (x0, y0), (x1, y1) = start, end
    draw.line((x0, y0, x1, y1), fill=255, width=max(1, round(width)))
    for x, y in ((x0, y0), (x1, y1)):
        draw.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)


def load_mask_folder(folder: Path, size: int) -> Tensor:
    """Read every PNG below a folder as a mask, white = hole.

    The central square is box-reduced to ``size`` and thresholded at 1/2. Masks that end up empty or full and files
    that cannot be read are left out, with one warning that counts and names them all.

    Returns:
        Boolean tensor (N, 1, size, size), in the order of the sorted relative paths.

    Raises:
        DataError: If the folder is missing, has no PNG, or no usable mask.
    """
    folder = Path(folder)
    files = find_files(folder, (".png",))
    masks, left_out = [], []
    with refusing_bombs():
        for file in files:
            mask = _read_mask(file, size)
            if isinstance(mask, str):
                left_out.append(f"{shown_name(file, folder)} ({mask})")
            else:
                masks.append(torch.from_numpy(mask))
    if not masks:
        found = f"{len(files)} file(s), none usable ({'; '.join(left_out[:5])})"
        raise DataError(f"masks of size {size} from {folder}", found, "give PNG masks that are white in the hole")
    if left_out:
        warnings.warn(f"{len(left_out)} of {len(files)} masks left out: {'; '.join(left_out)}", stacklevel=2)
    return torch.stack(masks)[:, None]


def _read_mask(file: Path, size: int) -> npt.NDArray[np.bool_] | str:
    """Return a mask (size, size), or the reason why there is none."""
    try:
        image = read_rgb(file).convert("L")
    except Exception as error:  # as in images.py: a decoder may raise anything
        return reason_of(error)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    box = (left, top, left + side, top + side)
    mask = np.asarray(image.resize((size, size), Image.Resampling.BOX, box=box)) >= 128
    if mask.any() and not mask.all():
        return mask
    return "full" if mask.any() else "empty"


def mask_batch(masks: Tensor, indices: Tensor, generator: torch.Generator | None) -> Tensor:
    """Pick masks as floats, each turned into one of its eight flips and rotations if a generator is given.

    Args:
        masks: (N, 1, size, size), bool or uint8.
        indices: Which masks, an integer tensor (B,).
        generator: Draws the orientations; ``None`` leaves the masks as they are.

    Returns:
        Float tensor (B, 1, size, size) of zeros and ones.
    """
    picked = masks[indices.to(masks.device)].to(torch.float32)
    if generator is None:
        return picked
    coins = torch.rand(3, len(indices), 1, 1, 1, generator=generator, device=generator.device) < 0.5
    coins = coins.to(masks.device)
    picked = torch.where(coins[0], picked.flip(-1), picked)
    picked = torch.where(coins[1], picked.flip(-2), picked)
    return torch.where(coins[2], picked.mT, picked)


def ratio_bin(mask: Tensor) -> Tensor:
    """Return the index into ``RATIO_BINS`` of each mask's hole ratio.

    Args:
        mask: (B, 1, H, W), 1 = hole.

    Returns:
        Integer tensor (B,); ratios beyond the bins belong to the first and the last, an empty hole is -1.
    """
    ratio = mask.to(torch.float64).mean(dim=(1, 2, 3))
    edges = torch.tensor([low for low, _ in RATIO_BINS[1:]], dtype=torch.float64, device=mask.device)
    return torch.where(ratio > 0, torch.bucketize(ratio, edges, right=True), -1)
