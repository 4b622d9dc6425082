"""Folders of photographs, read once into square uint8 canvases from which crops are drawn."""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image, ImageOps

from inpaint_distill.errors import DataError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt
    from torch import Tensor

__all__ = [
    "LoadedImages",
    "Splits",
    "crop_batch",
    "find_files",
    "load_folder",
    "load_splits",
    "read_rgb",
    "reason_of",
    "refusing_bombs",
    "shown_name",
    "split_folder",
]

Split = Literal["train", "val", "test"]

EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")
# A separator is asked for, so that folders named "festival" or "contest" are no splits.
_SPLIT_NAME = re.compile(r"(?:^|[-_. ])(train|val|test)$", re.IGNORECASE)
_DECODERS = 2
_MOST_PIXELS = 90_000_000  # about where Pillow warns of a decompression bomb: some 270 MB once decoded


@dataclass(frozen=True)
class LoadedImages:
    r"""Images in memory.

    Attributes:
        images: uint8 tensor (N, 3, canvas, canvas), RGB.
        names: Path of each image relative to the folder it was read from.
        skipped: Name and reason of each file that could not be used.

    A byte of a name that is no UTF-8 is written as ``\xff``, so that the names can be printed and written.
    """

    images: Tensor
    names: list[str]
    skipped: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Splits:
    """The three disjoint sets of a study."""

    train: LoadedImages
    val: LoadedImages
    test: LoadedImages


def find_files(folder: Path, extensions: Sequence[str] = EXTENSIONS) -> list[Path]:
    """List the files below ``folder`` with one of ``extensions``, sorted by relative path.

    Linked folders are entered once, so a link that points back to a parent ends the descent.

    Raises:
        DataError: If the folder does not exist or holds no such file.
    """
    if not folder.is_dir():
        found = "a file" if folder.exists() else "nothing there"
        raise DataError(f"read the folder {folder}", found, "give the path of an existing folder")
    files, entered = [], set()
    for root, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(root)
        if real in entered:
            folders.clear()
            continue
        entered.add(real)
        folders.sort()
        files += [Path(root, name) for name in names if name.lower().endswith(tuple(extensions))]
    if not files:
        raise DataError(
            f"read the folder {folder}",
            f"no file that ends in {', '.join(extensions)}",
            "give a folder that has such files in it or below it",
        )
    return sorted(files, key=lambda file: file.relative_to(folder).as_posix())


def read_rgb(path: Path, short_side: int | None = None) -> Image.Image:
    """Decode one still image to 8-bit RGB, upright.

    Transparency is laid over white, 16-bit gray is scaled to 8 bits.

    Args:
        path: The file.
        short_side: If given, a JPEG may be decoded at a reduced scale that keeps the short side at least this long.

    Raises:
        ValueError: If the file is no regular file, is animated or has several pages.
        Exception: Whatever Pillow's decoders raise for a broken file, which is not limited to ``OSError``.
    """
    if not path.is_file():
        raise ValueError("not a regular file")
    with Image.open(path) as image:
        # A photograph of many phones is an MPO: a JPEG followed by a preview or a depth map.
        if image.format != "MPO" and getattr(image, "is_animated", False):
            raise ValueError("animated or of several pages")
        if image.width * image.height > _MOST_PIXELS:  # Pillow's own limit may have been switched off
            raise ValueError(f"{image.width} x {image.height} pixels, more than {_MOST_PIXELS:,}")
        if short_side is not None:
            image.draft(None, (short_side, short_side))
        image.load()
        upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I"):
        gray = np.asarray(upright).astype(np.int64) // 257
        return Image.fromarray(gray.clip(0, 255).astype(np.uint8)).convert("RGB")
    if upright.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if upright.mode in {"RGBA", "LA", "PA", "La", "RGBa"} or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return upright.convert("RGB")


@contextmanager
def refusing_bombs() -> Iterator[None]:
    """Let Pillow refuse images of so many pixels that it would only warn of them."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def reason_of(error: Exception) -> str:
    """Say in one short line why a file could not be read."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def shown_name(file: Path, folder: Path) -> str:
    r"""Return a file's path relative to a folder, with bytes that are no UTF-8 as ``\xff``: it can be printed."""
    return os.fsencode(file.relative_to(folder).as_posix()).decode(errors="backslashreplace")


def load_folder(folder: Path, size: int, *, canvas: int | None = None, limit: int | None = None) -> LoadedImages:
    """Read every image below a folder, cut to its central square and resized to ``canvas`` (Lanczos).

    Args:
        folder: Searched recursively; the order is that of the sorted relative paths.
        size: Side of the crops that will be drawn, in pixels.
        canvas: Side of the stored squares; 1.25 times ``size`` by default, which leaves room for random crops.
        limit: Read at most this many files, chosen by a hash of their relative path.

    Raises:
        DataError: If the folder is missing, empty, or nothing in it can be read.
    """
    folder = Path(folder)
    return _load(folder, find_files(folder), round(size * 1.25) if canvas is None else canvas, limit)


