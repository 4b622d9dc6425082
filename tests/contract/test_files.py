"""Whatever a file holds: a clear error, nothing executed, nothing overwritten."""

import copy
import json
import os
import pickle
import random
import struct
import zlib

import numpy as np
import pytest
import safetensors.torch
import torch
from hosts import ZOO, batch, batches, make_optimizer, same, state_of, train
from PIL import Image
from rich.console import Console

import inpaint_distill
from inpaint_distill.config import Config, from_dict, load_yaml
from inpaint_distill.errors import ConfigError, DataError, InpaintDistillError, StateError
from inpaint_distill.state import read_state, write_state
from inpaint_distill.training.boost import boost
from inpaint_distill.training.images import load_folder, load_splits
from inpaint_distill.training.settings import BoostSettings
from inpaint_distill.training.trained import open_study

TOY = ZOO["batch_norm"]
CONFIG = {"warmup": 0, "teacher": "online", "lookahead": {"every": 2}}


class Trained:
    """A host, a distiller at work on it, and what a failed load may not change."""

    def __init__(self, completion=False, seed=0):
        torch.manual_seed(seed)
        self.host = TOY.build(seed)
        self.optimizer = make_optimizer(self.host)
        image, mask = batch(50)
        config = {**CONFIG, "completion": completion}
        self.distiller = inpaint_distill.attach(self.host, self.optimizer, config=config, image=image, mask=mask)
        train(TOY, self.host, self.optimizer, batches(3, seed), self.distiller)

    def everything(self):
        parts = {name: part.state() for name, part in self.distiller._parts.items()}
        return copy.deepcopy([state_of(self.host, self.optimizer), parts, self.distiller._step])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Files of a distiller and of a host, and another run that they would be loaded into."""
    folder = tmp_path_factory.mktemp("saved")
    trained = Trained(completion=True)
    trained.distiller.save(folder / "distiller")
    inpaint_distill.save_host(trained.host, folder / "host")
    return folder


class Bomb:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def _header(path, change):
    """Rewrite a file's safetensors header."""
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + length])
    change(header)
    new = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(new)) + new + data[8 + length :])


def _claim(path, length):
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])


def _beyond(header):
    name = next(name for name in header if name != "__metadata__")
    header[name]["shape"] = [2**40]
    header[name]["data_offsets"] = [0, 2**42]


def _values(path, change, kind=None):
    """Write the same file with other values, and a checksum that fits."""
    tensors, values = read_state(path)
    change(values)
    write_state(path, tensors, values)


DAMAGES = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights: 1\n"),
    "pickle": lambda path: path.write_bytes(pickle.dumps(Bomb())),
    "torch": lambda path: torch.save(Bomb(), path),
    "foreign": lambda path: safetensors.torch.save_file({"x": torch.ones(1)}, path, {"format": "pt"}),
    "cut in the length": lambda path: path.write_bytes(path.read_bytes()[:5]),
    "cut in the header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "cut in the body": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "huge header": lambda path: _claim(path, 2**60),
    "header beyond the end": lambda path: _claim(path, path.stat().st_size),
    "body beyond the end": lambda path: _header(path, _beyond),
    "future version": lambda path: _header(path, lambda h: h["__metadata__"].update(format="inpaint_distill/3")),
    "no checksum": lambda path: _header(path, lambda h: h["__metadata__"].pop("sha256")),
    "other values": lambda path: _header(path, lambda h: h["__metadata__"].update(values="{}")),
    "no values": lambda path: _header(path, lambda h: h["__metadata__"].pop("values")),
    "values of another kind": lambda path: _values_text(path, "[]"),
    "values nested without end": lambda path: _values_text(path, "[" * 100_000),
    "number without end": lambda path: _values_text(path, "9" * 100_000),
    "no kind": lambda path: _values(path, lambda values: values.clear()),
}


