"""Real photographs and masks, where a folder of them lies beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest

from inpaint_distill.training.images import load_splits
from inpaint_distill.training.masks import load_mask_folder, ratio_bin

FOLDER = Path(__file__).resolve().parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="no photographs beside the checkout (../shared/data)")


def test_the_three_sets_of_photographs_are_found_and_read():
    splits = load_splits(FOLDER, 32, train_limit=20, eval_limit=5)
    assert [len(split.images) for split in (splits.train, splits.val, splits.test)] == [20, 5, 5]
    assert splits.train.images.shape[1:] == (3, 40, 40)
    assert not splits.train.skipped
    for split, name in ((splits.train, "train"), (splits.val, "val"), (splits.test, "test")):
        assert all(name in file for file in split.names)


def test_the_masks_lie_in_the_bins_that_their_folders_name():
    for index, name in enumerate(("10-20", "20-30", "30-40", "40-50")):
        bins = ratio_bin(load_mask_folder(FOLDER / "masks" / name, 256))
        assert (bins == index).all()
