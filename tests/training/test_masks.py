import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_distill.errors import ConfigError, DataError
from inpaint_distill.training.masks import BIN_NAMES, RATIO_BINS, free_form, load_mask_folder, mask_batch, ratio_bin


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(12, 48),
    low=st.floats(0, 0.9),
    width=st.floats(0.06, 0.5),
)
def test_every_mask_lies_in_the_asked_range(seed, size, low, width):
    ratio = (low, min(1.0, low + width))
    masks = free_form(4, size, seed=seed, ratio=ratio)
    measured = masks.double().mean(dim=(1, 2, 3))
    assert masks.dtype == torch.bool
    assert masks.shape == (4, 1, size, size)
    assert (measured > 0).all()
    assert (measured >= ratio[0] - 1e-9).all()
    assert (measured < ratio[1]).all()


def test_masks_spread_evenly_over_the_bins():
    assert torch.bincount(ratio_bin(free_form(40, 32, seed=5))).tolist() == [10, 10, 10, 10]


def test_a_mask_depends_on_seed_and_position_alone():
    few, many = free_form(3, 24, seed=7), free_form(6, 24, seed=7)
    assert torch.equal(few, many[:3])
    assert not torch.equal(few, free_form(3, 24, seed=8))
    assert len(torch.unique(many.flatten(1), dim=0)) == 6


def test_strokes_are_thick():
    masks = free_form(16, 64, seed=0).float()
    opened = -torch.nn.functional.max_pool2d(-masks, 3, stride=1, padding=1)
    assert opened.sum() > 0.4 * masks.sum()


@pytest.mark.parametrize("ratio", [(0.5, 0.1), (-0.1, 0.5), (0.5, 1.1), (0.3, 0.301)])
def test_impossible_ratios_are_errors(ratio):
    with pytest.raises(ConfigError, match="wider range"):
        free_form(1, 32, seed=0, ratio=ratio)


def test_ratios_on_an_edge_belong_to_the_bin_above():
    for index, (low, high) in enumerate(RATIO_BINS):
        for ratio, expected in ((low, index), (high - 0.01, index), (high, min(index + 1, 3))):
            mask = torch.zeros(1600)
            mask[: round(ratio * 1600)] = 1
            assert ratio_bin(mask.reshape(1, 1, 40, 40)).item() == expected


def test_ratios_beyond_the_bins_go_to_the_nearest_and_no_hole_to_none():
    masks = torch.zeros(3, 1, 10, 10)
    masks[1, 0, 0, 0] = 1
    masks[2] = 1
    assert ratio_bin(masks).tolist() == [-1, 0, 3]


def test_bin_names_follow_the_bins():
    assert BIN_NAMES == ("10-20", "20-30", "30-40", "40-50")


def white_square(path, side=64, hole=32, mode="L"):
    array = np.zeros((side, side), dtype=np.uint8)
    array[:hole, :hole] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).convert(mode).save(path)


@pytest.mark.parametrize("mode", ["L", "1", "RGB", "P"])
def test_white_is_the_hole(tmp_path, mode):
    white_square(tmp_path / "deep" / "a.png", mode=mode)
    masks = load_mask_folder(tmp_path, 16)
    expected = torch.zeros(1, 1, 16, 16, dtype=torch.bool)
    expected[:, :, :8, :8] = True
    assert torch.equal(masks, expected)


def test_reduction_is_the_box_average_thresholded_at_half(tmp_path):
    array = np.random.default_rng(0).random((64, 64)) < 0.5
    Image.fromarray(array).save(tmp_path / "noise.png")
    share = torch.nn.functional.avg_pool2d(torch.from_numpy(array)[None].double(), 4)
    assert torch.equal(load_mask_folder(tmp_path, 16)[0], share >= 0.5)


def test_useless_masks_are_left_out_and_named(tmp_path):
    white_square(tmp_path / "good.png")
    white_square(tmp_path / "black.png", hole=0)
    white_square(tmp_path / "full.png", hole=64)
    (tmp_path / "broken.png").write_bytes(b"no png")
    with pytest.warns(
        UserWarning, match=r"3 of 4 masks left out: black\.png \(empty\); broken\.png .* full\.png \(full\)"
    ):
        assert len(load_mask_folder(tmp_path, 16)) == 1


def test_a_folder_without_a_usable_mask_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"no file that ends in \.png"):
        load_mask_folder(tmp_path, 16)
    white_square(tmp_path / "black.png", hole=0)
    with pytest.raises(DataError, match=r"none usable \(black\.png \(empty\)\)"):
        load_mask_folder(tmp_path, 16)


def test_mask_batch_picks_in_order_without_generator():
    masks = free_form(4, 16, seed=0)
    picked = mask_batch(masks, torch.tensor([2, 0]), None)
    assert picked.dtype == torch.float32
    assert torch.equal(picked, masks[[2, 0]].float())


def test_mask_batch_draws_all_eight_orientations_and_nothing_else():
    mask = torch.zeros(1, 1, 3, 3, dtype=torch.bool)
    mask[0, 0, 0, 1] = mask[0, 0, 0, 2] = True
    orientations = {
        tuple(turned.flatten().tolist())
        for turns in range(4)
        for turned in (mask.rot90(turns, (2, 3)).float(), mask.rot90(turns, (2, 3)).flip(-1).float())
    }
    drawn = mask_batch(mask, torch.zeros(300, dtype=torch.long), torch.Generator().manual_seed(0))
    assert {tuple(one.flatten().tolist()) for one in drawn} == orientations
    assert len(orientations) == 8
    again = mask_batch(mask, torch.zeros(300, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.equal(drawn, again)
