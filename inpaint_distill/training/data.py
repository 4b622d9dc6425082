"""The images and masks of a study, fixed before the first run: every arm and seed draws from the same ones."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inpaint_distill.training.images import crop_batch, load_splits
from inpaint_distill.training.masks import free_form, load_mask_folder, mask_batch
from inpaint_distill.training.scenes import dead_leaves

if TYPE_CHECKING:
    from torch import Tensor

    from inpaint_distill.training.settings import BoostSettings

__all__ = ["Batches", "EvalSet", "StudyData", "load_data"]

_TRAIN_MASKS = 1000
_SCENES = {"train": 3000, "val": 200, "test": 400}


@dataclass(frozen=True)
class EvalSet:
    """Images, each with the mask it is always scored with.

    Attributes:
        images: (N, 3, size, size) in [-1, 1].
        holes: (N, 1, size, size), 1 = hole.
    """

    images: Tensor
    holes: Tensor


@dataclass(frozen=True)
class StudyData:
    """All pixels of a study.

    Attributes:
        source: What they are, in words.
        train: uint8 (N, 3, canvas, canvas), larger than the crops.
        masks: Training masks (M, 1, size, size), 1 = hole; none of them is used for scoring.
        val: For tuning and curves.
        test: Scored once per run, at its end.
        skipped: Files that could not be used, and why.
    """

    source: str
    train: Tensor
    masks: Tensor
    val: EvalSet
    test: EvalSet
    skipped: tuple[tuple[str, str], ...] = ()

    def share(self) -> None:
        """Move the pixels to shared memory, for other processes."""
        for tensor in self._pixels():
            tensor.share_memory_()  # type: ignore[no-untyped-call]

    def checksum(self) -> str:
        """Return the SHA-256 of all images and masks, in their order."""
        found = hashlib.sha256()
        for tensor in self._pixels():
            found.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            found.update(tensor.numpy().tobytes())
        return found.hexdigest()

    def _pixels(self) -> tuple[Tensor, ...]:
        return self.train, self.masks, self.val.images, self.val.holes, self.test.images, self.test.holes


def load_data(settings: BoostSettings) -> StudyData:
    """Load or make what a study trains and scores on.

    Raises:
        DataError: A folder is missing, empty, or holds nothing usable.
    """
    size = settings.size
    skipped: tuple[tuple[str, str], ...] = ()
    if settings.data is None:
        counts = {"train": settings.train_images or _SCENES["train"]}
        counts |= {name: min(_SCENES[name], settings.eval_images or _SCENES[name]) for name in ("val", "test")}
        canvas = {"train": round(size * 1.25), "val": size, "test": size}
        images = {
            name: dead_leaves(count, canvas[name], seed=seed)
            for seed, (name, count) in enumerate(counts.items(), start=1)
        }
        source = "dead leaves (synthetic)"
    else:
        limit = settings.eval_images
        splits = load_splits(Path(settings.data), size, train_limit=settings.train_images, eval_limit=limit)
        images = {"train": splits.train.images, "val": splits.val.images, "test": splits.test.images}
        skipped = tuple(each for split in (splits.train, splits.val, splits.test) for each in split.skipped)
        source = "folder"
    train_masks, eval_masks = _masks(settings, len(images["val"]) + len(images["test"]))
    count = len(images["val"])
    holes = mask_batch(eval_masks, torch.arange(count + len(images["test"])) % len(eval_masks), None)
    return StudyData(
        source=source,
        train=images["train"],
        masks=train_masks,
        val=EvalSet(_centre(images["val"], size), holes[:count]),
        test=EvalSet(_centre(images["test"], size), holes[count:]),
        skipped=skipped,
    )


def _masks(settings: BoostSettings, count: int) -> tuple[Tensor, Tensor]:
    """Return training masks and evaluation masks, which do not overlap."""
    if settings.masks is None:
        return (
            free_form(_TRAIN_MASKS, settings.size, seed=11),
            free_form(count, settings.size, seed=12),
        )
    masks = load_mask_folder(Path(settings.masks), settings.size)
    order = torch.randperm(len(masks), generator=torch.Generator().manual_seed(13))
    held_out = max(1, min(len(masks) // 4, count))
    return masks[order[held_out:]], masks[order[:held_out]]


def _centre(images: Tensor, size: int) -> Tensor:
    return crop_batch(images, torch.arange(len(images)), size, None)


class Batches:
    """The endless sequence of batches of one seed: order, crops, flips and masks depend on the seed alone.

    Args:
        data: What to draw from.
        size: Side of the crops.
        batch: Images per batch.
        seed: Seed of the sequence.
    """

    def __init__(self, data: StudyData, size: int, batch: int, seed: int) -> None:
        self.data = data
        self.size = size
        self.batch = batch
        self.generator = torch.Generator().manual_seed(seed)
        self.order = torch.empty(0, dtype=torch.long)

    def draw(self) -> tuple[Tensor, Tensor]:
        """Return the next images (B, 3, size, size) in [-1, 1] and holes (B, 1, size, size)."""
        while len(self.order) < self.batch:
            self.order = torch.cat([self.order, torch.randperm(len(self.data.train), generator=self.generator)])
        indices, self.order = self.order[: self.batch], self.order[self.batch :]
        images = crop_batch(self.data.train, indices, self.size, self.generator)
        chosen = torch.randint(len(self.data.masks), (self.batch,), generator=self.generator)
        return images, mask_batch(self.data.masks, chosen, self.generator)

    def state(self) -> dict[str, Tensor]:
        """Return where the sequence stands."""
        return {"generator": self.generator.get_state(), "order": self.order}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go back to where a sequence stood."""
        self.generator.set_state(state["generator"])
        self.order = state["order"]
