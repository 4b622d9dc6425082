"""Whatever a file holds: a clear error, nothing executed, nothing overwritten."""

import concurrent.futures
import copy
import json
import os
import pickle
import random
import re
import shutil
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
from inpaint_distill.training import boost as boost_module
from inpaint_distill.training import pool as pool_module
from inpaint_distill.training.boost import boost
from inpaint_distill.training.data import load_data
from inpaint_distill.training.images import load_folder, load_splits
from inpaint_distill.training.kept import DISTILLER, HOST, IMAGES, is_finished, kept_file
from inpaint_distill.training.loop import Trainer
from inpaint_distill.training.masks import load_mask_folder
from inpaint_distill.training.settings import BoostSettings, Run
from inpaint_distill.training.trained import load_trained, open_study

TOY = ZOO["batch_norm"]
CONFIG = {"warmup": 0, "teacher": "online", "lookahead": {"every": 2}}


class Trained:
    """A host, a distiller at work on it, and what a failed load may not change."""

    def __init__(self, completion=False, seed=0):
        torch.manual_seed(seed)
        self.host = TOY.build(seed)
        self.optimizer = make_optimizer(self.host)
        image, mask = batch(50)
        levels = {"completion_levels": (0,)} if completion == "after" else {}
        config = {**CONFIG, "completion": bool(completion), **levels}
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
    inpaint_distill.save_host(Trained(completion="after").host, folder / "host-after")
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
    "another teacher": lambda values: values.update(teacher="frozen"),
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
AT_INPUT = {
    "of another kind": lambda spec: spec["image"].update(kind="fusion"),
    "of no channels": lambda spec: spec["image"].update(channels=[]),
    "of a text of channels at the input": lambda spec: spec["image"].update(channels="012"),
    "of other channels at the input": lambda spec: spec["image"].update(channels=[0, 1]),
    "in no argument": lambda spec: spec["image"].pop("path"),
    "with an unknown setting at the input": lambda spec: spec["image"].update(colour=1),
    "none at the input": lambda spec: spec.update(image=None),
    "one more": lambda spec: spec["blocks"].append({"kind": "completion", "stage": {"name": "enc0", "channels": 8}}),
}


@pytest.mark.parametrize(
    ("file", "change"),
    [
        pytest.param(file, change, id=name)
        for file, changes in (("host-after", BLOCKS), ("host", AT_INPUT))
        for name, change in changes.items()
    ],
)
def test_a_host_whose_blocks_cannot_be_built_stays_without_any(tmp_path, saved, file, change):
    path = tmp_path / "host"
    path.write_bytes((saved / file).read_bytes())
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


SMALL = BoostSettings(
    host_options={"width": 4, "levels": 2},
    size=16,
    batch=2,
    steps=2,
    seeds=(0,),
    lrs=(1e-3,),
    evaluations=1,
    train_images=4,
    eval_images=4,
    equal_time=False,
    jobs=1,
)
RUN = Run(arm="distilled", seed=0, steps=2, lr=1e-3)


class InProcess(concurrent.futures.Executor):
    """Stands in for the worker processes, which take longer to start than these runs to train."""

    def __init__(self, jobs, context, start, arguments):
        start(*arguments)

    def submit(self, work, *arguments):
        future = concurrent.futures.Future()
        future.set_result(work(*arguments))
        return future


class Study:
    """A finished study, and its pixels, which are drawn once."""

    def __init__(self, folder):
        self.folder = folder
        self.data = load_data(SMALL)
        self.result = self.resume(folder)

    def resume(self, folder):
        """Go on with a study as far as its result; figures are drawn from that and from what is read by then."""

        def write(result, *_):
            (folder / "result.json").write_text(json.dumps(result))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pool_module, "ProcessPoolExecutor", InProcess)
            patch.setattr(pool_module.signal, "signal", lambda *_: None)
            patch.setattr(boost_module, "load_data", lambda _: self.data)
            patch.setattr(boost_module, "_cost", lambda *_: {"ratio": {RUN.arm: 1.0}})
            patch.setattr(boost_module, "_write", write)
            return boost(SMALL, folder, Console(quiet=True), resume=True)

    def look_into(self, folder):
        """Build the hosts of the study's pair, as ``inpaint-distill inspect`` does."""
        opened = open_study(folder, RUN.arm)
        return load_trained(opened, *opened.pairs[0], self.data.val)


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study") / "out")


