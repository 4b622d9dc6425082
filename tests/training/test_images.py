import os
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inpaint_distill.errors import DataError, InputError
from inpaint_distill.training.images import crop_batch, load_folder, load_splits, read_rgb, split_folder


def photo(width=24, height=20, seed=0):
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def save(path, image=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    (image or photo()).save(path, **options)
    return path


def huge_png(path, side=20_000):
    """A PNG that promises 400 million pixels in a few bytes."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))


def relative(files, folder):
    return {name: {file.relative_to(folder).as_posix() for file in split} for name, split in files.items()}


def test_images_come_in_sorted_order_of_their_relative_paths(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.webp", "c.bmp", "d.tif", "e.jpeg"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    loaded = load_folder(tmp_path, 16)
    assert loaded.names == ["a/b/c.webp", "a/z.JPG", "b.png", "c.bmp", "d.tif", "e.jpeg"]
    assert loaded.images.shape == (6, 3, 20, 20)
    assert loaded.images.dtype == torch.uint8
    assert loaded.skipped == []


def test_the_canvas_is_the_central_square_resized(tmp_path):
    image = photo(60, 40)
    save(tmp_path / "wide.png", image)
    expected = image.crop((10, 0, 50, 40)).resize((20, 20), Image.Resampling.LANCZOS)
    loaded = load_folder(tmp_path, 16).images[0].permute(1, 2, 0).numpy()
    assert np.abs(loaded.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_a_large_jpeg_decoded_at_reduced_scale_looks_the_same(tmp_path):
    image = photo(400, 320)
    save(tmp_path / "large.jpg", image, quality=95)
    expected = image.crop((40, 0, 360, 320)).resize((20, 20), Image.Resampling.LANCZOS)
    loaded = load_folder(tmp_path, 16).images[0].permute(1, 2, 0).numpy()
    assert np.abs(loaded.astype(int) - np.asarray(expected).astype(int)).mean() < 2


def test_a_very_long_image_does_not_blow_up(tmp_path):
    save(tmp_path / "line.png", photo(20_000, 1))
    assert load_folder(tmp_path, 64, canvas=80).images.shape == (1, 3, 80, 80)


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "YCbCr", "1", "I;16", "I"])
def test_every_pixel_mode_becomes_eight_bit_rgb(tmp_path, mode):
    suffix = {"CMYK": ".jpg", "YCbCr": ".tif", "I": ".tif"}.get(mode, ".png")
    gray = photo().convert("L")
    if mode.startswith("I"):
        values = np.asarray(gray).astype(np.uint16 if mode == "I;16" else np.int32) * 257
        image = Image.fromarray(values)
    else:
        image = gray if mode == "L" else photo().convert(mode)
    options = {"quality": 95} if suffix == ".jpg" else {}
    decoded = read_rgb(save(tmp_path / f"image{suffix}", image, **options))
    assert decoded.mode == "RGB"
    expected = gray.convert("RGB") if mode.startswith("I") else image.convert("RGB")
    assert np.abs(np.asarray(decoded).astype(int) - np.asarray(expected).astype(int)).mean() < 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_turn_white(tmp_path, mode):
    clear = Image.new("RGBA", (8, 8), (200, 30, 30, 0))
    if mode == "P":
        path = save(tmp_path / "clear.png", Image.new("P", (8, 8), 0), transparency=b"\x00" * 256)
    else:
        path = save(tmp_path / "clear.png", clear.convert(mode))
    assert np.asarray(read_rgb(path)).min() == 255


def test_exif_orientation_is_applied(tmp_path):
    image = photo(30, 20)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = save(tmp_path / "turned.png", image, exif=exif)
    assert np.array_equal(np.asarray(read_rgb(path)), np.asarray(image.transpose(Image.Transpose.ROTATE_270)))


def test_broken_files_are_named_with_a_reason_and_skipped(tmp_path):
    save(tmp_path / "good.jpg")
    whole = save(tmp_path / "cut.jpg", photo(200, 200)).read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    whole = save(tmp_path / "cut.png", photo(200, 200)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.jpg").write_text("not an image at all")
    huge_png(tmp_path / "bomb.png")
    huge_png(tmp_path / "large.png", side=10_000)  # between Pillow's warning and its error
    save(tmp_path / "moving.webp", photo(), save_all=True, append_images=[photo(seed=1)])
    save(tmp_path / "moving.png", photo(), save_all=True, append_images=[photo(seed=1)])
    save(tmp_path / "pages.tif", photo(), save_all=True, append_images=[photo(seed=1)])
    save(tmp_path / "float.tif", Image.fromarray(np.ones((8, 8), dtype=np.float32)))
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "itself.png").symlink_to(tmp_path / "itself.png")

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_folder(tmp_path, 16)
    assert loaded.names == ["good.jpg"]
    reasons = dict(loaded.skipped)
    assert sorted(reasons) == sorted(path.name for path in tmp_path.iterdir() if path.name != "good.jpg")
    assert "DecompressionBombError" in reasons["bomb.png"]
    assert "DecompressionBombWarning" in reasons["large.png"]
    assert all("animated" in reasons[name] for name in ("moving.webp", "moving.png", "pages.tif"))
    assert all("regular file" in reasons[name] for name in ("pipe.png", "gone.png", "itself.png"))
    assert all(reason for reason in reasons.values())


def test_folder_links_are_followed_once(tmp_path):
    save(tmp_path / "photos" / "a.png")
    save(tmp_path / "elsewhere" / "b.png")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "photos", target_is_directory=True)
    (tmp_path / "photos" / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert load_folder(tmp_path / "photos", 16).names == ["a.png", "linked/b.png"]


def test_unusable_folders_are_errors_that_say_what_to_do(tmp_path):
    with pytest.raises(DataError, match="nothing there"):
        load_folder(tmp_path / "missing", 16)
    with pytest.raises(DataError, match="no file that ends in"):
        load_folder(tmp_path, 16)
    (tmp_path / "a.png").touch()
    with pytest.raises(DataError, match=r"none that can be read \(a\.png"):
        load_folder(tmp_path, 16)
    with pytest.raises(DataError, match="a file"):
        load_folder(tmp_path / "a.png", 16)


def test_a_limit_picks_the_same_files_every_time(tmp_path):
    for index in range(12):
        save(tmp_path / f"{index:02}.png", photo(seed=index))
    whole, first, second = (
        load_folder(tmp_path, 16),
        load_folder(tmp_path, 16, limit=5),
        load_folder(tmp_path, 16, limit=5),
    )
    assert first.names == second.names == sorted(first.names)
    assert len(first.names) == 5
    assert first.names != whole.names[:5]
    chosen = torch.tensor([whole.names.index(name) for name in first.names])
    assert torch.equal(first.images, whole.images[chosen])


@pytest.mark.parametrize(("count", "sizes"), [(3, (1, 1, 1)), (40, (32, 4, 4))])
def test_a_plain_folder_is_shared_by_name(tmp_path, count, sizes):
    for index in range(count):
        save(tmp_path / f"{index}.png")
    split = relative(split_folder(tmp_path), tmp_path)
    assert tuple(len(split[name]) for name in ("train", "val", "test")) == sizes
    assert len(set.union(*split.values())) == count
    assert split == relative(split_folder(tmp_path), tmp_path)


def test_split_folders_are_recognised_and_what_lies_beside_them_is_left_alone(tmp_path):
    for name in (
        "photos-train/a.png",
        "photos-train/deep/b.png",
        "photos_VAL/c.png",
        "photos.test/d.png",
        "masks/e.png",
    ):
        save(tmp_path / name)
    assert relative(split_folder(tmp_path), tmp_path) == {
        "train": {"photos-train/a.png", "photos-train/deep/b.png"},
        "val": {"photos_VAL/c.png"},
        "test": {"photos.test/d.png"},
    }


def test_a_missing_split_is_cut_from_train(tmp_path):
    for index in range(20):
        save(tmp_path / f"train/{index}.png")
    save(tmp_path / "val/v.png")
    split = relative(split_folder(tmp_path), tmp_path)
    assert (len(split["train"]), split["val"], len(split["test"])) == (18, {"val/v.png"}, 2)
    assert split["train"].isdisjoint(split["test"])


def test_folders_that_only_sound_like_splits_are_ordinary(tmp_path):
    for name in ("contest", "festival", "train"):
        for index in range(4):
            save(tmp_path / name / f"{index}.png")
    assert sum(map(len, split_folder(tmp_path).values())) == 12


def test_impossible_splits_are_errors(tmp_path):
    save(tmp_path / "val/a.png")
    with pytest.raises(DataError, match="1 training image"):
        split_folder(tmp_path)
    save(tmp_path / "test/b.png")
    with pytest.raises(DataError, match="none for train"):
        split_folder(tmp_path)
    with pytest.raises(DataError, match="nothing there"):
        split_folder(tmp_path / "missing")


def test_loaded_splits_are_disjoint_and_limited(tmp_path):
    for index in range(40):
        save(tmp_path / f"{index}.png", photo(seed=index))
    splits = load_splits(tmp_path, 16, train_limit=6, eval_limit=2)
    names = [splits.train.names, splits.val.names, splits.test.names]
    assert [len(part) for part in names] == [6, 2, 2]
    assert len(set().union(*names)) == 10


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), canvas=st.integers(4, 12), size=st.integers(1, 12))
def test_every_crop_is_a_window_of_its_image_or_its_mirror(seed, canvas, size):
    images = torch.arange(2 * 3 * canvas * canvas).remainder(251).to(torch.uint8).reshape(2, 3, canvas, canvas)
    indices = torch.tensor([1, 0, 1])
    if size > canvas:
        with pytest.raises(InputError, match="larger canvas"):
            crop_batch(images, indices, size, None)
        return
    generator = torch.Generator().manual_seed(seed)
    crops = crop_batch(images, indices, size, generator)
    assert crops.shape == (3, 3, size, size)
    for crop, index in zip(crops, indices, strict=True):
        windows = images[index].unfold(1, size, 1).unfold(2, size, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, size, size)
        windows = torch.cat([windows, windows.flip(-1)]).float() / 127.5 - 1
        assert (windows == crop).flatten(1).all(1).any()
    assert torch.equal(crops, crop_batch(images, indices, size, torch.Generator().manual_seed(seed)))


def test_crops_without_generator_are_central_and_span_the_range():
    images = torch.zeros(1, 3, 10, 10, dtype=torch.uint8)
    images[:, :, 2:8, 2:8] = 255
    crop = crop_batch(images, torch.tensor([0]), 6, None)
    assert torch.equal(crop, torch.ones(1, 3, 6, 6))
    assert crop_batch(images, torch.tensor([0]), 10, None).min() == -1


def test_random_crops_reach_every_position_and_both_orientations():
    images = torch.arange(16, dtype=torch.uint8).reshape(1, 1, 4, 4).expand(1, 3, 4, 4)
    crops = crop_batch(images, torch.zeros(400, dtype=torch.long), 3, torch.Generator().manual_seed(0))
    assert len(torch.unique(crops, dim=0)) == 8
