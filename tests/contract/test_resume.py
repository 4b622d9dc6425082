"""A run that is saved, killed and taken up again by another process is the run that was never interrupted."""

import functools
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hosts import EVERY_HOST, SAMPLE, batches, make_optimizer, state_of, train

import inpaint_distill
from inpaint_distill.errors import TeacherWarning
from inpaint_distill.files import replacing, write_json
from inpaint_distill.state import pack, read_state, write_state
from inpaint_distill.teachers import FrozenTeacher

SAVED, STEPS = 3, 6  # the run is saved after an odd step: one of the two batches of a look-ahead is kept


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes:
        host: Name in the table of hosts.
        teacher: Kind of teacher.
        balance: As in the configuration.
        engine: Of the look-ahead.
        completion: Whether blocks are injected, at attach; otherwise everything waits for the first forward.
        optimizer: The user's.
        every: Of which steps one is distilled.
    """

    host: str
    teacher: str
    balance: str
    engine: str
    completion: bool
    optimizer: str
    every: int = 1

    def __str__(self):
        blocks = "completion" if self.completion else "plain"
        return "-".join([self.host, self.teacher, self.balance, self.engine, blocks, self.optimizer, str(self.every)])


def _cases():
    """Every host with every teacher, and the other choices so that each pair of them meets."""
    for (row, host), (column, teacher) in itertools.product(enumerate(SAMPLE), enumerate(["ema", "frozen", "online"])):
        yield Case(
            host,
            teacher,
            balance=["gradient_norm", "none"][row // 2 % 2],
            engine=["finite_difference", "unroll", "off"][(row + column) % 3],
            completion=(row + column) % 2 == 1,
            optimizer=["AdamW", "SGD"][(row // 4 + column) % 2],
            every=1 + (row // 3 + column) % 2,
        )


CASES = list(_cases())


class Loop:
    """The user's script: what it builds, trains, saves and loads."""

    def __init__(self, case):
        self.toy = EVERY_HOST[case.host]
        self.host = self.toy.build()
        momentum = {"momentum": 0.9} if case.optimizer == "SGD" else {}
        self.optimizer = make_optimizer(self.host, getattr(torch.optim, case.optimizer), lr=1e-3, **momentum)
        image, mask = batches(1, 50, size=self.toy.size)[0]
        config = {
            "teacher": case.teacher,
            "ema_decay": 0.9,
            "teacher_steps": 2,
            "balance": case.balance,
            "every": case.every,
            "balance_every": 2,
            "lookahead": {"engine": case.engine, "every": 2},
            "completion": case.completion,
            "warmup": 2,
            "decay": (1, 9),
        }
        teacher = FrozenTeacher(image, steps=2) if case.teacher == "frozen" else None
        guessed = case.completion and case.host != "keywords"  # whose call nobody can guess
        plan_with = {"image": image, "mask": mask} if guessed else {}
        self.distiller = inpaint_distill.attach(self.host, self.optimizer, teacher=teacher, config=config, **plan_with)
        if case.completion and not guessed:
            self.toy.call(self.host, image, mask)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(self.optimizer, max_lr=1e-2, total_steps=9)

    def train(self, first, last):
        data = batches(last - first, first, size=self.toy.size)
        return train(self.toy, self.host, self.optimizer, data, self.distiller, self.scheduler)

    def save(self, folder):
        """Save as users do: their own things by torch, the distiller beside them."""
        folder.mkdir()
        own = {"host": self.host, "optimizer": self.optimizer, "scheduler": self.scheduler}
        torch.save(
            {name: each.state_dict() for name, each in own.items()} | {"random": torch.get_rng_state()},
            folder / "own.pt",
        )
        self.distiller.save(folder / "distiller.safetensors")

    def load(self, folder):
        own = torch.load(folder / "own.pt", weights_only=True)
        for name in ("host", "optimizer", "scheduler"):
            getattr(self, name).load_state_dict(own[name])
        self.distiller.load(folder / "distiller.safetensors")
        torch.set_rng_state(own["random"])

    def digest(self, losses):
        """Hash, part by part, all that the rest of the run depends on."""
        parts = {**state_of(self.host, self.optimizer), "scheduler": self.scheduler.state_dict(), "losses": losses}
        parts["step"] = self.distiller._step
        parts |= {name: part.state() for name, part in self.distiller._parts.items()}
        return {name: hashlib.sha256(b"".join(_leaves(part))).hexdigest() for name, part in parts.items()}