@pytest.mark.parametrize("damage", [pytest.param(damage, id=name) for name, damage in DAMAGES.items()])
@pytest.mark.parametrize("ending", [IMAGES, HOST, DISTILLER], ids=["panels", "host", "distiller"])
def test_a_damaged_file_of_a_study_is_named_and_the_study_goes_on_without_it(
    tmp_path, study, ending, damage, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    folder = shutil.copytree(study.folder, tmp_path / "out")
    file = kept_file(folder / "runs", RUN, ending)
    whole = read_state(file)
    damage(file)
    if ending != IMAGES:
        with pytest.raises(StateError, match=re.escape(file.name if file.exists() else ending)):
            study.look_into(folder)
    if file.exists():  # otherwise nothing is in the way
        content = file.read_bytes()
        with pytest.raises(StateError) as caught:
            study.resume(folder)
        assert str(file) in str(caught.value)
        assert caught.value.fix == "delete it and go on with --resume: the run is done again"
        assert len(str(caught.value)) < 2000
        assert file.read_bytes() == content
        file.unlink()
    assert study.resume(folder)["comparisons"] == study.result["comparisons"]
    assert not (tmp_path / "executed").exists()
    tensors, values = read_state(file)
    assert same(dict(sorted(tensors.items())), dict(sorted(whole[0].items())))
    assert values == whole[1]


def test_a_flipped_bit_in_the_weights_of_a_study_is_noticed(tmp_path, study):
    folder, draw = shutil.copytree(study.folder, tmp_path / "out"), random.Random(4)
    for ending in (HOST, DISTILLER, IMAGES):
        file = kept_file(folder / "runs", RUN, ending)
        whole = file.read_bytes()
        for _ in range(100):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            file.write_bytes(damaged)
            with pytest.raises(StateError, match=re.escape(str(file))):
                is_finished(folder / "runs", RUN, SMALL)
        if ending != IMAGES:
            with pytest.raises(StateError, match=re.escape(str(file))):
                study.look_into(folder)
        file.write_bytes(whole)
    study.look_into(folder)


def test_the_files_of_a_study_by_an_earlier_version_are_read_and_its_runs_not_done_again(tmp_path, study):
    folder = shutil.copytree(study.folder, tmp_path / "out")
    plain = {}
    for file in (folder / "runs").glob("*.safetensors"):
        safetensors.torch.save_file(safetensors.torch.load_file(file), file)
        plain[file] = file.read_bytes()
    assert len(plain) == 4
    assert study.resume(folder)["runs"] == study.result["runs"]
    assert {file: file.read_bytes() for file in plain} == plain
    study.look_into(folder)


@pytest.mark.parametrize("ending", ["checkpoint", "distiller-1"])
def test_a_damaged_file_of_a_run_that_was_stopped_is_named_and_the_run_begins_again(
    tmp_path, study, ending, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        Trainer(RUN, SMALL, study.data).train(tmp_path, lambda step: False)
    checkpoint, file = tmp_path / f"{RUN.name}.checkpoint", tmp_path / f"{RUN.name}.{ending}"
    whole, stopped = file.read_bytes(), Trainer(RUN, SMALL, study.data)
    for name, damage in DAMAGES.items():
        if (ending, name) == ("checkpoint", "missing"):
            continue
        file.write_bytes(whole)
        damage(file)
        with pytest.raises(StateError) as caught:
            stopped.train(tmp_path, lambda step: True)
        assert str(file) in str(caught.value), name
        assert caught.value.asked == f"an interrupted run saved in {checkpoint}"
        assert caught.value.fix == "delete it and go on with --resume: the run begins again"
    checkpoint.unlink()
    again = Trainer(RUN, SMALL, study.data).train(tmp_path, lambda step: True)
    assert again["scores"] == study.result["runs"][1]["scores"]
    assert not (tmp_path / "executed").exists()


# -- image folders -----------------------------------------------------------------------------------------------------


def photo(size=(24, 20), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


def png(width, height, body=b"", depth=8, kind=2):
    """Write a PNG by hand."""

    def chunk(name, content):
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


CUT, MANY, UNKNOWN, BOMB = "truncated|decoder", "animated or of several pages", "cannot identify", "Bomb|more than"
ODD = b"\xff\x1b[31m.png"  # bytes that are no text
BAD = {  # what is no usable image, and what the reason for it says
    **dict.fromkeys(("cut.jpg", "cut.png", "cut.gif", "cut.webp", "cut.tif", "cut.bmp"), CUT),
    **dict.fromkeys(("moving.gif", "moving.png", "moving.webp", "pages.tif"), MANY),
    **dict.fromkeys(("zero.png", "text.jpg", "\\xff\x1b[31m.png"), UNKNOWN),
    **dict.fromkeys(("bomb.png", "nearly.png", "bomb.bmp", "bomb.gif"), BOMB),
}
LIMITS = [Image.MAX_IMAGE_PIXELS, None]  # the second as many training scripts have it


def bad_files(folder):
    """Fill a folder with the files of ``BAD``."""
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
    side = struct.pack("<HH", 60_000, 60_000)
    gif = b"GIF89a" + side + b"\x80\0\0" + b"\0\0\0\xff\xff\xff" + b",\0\0\0\0" + side + b"\0" + b"\2\2\x4c\1\0;"
    (folder / "bomb.gif").write_bytes(gif)
    (folder / os.fsdecode(ODD)).touch()


@pytest.mark.parametrize("limit", LIMITS)
def test_bad_images_are_named_skipped_and_counted(tmp_path, monkeypatch, limit):
    bad_files(tmp_path)
    photo().save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    loaded = load_folder(tmp_path, 16)
    assert loaded.names == ["good.png"]
    assert sorted(name for name, _ in loaded.skipped) == sorted(BAD)
    wrong = {name: reason for name, reason in loaded.skipped if not re.search(BAD[name], reason)}
    assert not wrong
    json.dumps(loaded.skipped).encode()
    "".join(name + reason for name, reason in loaded.skipped).encode()


def test_bombs_take_no_memory(tmp_path, monkeypatch):
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    images, masks = tmp_path / "images", tmp_path / "masks"
    for folder in (images, masks):
        folder.mkdir()
        Image.fromarray(half()).save(folder / "good.png")
    load_folder(images, 16)
    load_mask_folder(masks, 16)
    bad_files(images)
    bad_masks(masks)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    load_folder(images, 16)
    with pytest.warns(UserWarning, match="left out"):
        load_mask_folder(masks, 16)
    # An image at the limit would be 270 MB, a bomb of these 10 GB.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024


def test_a_folder_of_nothing_but_bad_images_is_an_error_that_counts_them(tmp_path):
    bad_files(tmp_path)
    with pytest.raises(DataError, match=f"read {len(BAD)} image"):
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


# -- mask folders ------------------------------------------------------------------------------------------------------


def bad_masks(folder):
    """Fill a folder with the files of ``BAD``, all of them called PNG: what a file is, is told by its content."""
    bad_files(folder)
    for file in list(folder.iterdir()):
        file.rename(file.with_name(f"{file.name}.png"))


def half(size=20):
    """Return a mask whose left half is the hole."""
    return np.arange(size)[None] < size // 2 + np.zeros((size, 1))


@pytest.mark.parametrize("limit", LIMITS)
def test_bad_masks_are_named_left_out_and_counted(tmp_path, monkeypatch, limit):
    bad_masks(tmp_path)
    Image.fromarray(half()).save(tmp_path / "good.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.warns(UserWarning, match="left out") as caught:
        masks = load_mask_folder(tmp_path, 20)
    assert torch.equal(masks[:, 0], torch.from_numpy(half())[None])
    (text,) = [str(each.message) for each in caught]  # and none of Pillow's
    counted, named = text.split(": ", 1)
    assert counted == f"{len(BAD)} of {len(BAD) + 1} masks left out"
    reasons = dict(re.findall(r"(?:^|; )(\S+)\.png \((.*?)\)(?=; |$)", named))
    assert reasons.keys() == BAD.keys()
    assert not {name: reason for name, reason in reasons.items() if not re.search(BAD[name], reason)}
    text.encode()


def test_a_folder_of_nothing_but_bad_masks_is_an_error_that_counts_them(tmp_path):
    bad_masks(tmp_path)
    with pytest.raises(
        DataError, match=rf"{len(BAD)} file.*none usable \(bomb\.bmp\.png \(DecompressionBombError"
    ) as caught:
        load_mask_folder(tmp_path, 16)
    str(caught.value).encode()


def _deep(path, kind):
    channels = {0: 1, 2: 3, 4: 2, 6: 4}[kind]
    values = np.repeat(half()[..., None] * (2**16 - 1), channels, axis=-1)
    if kind in (4, 6):
        values[..., -1] = 2**16 - 1
    path.write_bytes(png(20, 20, b"".join(b"\0" + row.astype(">u2").tobytes() for row in values), depth=16, kind=kind))


def _palette(path):
    image = Image.fromarray((~half()).astype(np.uint8), "P")  # whose first colour is white
    image.putpalette([255, 255, 255, 0, 0, 0])
    image.save(path)


def _as(mode, kind="png", **options):
    return lambda path: Image.fromarray(half()).convert("RGB").convert(mode).save(path, kind, **options)


UNUSUAL = {
    "1 bit": _as("1"),
    "RGBA": _as("RGBA"),
    "gray and alpha": _as("LA"),
    "palette": _palette,
    "CMYK": _as("CMYK", "jpeg", quality=95),
    "CMYK without loss": _as("CMYK", "tiff"),
    "GIF": _as("L", "gif"),
    "16 bits, gray": lambda path: _deep(path, 0),
    "16 bits, RGB": lambda path: _deep(path, 2),
    "16 bits, gray and alpha": lambda path: _deep(path, 4),
    "16 bits, RGBA": lambda path: _deep(path, 6),
}


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in UNUSUAL.items()])
def test_masks_of_unusual_pixels_keep_their_hole(tmp_path, make):
    make(tmp_path / "mask.png")
    assert torch.equal(load_mask_folder(tmp_path, 20)[0, 0], torch.from_numpy(half()))
