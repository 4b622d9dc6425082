"""Processes that train one host together by DDP do as one process with all their images would.

Two processes run every case once (``distributed_worker``); each test here reads what came of one.
"""

import json
import os
import subprocess
import sys
import time

import distributed_worker as worker
import pytest

SECONDS = 400  # of a busy machine
# Of what one process would have; a finite difference magnifies rounding, to 1e-4.
ROUNDING = {"factors": 1e-4, "gradients, host": 1e-4}
UNROLLED = {"attention", "no balance", "unroll of two steps"}
UNROLLED |= {"recurrent", "partial convolutions", "gated convolutions"}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """Let two processes meet and run all cases; return, by case, what each of them found."""
    folder, first = shared_folder(tmp_path_factory)
    if first:
        run_both(folder)
    deadline = time.monotonic() + SECONDS
    while not (folder / "done").exists() and time.monotonic() < deadline:
        time.sleep(1)
    return read(folder)


def shared_folder(tmp_path_factory):
    """Return a folder that pytest-xdist's processes have in common, and whether this one is the first in it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "processes-of-ddp"
    try:
        folder.mkdir()
    except FileExistsError:
        return folder, False
    return folder, True


def run_both(folder):
    """Run the worker twice, and end both whatever happens."""
    started, logs = [], []
    for rank in range(worker.WORLD):
        logs.append((folder / f"{rank}.log").open("w"))  # a pipe that nobody reads would fill up
        environment = {**os.environ, "RANK": str(rank)}
        command = [sys.executable, worker.__file__, str(folder)]
        started.append(subprocess.Popen(command, stdout=logs[-1], stderr=logs[-1], env=environment))
    try:
        for process in started:
            process.wait(SECONDS)
    finally:
        for process, log in zip(started, logs, strict=True):
            process.kill()
            process.wait()
            log.close()
        (folder / "done").touch()


def read(folder):
    """Return by case what each process has written."""
    written = [folder / f"{rank}.json" for rank in range(worker.WORLD)]
    assert all(path.exists() for path in written), (folder / "0.log").read_text(encoding="utf-8")[-3000:]
    results = [json.loads(path.read_text(encoding="utf-8")) for path in written]
    return {name: [each.get(name) for each in results] for name in results[0] | results[1]}


def take(found, name):
    """Return what the processes found in a case that both have got to."""
    assert name in found, "not run: a case before it failed"
    for each in found[name]:
        assert each is not None, "not run by one of them"
        assert "failed" not in each, each["failed"]
    return found[name]


def assert_same(found, name):
    """Check that all that was trained is the same in both processes, bit for bit, and return what the first found."""
    first, second = take(found, name)
    assert first["differ"] == second["differ"] == []
    assert "host" not in first["empty"]
    assert not any(part.startswith("gradients") for part in first["empty"])
    return first


def assert_like_one(first, trained="added networks"):
    """Compare what the optimizers followed, and where that led, with one process that had all images."""
    assert {"gradients, host", f"gradients, {trained}"} <= first["apart"].keys()
    for part, gap in first["apart"].items():
        assert gap < ROUNDING.get(part, 1e-3), (part, gap)


# -- like one process --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", worker.TOGETHER)
def test_two_processes_train_as_one_with_all_images_would(found, name):
    first = assert_same(found, f"together: {name}")
    assert_like_one(first, "meta-networks" if name == "attention" else "added networks")
    if name in UNROLLED:
        assert first["apart"]["gradients, meta-networks"] < 1e-4


def test_every_pixel_of_a_hole_counts_alike_however_few_a_process_has(found):
    assert_like_one(assert_same(found, "small_holes"))


ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
ACCELERATE += ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")


def test_they_do_so_as_accelerate_launches_and_prepares_them(tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, *ACCELERATE, worker.__file__, str(tmp_path), "accelerated"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr[-3000:]
    first = assert_same(read(tmp_path), "accelerated")
    assert first["called"] == "DistributedDataParallel"
    assert_like_one(first)


# -- alike in every process --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [function.__name__ for function in worker.SAME])
def test_whatever_differs_at_first_or_by_nature_all_processes_train_the_same_networks(found, name):
    assert_same(found, f"same: {name}")


def test_processes_that_train_apart_are_left_apart(found):
    for each in take(found, "processes_that_train_apart"):
        assert not each["met"]
        assert not each["equal"]


# -- saved and loaded --------------------------------------------------------------------------------------------------


def test_what_the_first_process_saves_all_can_load_and_go_on_alike(found):
    assert_same(found, "resumed_from_one")


def test_a_run_whose_processes_save_one_file_each_goes_on_bit_for_bit(found):
    assert_same(found, "resumed_from_each")
    assert all(each["continues"] for each in take(found, "resumed_from_each"))


# -- names, and what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("beginning", worker.WRAPPED)
def test_stages_may_be_named_as_the_wrapped_module_lists_them(found, beginning):
    for each in take(found, "names_with_wrappers"):
        listed, attached, planned = each[beginning]
        assert listed == [f"{beginning}enc0", f"{beginning}enc2"]
        assert attached == planned == ["enc0", "enc2"]


def test_blocks_that_ddp_would_not_know_of_are_refused_whenever_it_comes(found):
    for each in take(found, "blocks_that_come_too_late"):
        assert len(each["texts"]) == 2
        for text in each["texts"]:
            assert text.startswith("PlanError")
            assert "attach before wrapping, with image and mask" in text
        assert each["clean"]


def test_blocks_that_a_host_has_already_are_trained_on_inside_ddp(found):
    assert assert_same(found, "blocks_that_are_there_already")["blocks move"]


def test_a_host_that_fsdp_has_sharded_is_refused_whenever_it_was(found):
    for each in take(found, "sharded"):
        assert len(each["texts"]) == 5
        for text in each["texts"]:
            assert text.startswith("PlanError")
            assert "torch.nn.parallel.DistributedDataParallel instead" in text
        assert each["clean"]