def split_folder(folder: Path) -> dict[Split, list[Path]]:
    """Share the images of a folder among train, val and test; the answer depends on the relative paths alone.

    Sub-folders named ``train``, ``val`` and ``test``, or ending so after a separator (``photos-train``), are the splits
    when two of them are there: what lies beside them is left alone, and a missing ``val`` or ``test`` is cut from
    ``train``. Any other folder is shared 80 / 10 / 10.

    Raises:
        DataError: If a split would be empty, or there are split folders but none for ``train``.
    """
    folder = Path(folder)
    named: dict[str, list[Path]] = {}
    for child in sorted(folder.iterdir()) if folder.is_dir() else []:
        if child.is_dir() and (match := _SPLIT_NAME.search(child.name)):
            named.setdefault(match.group(1).lower(), []).append(child)
    if len(named) < 2:
        splits: dict[str, list[Path]] = {"train": find_files(folder)}
    elif "train" in named:
        splits = {name: [file for child in children for file in find_files(child)] for name, children in named.items()}
    else:
        found = ", ".join(child.name for children in named.values() for child in children)
        raise DataError(f"split {folder}", f"{found}, but none for train", "add a sub-folder named train")

    missing = [name for name in ("test", "val") if name not in splits]
    train = sorted(splits["train"], key=lambda file: _hash(file, folder))
    if len(train) <= len(missing):
        raise DataError(
            f"split {folder} into train, val and test",
            f"{len(train)} training image(s) for {len(missing) + 1} sets",
            "add images: every set needs one at least",
        )
    cut = max(1, round(len(train) / 10))
    for position, name in enumerate(missing):
        splits[name] = train[position * cut : (position + 1) * cut]
    splits["train"] = train[len(missing) * cut :]
    ordered: tuple[Split, ...] = ("train", "val", "test")
    return {name: sorted(splits[name], key=lambda file: file.relative_to(folder).as_posix()) for name in ordered}


def load_splits(
    folder: Path, size: int, *, canvas: int | None = None, train_limit: int | None = None, eval_limit: int | None = None
) -> Splits:
    """Read the three sets of :func:`split_folder`; ``eval_limit`` holds for val and for test each.

    Raises:
        DataError: As :func:`split_folder` and :func:`load_folder` do.
    """
    folder = Path(folder)
    side = round(size * 1.25) if canvas is None else canvas
    files = split_folder(folder)
    return Splits(
        train=_load(folder, files["train"], side, train_limit),
        val=_load(folder, files["val"], side, eval_limit),
        test=_load(folder, files["test"], side, eval_limit),
    )


def crop_batch(images: Tensor, indices: Tensor, size: int, generator: torch.Generator | None) -> Tensor:
    """Cut one crop out of each chosen image.

    Args:
        images: uint8 tensor (N, 3, canvas, canvas).
        indices: Which images, an integer tensor (B,).
        size: Side of the crops.
        generator: Draws the position and the horizontal flip of each crop; ``None`` cuts the centre, unflipped.

    Returns:
        Float tensor (B, 3, size, size) in [-1, 1].

    Raises:
        InputError: If the crops are larger than the canvas.
    """
    canvas, count = images.shape[-1], len(indices)
    room = canvas - size
    if room < 0:
        raise InputError(f"crops of side {size}", f"images of side {canvas}", "load the images with a larger canvas")
    corner = torch.full((2, count), room // 2)
    flip = torch.zeros(count, dtype=torch.bool)
    if generator is not None:
        corner = torch.randint(room + 1, (2, count), generator=generator, device=generator.device)
        flip = torch.rand(count, generator=generator, device=generator.device) < 0.5
    ramp = torch.arange(size, device=corner.device)
    rows = corner[0, :, None] + ramp
    columns = corner[1, :, None] + torch.where(flip[:, None], ramp.flip(0), ramp)
    indices, rows, columns = (index.to(images.device) for index in (indices, rows, columns))
    crops = images[indices[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).to(torch.float32).contiguous().div_(127.5).sub_(1.0)


def _hash(file: Path, folder: Path) -> bytes:
    return hashlib.sha256(file.relative_to(folder).as_posix().encode(errors="surrogateescape")).digest()


def _load(folder: Path, files: list[Path], canvas: int, limit: int | None) -> LoadedImages:
    if limit is not None and limit < len(files):
        chosen = set(sorted(files, key=lambda file: _hash(file, folder))[:limit])
        files = [file for file in files if file in chosen]
    images = torch.empty(len(files), 3, canvas, canvas, dtype=torch.uint8)
    names: list[str] = []
    skipped: list[tuple[str, str]] = []
    # Refused here and not in the threads: the filters of the warnings module are one global list.
    with refusing_bombs(), ThreadPoolExecutor(_DECODERS) as pool:
        for file, square in zip(files, pool.map(lambda file: _square(file, canvas), files), strict=True):
            name = shown_name(file, folder)
            if isinstance(square, str):
                skipped.append((name, square))
            else:
                images[len(names)] = torch.from_numpy(square).permute(2, 0, 1)
                names.append(name)
    if not names:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped[:3])
        raise DataError(
            f"read {len(files)} image(s) in {folder}", f"none that can be read ({reasons})", "give intact still images"
        )
    return LoadedImages(images[: len(names)], names, skipped)


def _square(path: Path, canvas: int) -> npt.NDArray[np.uint8] | str:
    """Return the central square as (canvas, canvas, 3), or the reason why there is none."""
    try:
        image = read_rgb(path, short_side=2 * canvas)
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error and more
        return reason_of(error)
    side = min(image.size)
    left, top = (image.width - side) / 2, (image.height - side) / 2
    # The box keeps a very long image from being blown up outside the square.
    box = (left, top, left + side, top + side)
    square = image.resize((canvas, canvas), Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    return np.array(square, dtype=np.uint8)