def _values_text(path, text):
    """As the first version wrote it: without a checksum, so that anything may stand there."""
    _header(path, lambda h: h["__metadata__"].update(values=text, format="inpaint_distill/1"))


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
def test_a_damaged_or_foreign_file_is_refused_and_nothing_changes(tmp_path, saved, damage, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for kind in ("distiller", "host"):
        path = tmp_path / kind
        path.write_bytes((saved / kind).read_bytes())
        damage(path)
        content = path.read_bytes() if path.exists() else None
        trained = Trained()
        before = trained.everything()
        with pytest.raises(StateError) as caught:
            trained.distiller.load(path) if kind == "distiller" else inpaint_distill.load_host(trained.host, path)
        assert str(path) in str(caught.value)
        assert len(str(caught.value)) < 2000
        assert same(trained.everything(), before)
        assert (path.read_bytes() if path.exists() else None) == content
    assert not (tmp_path / "executed").exists()


def test_a_flipped_bit_anywhere_is_noticed(tmp_path):
    path = tmp_path / "state"
    tensors = {"a": torch.arange(40.0), "b": torch.ones(3, dtype=torch.bool), "c": torch.ones(5, dtype=torch.bfloat16)}
    values = {"kind": "distiller", "step": 3, "text": "é"}
    write_state(path, tensors, values)
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[position] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                found = read_state(path)
            except StateError:
                continue
            # What is left is what has no meaning, such as the order of the header's entries.
            assert same(dict(sorted(found[0].items())), tensors), (position, bit)
            assert found[1] == values


def test_a_flipped_bit_in_a_real_file_never_gives_other_weights(tmp_path, saved):
    whole, draw = (saved / "host").read_bytes(), random.Random(3)
    host = inpaint_distill.load_host(TOY.build(), saved / "host")
    before = state_of(host)
    for _ in range(100):
        damaged = bytearray(whole)
        damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
        (tmp_path / "host").write_bytes(damaged)
        with pytest.raises(StateError):
            inpaint_distill.load_host(host, tmp_path / "host")
        assert same(state_of(host), before)


def test_a_file_of_the_first_version_is_read(tmp_path):
    safetensors.torch.save_file(
        {"x": torch.ones(2)}, tmp_path / "state", {"format": "inpaint_distill/1", "values": '{"step": 3}'}
    )
    tensors, values = read_state(tmp_path / "state")
    assert same(tensors, {"x": torch.ones(2)})
    assert values == {"step": 3}


def _without(name):
    return lambda values: values["parts"].pop(name)


WRONG = {
    "config is a list": lambda values: values.update(config=[1]),
    "an unknown setting": lambda values: values["config"].update(colour="red"),
    "a setting of another type": lambda values: values["config"].update(warmup="soon"),
    "another setting": lambda values: values["config"].update(warmup=9),
    "step is text": lambda values: values.update(step="3"),
    "no stages": lambda values: values.pop("stages"),
    "stages are numbers": lambda values: values.update(stages=[1, 2]),
    "parts is a list": lambda values: values.update(parts=[]),
    "no teacher": _without("teacher"),
    "no look-ahead": _without("lookahead"),
    "steps of the teacher are text": lambda values: values["parts"]["teacher"].update(steps="many"),
    "the look-ahead is nothing": lambda values: values["parts"].update(lookahead=None),
    "the last step is nothing": lambda values: values["parts"]["lookahead"].update(last=None),
    "no blocks": lambda values: values.pop("injected"),
    "blocks are nothing": lambda values: values.update(injected=None),
    "the hole's place is of another kind": lambda values: values["injected"].update(source={"colour": 1}),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in WRONG.items()])
def test_a_state_with_other_content_is_refused_and_nothing_changes(tmp_path, saved, change):
    path = tmp_path / "distiller"
    path.write_bytes((saved / "distiller").read_bytes())
    _values(path, change)
    trained = Trained(completion=True, seed=1)
    before = trained.everything()
    with pytest.raises(StateError):
        trained.distiller.load(path)
    assert same(trained.everything(), before)


@pytest.mark.parametrize("part", ["terms", "teacher", "companion", "composer", "lookahead"])
def test_a_state_whose_last_part_does_not_fit_leaves_every_part_as_it_was(tmp_path, saved, part):
    tensors, values = read_state(saved / "distiller")
    name = next(name for name in tensors if name.startswith(f"{part}/"))
    tensors[f"{part}/99.colour.x"] = tensors.pop(name)
    write_state(tmp_path / "distiller", tensors, values)
    trained = Trained(completion=True, seed=1)
    before = trained.everything()
    with pytest.raises(StateError):
        trained.distiller.load(tmp_path / "distiller")
    assert same(trained.everything(), before)


BLOCKS = {
    "of an unknown kind": lambda spec: spec["blocks"][-1].update(kind="colour"),
    "without a stage": lambda spec: spec["blocks"][-1].pop("stage"),
    "at no module": lambda spec: spec["blocks"][-1]["stage"].update(name="nothing"),
    "with an unknown setting": lambda spec: spec["blocks"][-1]["stage"].update(colour=1),
    "of a text of channels": lambda spec: spec["blocks"][-1]["stage"].update(channels="8"),
    "of more channels than there is memory": lambda spec: spec["blocks"][-1]["stage"].update(channels=10**9),
    "of other channels": lambda spec: spec["blocks"][-1]["stage"].update(channels=3),
    "one too few": lambda spec: spec["blocks"].pop(),
    "nothing": lambda spec: spec.clear(),
}