def _leaves(value):
    if isinstance(value, torch.Tensor):
        yield f"{value.dtype} {tuple(value.shape)}".encode()
        yield value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, dict):
        for key in sorted(value, key=str):  # the order of parts that are waited for is not that of parts at work
            yield repr(key).encode()
            yield from _leaves(value[key])
    elif isinstance(value, (list, tuple)):
        for member in value:
            yield from _leaves(member)
    else:
        yield repr(value).encode()


def resume(folder):
    """Take up every case saved below a folder, in a process that has not seen them, and note what comes out."""
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", TeacherWarning)
    torch.set_num_threads(1)
    found = {}
    for case in CASES:
        if (folder / str(case)).is_dir():
            torch.manual_seed(99)
            loop = Loop(case)
            loop.load(folder / str(case))
            found[str(case)] = loop.digest(loop.train(SAVED, STEPS))
    write_json(folder / "resumed.json", found)


def in_new_process(code, *arguments):
    """Run a few lines with this file imported as ``contract``."""
    here = Path(__file__).resolve()
    path = os.pathsep.join([str(here.parent), str(here.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    code = f"import sys\nfrom pathlib import Path\nimport {here.stem} as contract\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_cases_hold_every_pair_of_choices():
    names = ("teacher", "balance", "engine", "completion", "optimizer", "every")
    for one, other in itertools.combinations(names, 2):
        met = {(getattr(case, one), getattr(case, other)) for case in CASES}
        each = [{getattr(case, name) for case in CASES} for name in (one, other)]
        assert met == set(itertools.product(*each)), (one, other)


@pytest.mark.parametrize("teacher", ["ema", "frozen", "online"])
@pytest.mark.filterwarnings("ignore::inpaint_distill.errors.TeacherWarning")
def test_a_run_resumed_by_a_new_process_equals_the_uninterrupted_one_bit_for_bit(tmp_path, teacher):
    through = {}
    for case in CASES:
        if case.teacher != teacher:
            continue
        torch.manual_seed(4)
        loop = Loop(case)
        loop.train(0, SAVED)
        loop.save(tmp_path / str(case))
        through[str(case)] = loop.digest(loop.train(SAVED, STEPS))
    in_new_process("contract.resume(Path(sys.argv[1]))", tmp_path)
    resumed = json.loads((tmp_path / "resumed.json").read_text())
    differing = {
        case: [part for part in parts if parts[part] != resumed[case][part]]
        for case, parts in through.items()
        if parts != resumed[case]
    }
    assert not differing


# -- kill -9 -----------------------------------------------------------------------------------------------------------

NUMBERS = 2**18  # in each of the four tensors of a checkpoint: 4 MiB, so that most of the time is spent in writing


class Numbered(torch.nn.Module):
    """A host whose weights all hold one number, that of the checkpoint."""

    def __init__(self):
        super().__init__()
        self.levels = torch.nn.ParameterList(torch.zeros(NUMBERS) for _ in range(4))

    def set(self, number):
        with torch.no_grad():
            for level in self.levels:
                level.fill_(number)
        return self


def _write_state(path, number):
    write_state(path, {name: each.detach() for name, each in Numbered().set(number).named_parameters()}, {"n": number})


def _read_state(path):
    tensors, values = read_state(path)
    return {values["n"], *(number for tensor in tensors.values() for number in tensor.unique().tolist())}


def _save_host(path, number):
    inpaint_distill.save_host(Numbered().set(number), path)


def _load_host(path):
    host = inpaint_distill.load_host(Numbered(), path)
    return {number for level in host.levels for number in level.unique().tolist()}


def _write_json(path, number):
    write_json(path, {"n": number, "text": "x" * 16 * NUMBERS})


def _read_json(path):
    return {json.loads(path.read_text())["n"]}


@functools.cache
def _distiller():
    """Build a distiller, once in a process, and let it train until all of its parts have something to save."""
    warnings.simplefilter("ignore", TeacherWarning)
    loop = Loop(Case("separate_known", "ema", "gradient_norm", "finite_difference", completion=True, optimizer="AdamW"))
    loop.train(0, SAVED)
    empty = [name for name, part in loop.distiller._parts.items() if not part.state()[0]]
    assert not empty
    return loop.distiller


def _numbers(distiller):
    """Return the tensors that are saved and can hold any number: nearly all of them."""
    return [tensor for tensor in pack(distiller._parts)[0].values() if tensor.is_floating_point()]


def _save_distiller(path, number):
    distiller = _distiller()
    for tensor in _numbers(distiller):
        tensor.detach().fill_(number)
    distiller._step = number
    distiller.save(path)


def _load_distiller(path):
    distiller = _distiller()
    distiller.load(path)
    return {distiller._step, *(number for tensor in _numbers(distiller) for number in tensor.unique().tolist())}


WRITERS = {
    "state": (_write_state, _read_state),
    "host": (_save_host, _load_host),
    "json": (_write_json, _read_json),
    "distiller": (_save_distiller, _load_distiller),
}
KILLS = 50


def _save_without_end(write, path, first, told):
    try:
        for number in itertools.count(first):
            write(path, number)
            os.write(told, b".")
    finally:
        os._exit(1)


def kill_while_saving(folder, writer, found=None):
    """Let a process save without end, kill it at a random moment, and read what is there; many times.

    What is there is copied to ``found``, if given, under the number that was read.
    """
    torch.set_num_threads(1)  # a fork has none of the threads that its parent's kernels wait for
    write, read = WRITERS[writer]
    path = folder / "checkpoint"
    write(path, 0)
    began = time.perf_counter()
    write(path, 0)
    period = time.perf_counter() - began
    delays, last, inside = random.Random(5), 0, 0
    for kill in itertools.count():
        # Where in a save a kill comes is the scheduler's choice: go on until enough came between its writes.
        if kill >= KILLS and inside >= KILLS // 5:
            break
        assert kill < 20 * KILLS, "the kills come between the saves"
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            _save_without_end(write, path, last + 1, told)
        os.close(told)
        os.read(ready, 1)  # one more checkpoint is there
        time.sleep(delays.uniform(0, 2 * period))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = 1
        while rest := os.read(ready, 4096):
            done += len(rest)
        os.close(ready)
        (number,) = read(path)
        assert last + done <= number <= last + done + 1, "neither the last one that was finished nor the next"
        last = int(number)
        if found is not None:
            shutil.copy(path, found / str(last))
        left = [each for each in folder.iterdir() if each != path]
        inside += bool(left)
        for each in left:
            each.unlink()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("writer", ["state", "host", "json"])
def test_a_process_killed_while_saving_leaves_the_old_file_or_the_new_one(tmp_path, writer):
    in_new_process("contract.kill_while_saving(Path(sys.argv[1]), sys.argv[2])", tmp_path, writer)


def load_what_was_found(folder):
    """Load what was there after each kill, in a process that had no part in it."""
    for file in folder.iterdir():
        assert _load_distiller(file) == {int(file.name)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_killed_process_leaves_of_a_distiller_is_loaded_whole_by_a_new_one(tmp_path):
    saved, found = tmp_path / "saved", tmp_path / "found"
    saved.mkdir()
    found.mkdir()
    in_new_process("contract.kill_while_saving(Path(sys.argv[1]), 'distiller', Path(sys.argv[2]))", saved, found)
    assert len(list(found.iterdir())) >= KILLS
    in_new_process("contract.load_what_was_found(Path(sys.argv[1]))", found)


def test_a_file_is_on_the_disk_before_it_takes_the_place_of_the_old_one_and_its_folder_after(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def note_sync(handle):
        done.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else f"{os.fstat(handle).st_size} bytes")
        sync(handle)

    def note_replace(*paths):
        done.append("rename")
        replace(*paths)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    with replacing(tmp_path / "file") as file:
        file.write(b"whole")
    assert done == ["5 bytes", "rename", "folder"]


def test_what_killed_processes_left_goes_with_a_later_save_and_nothing_else_does(tmp_path):
    write_json(tmp_path / "file", {})
    old = [tmp_path / name for name in (".file.0123.partial", ".other.0123.partial", "file.partial", ".file.swp")]
    young = tmp_path / ".file.4567.partial"
    for each in (*old, young):
        each.touch()
    for each in old:
        os.utime(each, (0, 0))
    write_json(tmp_path / "file", {})
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "file", *old[1:], young])


def test_a_saved_file_keeps_links_and_takes_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    write_json(tmp_path / "new", {})
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "plain").stat().st_mode
    (tmp_path / "link").symlink_to(tmp_path / "new")
    write_json(tmp_path / "link", {"n": 1})
    assert (tmp_path / "link").is_symlink()
    assert json.loads((tmp_path / "new").read_text()) == {"n": 1}