@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in BLOCKS.items()])
def test_a_host_whose_blocks_cannot_be_built_stays_without_any(tmp_path, saved, change):
    path = tmp_path / "host"
    path.write_bytes((saved / "host").read_bytes())
    _values(path, lambda values: change(values["injected"]))
    host = TOY.build(1)
    before, hooks = state_of(host), [list(part._forward_hooks) for part in host.modules()]
    with pytest.raises(StateError):
        inpaint_distill.load_host(host, path)
    assert same(state_of(host), before)
    assert [list(part._forward_hooks) for part in host.modules()] == hooks
    assert not list(host._forward_pre_hooks)


def test_weights_of_another_host_are_refused_and_nothing_changes(saved):
    host = ZOO["two_stage"].build()
    before = state_of(host)
    with pytest.raises(StateError, match="host"):
        inpaint_distill.load_host(host, saved / "host")
    assert same(state_of(host), before)


# -- settings ----------------------------------------------------------------------------------------------------------

SETTINGS = {
    "unknown": "colour: red",
    "nested unknown": "cross: {colour: 1}",
    "text for a number": "warmup: soon",
    "number for text": "teacher: 3",
    "list for a number": "warmup: [1]",
    "mapping for a number": "warmup: {a: 1}",
    "number for a mapping": "cross: 3",
    "bool for a number": "warmup: true",
    "not a number": "cross: {weight: .nan}",
    "a list": "- warmup",
    "a text": "warmup",
    "empty": "",
    "number as name": "3: 4",
    "null as name": "~: 4",
    "no YAML": "a: [1",
    "an object": "!!python/object/apply:os.mkdir [executed]",
    "a date that is none": "warmup: 2024-13-45",
    "nested without end": "warmup: " + "[" * 3000,
    "a name twice over": "&a {warmup: *a}",
    "laughs": "\n".join(
        ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
        + ["warmup: *a19"]
    ),
    "laughs in a setting": "warmup:\n"
    + "\n".join(
        ["  a0: &a0 [x, x, x, x, x, x, x, x, x]"]
        + [f"  a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, 20)]
    ),
}


@pytest.mark.parametrize("text", [pytest.param(text, id=name) for name, text in SETTINGS.items()])
@pytest.mark.parametrize("kind", [Config, BoostSettings])
def test_settings_that_are_none_are_named(tmp_path, monkeypatch, kind, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text(text if kind is Config else text.replace("warmup", "steps"))
    with pytest.raises(ConfigError) as caught:
        from_dict(kind, load_yaml(tmp_path / "settings.yaml"))
    assert len(str(caught.value)) < 2000
    assert not (tmp_path / "executed").exists()


# -- studies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", "{", "[]", "3", '{"steps": "many"}', '{"colour": 1}', "[" * 100_000, "\udcff"])
def test_a_study_with_damaged_settings_is_neither_resumed_nor_overwritten(tmp_path, content):
    file = tmp_path / "settings.json"
    file.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InpaintDistillError):
        boost(BoostSettings(), tmp_path, Console(quiet=True), resume=True)
    assert file.read_bytes() == content.encode(errors="surrogateescape")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(InpaintDistillError):
        open_study(tmp_path, "distilled")


@pytest.mark.parametrize(
    "run",
    [
        {"arm": "../../elsewhere", "seed": 0, "steps": 1, "lr": 0.1},
        {"arm": "/etc/passwd", "seed": 0, "steps": 1, "lr": 0.1},
        {"arm": "bare", "seed": "../../0", "steps": 1, "lr": 0.1},
        {"arm": "bare", "seed": 0, "steps": "1/../..", "lr": 0.1},
        {"arm": "bare", "seed": 0, "steps": 1, "lr": "../.."},
        {"arm": ["bare"], "seed": 0, "steps": 1, "lr": 0.1},
        {"arm": "bare"},
        3,
    ],
)
def test_a_result_that_names_files_elsewhere_is_refused(tmp_path, run):
    (tmp_path / "settings.json").write_text("{}")
    (tmp_path / "result.json").write_text(json.dumps({"runs": [run]}))
    with pytest.raises((StateError, ConfigError)):
        open_study(tmp_path, "distilled")


# -- image folders -----------------------------------------------------------------------------------------------------


def photo(size=(24, 20), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(width, height, body=b"", depth=8, kind=2):
    """Write a PNG by hand."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def bad_files(folder):
    """Fill a folder with files that are no usable images; return their names."""
    for name in ("cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.tif", "cut.bmp"):
        photo((200, 200)).save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    for name in ("moving.gif", "moving.png", "moving.webp", "pages.tif"):
        photo().save(folder / name, save_all=True, append_images=[photo(seed=1), photo(seed=2)])
    (folder / "zero.png").touch()
    (folder / "text.jpg").write_text("no image")
    (folder / "bomb.png").write_bytes(png(60_000, 60_000))
    (folder / "nearly.png").write_bytes(png(12_000, 12_000))
    bmp = struct.pack("<2sIHHI", b"BM", 54, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 60_000, 60_000, 1, 24, *[0] * 6)
    (folder / "bomb.bmp").write_bytes(bmp)
    (folder / "bomb.gif").write_bytes(b"GIF89a" + struct.pack("<HHBBB", 60_000, 60_000, 0, 0, 0) + b";")
    (folder / os.fsdecode(b"\xff\x1b[31m.png")).touch()
    return sorted(path.name for path in folder.iterdir())


def test_bad_images_are_named_skipped_and_counted(tmp_path, monkeypatch):
    bad = bad_files(tmp_path)
    photo().save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as many training scripts have it
    loaded = load_folder(tmp_path, 16)
    assert loaded.names == ["good.png"]
    assert len(loaded.skipped) == len(bad)
    names = {name for name, _ in loaded.skipped}
    assert {name for name in bad if name.isascii()} <= names
    assert all(reason for _, reason in loaded.skipped)
    json.dumps(loaded.skipped).encode()
    "".join(name + reason for name, reason in loaded.skipped).encode()


def test_bombs_take_no_memory(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    photo().save(tmp_path / "good.png")
    load_folder(tmp_path, 16)
    bad_files(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_folder(tmp_path, 16)
    # An image at the limit would be 270 MB, a bomb of these 10 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_folder_of_nothing_but_bad_images_is_an_error_that_counts_them(tmp_path):
    bad = bad_files(tmp_path)
    with pytest.raises(DataError, match=f"read {len(bad)} image"):
        load_folder(tmp_path, 16)


def test_a_study_shows_how_many_images_it_skipped_and_which(tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    for seed in range(30):
        photo(seed=seed).save(images / f"{seed}.png")
    bad_files(images)
    skipped = [each for split in vars(load_splits(images, 16)).values() for each in split.skipped]
    console = Console(record=True, width=200, file=open(os.devnull, "w"))  # noqa: SIM115

    class Enough(Exception):
        pass

    def stop(*_):
        raise Enough

    monkeypatch.setattr("inpaint_distill.training.boost._cost", stop)
    with pytest.raises(Enough):
        boost(BoostSettings(data=str(images), size=16, batch=2), tmp_path / "study", console)
    console.file.close()
    shown = console.export_text()
    assert f"{len(skipped)} image file(s) skipped" in shown
    for name, _ in skipped:
        assert name in shown or not name.isprintable()


@pytest.mark.parametrize(
    "make",
    [
        lambda image: image.convert("CMYK"),
        lambda image: image.quantize(256),
        lambda image: image.convert("RGBA"),
    ],
    ids=["CMYK", "palette", "RGBA"],
)
def test_unusual_pixels_keep_their_colours(tmp_path, make):
    image = photo((4, 4)).resize((20, 20), Image.Resampling.BICUBIC)
    changed = make(image)
    changed.save(tmp_path / ("image.jpg" if changed.mode == "CMYK" else "image.png"), quality=95)
    loaded = load_folder(tmp_path, 16).images[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(loaded - np.asarray(image).astype(int)).mean() < 6


@pytest.mark.parametrize("kind", [0, 2, 4, 6], ids=["gray", "RGB", "gray and alpha", "RGBA"])
def test_sixteen_bits_become_eight(tmp_path, kind):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    values = np.random.default_rng(0).integers(0, 2**16, (20, 20, channels))
    if kind in (4, 6):
        values[..., -1] = 2**16 - 1
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "deep.png").write_bytes(png(20, 20, rows, depth=16, kind=kind))
    loaded = load_folder(tmp_path, 16).images[0].permute(1, 2, 0).numpy().astype(int)
    colour = values[..., : channels - (kind in (4, 6))]
    assert np.abs(loaded - colour // 257).max() <= 1


def test_transparency_in_a_palette_is_laid_over_white(tmp_path):
    image = Image.new("P", (20, 20), 0)
    image.putpalette([10, 20, 30] * 256)
    image.save(tmp_path / "clear.png", transparency=b"\0" * 256)
    image.save(tmp_path / "clear.gif", transparency=0)
    assert load_folder(tmp_path, 16).images.min() == 255
