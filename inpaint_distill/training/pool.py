"""Run many trainings, several at a time, with progress; a finished run is kept and not done again."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.errors import StateError
from inpaint_distill.files import write_json
from inpaint_distill.state import write_state
from inpaint_distill.training.kept import AGAIN, HOST, IMAGES, RESULT, is_finished, kept_file, read_kept, read_result
from inpaint_distill.training.loop import Trainer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.queues import Queue
    from multiprocessing.synchronize import Event
    from pathlib import Path

    from rich.progress import Progress
    from torch import Tensor

    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings, Run

__all__ = ["PANELS", "Pool"]

PANELS = 8
_PERIOD = 0.2  # seconds between two looks at the progress of the workers
_REPORT_EVERY = 10  # steps

_worker: dict[str, Any] = {}


def _start(
    settings: BoostSettings, data: StudyData, folder: Path, messages: Queue[tuple[str, int]], stop: Event
) -> None:
    """Prepare a worker process: one thread, so that as many runs as cores do not disturb each other."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent gets it too, and asks the workers to save and stop
    torch.set_num_threads(1)
    _worker.update(settings=settings, data=data, folder=folder, messages=messages, stop=stop)


@contextmanager
def _deaf_children() -> Iterator[None]:
    """Keep Ctrl-C from processes that are started within, from their first moment; this one hears it afterwards."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _train(run: Run) -> None:
    """Train one run in a worker and leave its result, and its images for the panels, in the folder."""
    folder: Path = _worker["folder"]
    parent = multiprocessing.parent_process()
    orphaned = False

    def progress(step: int) -> bool:
        nonlocal orphaned
        if step % _REPORT_EVERY == 0 or step == run.steps:
            _worker["messages"].put((run.name, step))
            orphaned = parent is not None and not parent.is_alive()
        return not (orphaned or _worker["stop"].is_set())

    settings: BoostSettings = _worker["settings"]
    before = settings.start_of(run)
    trainer = Trainer(run, settings, _worker["data"], None if before is None else kept_file(folder, before, HOST))
    try:
        result = trainer.train(folder, progress)
    except KeyboardInterrupt:
        if orphaned:  # it would go on with what is queued, beside a study that has been resumed
            os._exit(1)
        raise
    if not run.trial:
        write_state(kept_file(folder, run, IMAGES), {"restored": trainer.restored(PANELS)}, {"kind": "images"})
        trainer.keep(folder)
    write_json(kept_file(folder, run, RESULT), result)  # last of all: a run that has it has everything
    for part in ("checkpoint", "distiller-*"):
        for file in folder.glob(f"{run.name}.{part}"):
            file.unlink()


class Pool:
    """Worker processes that train runs of one study.

    Args:
        settings: The study.
        data: Its pixels, shared with the workers.
        folder: Where results and checkpoints are kept.
        progress: Where a bar is drawn for every run.
    """

    def __init__(self, settings: BoostSettings, data: StudyData, folder: Path, progress: Progress) -> None:
        self.settings = settings
        self.folder = folder
        self.progress = progress
        data.share()
        context = multiprocessing.get_context("spawn")
        self.messages: Queue[tuple[str, int]] = context.Queue()
        jobs = settings.jobs or (1 if settings.device == "cuda" else os.cpu_count() or 1)
        self.stop = context.Event()
        self.executor = ProcessPoolExecutor(jobs, context, _start, (settings, data, folder, self.messages, self.stop))

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()  # after Ctrl-C, the workers save where they are
        self.executor.shutdown(wait=True, cancel_futures=True)
        self.messages.close()

    def train(self, runs: Sequence[Run], title: str) -> list[dict[str, Any]]:
        """Train the runs that are not finished yet and return all results, in order.

        Args:
            runs: What to train.
            title: Shown before each run's name.

        Raises:
            StateError: A file of a finished run, or of one that was stopped, is damaged.
        """
        bars = {}
        futures: set[Future[None]] = set()
        finished = {run.name: is_finished(self.folder, run, self.settings) for run in runs}
        for run in runs:
            label = f"{title} {run.arm} seed {run.seed} lr {run.lr:g}"
            completed = run.steps if finished[run.name] else 0
            bars[run.name] = self.progress.add_task(label, total=run.steps, completed=completed)
            if not finished[run.name]:
                with _deaf_children():  # a submission may start a worker
                    futures.add(self.executor.submit(_train, run))
        while futures:
            done_now, futures = wait(futures, timeout=_PERIOD, return_when=FIRST_COMPLETED)
            self._draw(bars)
            for future in done_now:
                future.result()
        self._draw(bars)
        return [read_result(kept_file(self.folder, run, RESULT)) for run in runs]

    def restored(self, run: Run) -> Tensor:
        """Return a finished run's images for the panels.

        Raises:
            StateError: They are missing or damaged.
        """
        file = kept_file(self.folder, run, IMAGES)
        tensors, _ = read_kept(file, IMAGES)
        if "restored" not in tensors:
            raise StateError(f"the images of a run saved in {file}", f"tensors {', '.join(tensors)}", AGAIN)
        return tensors["restored"]

    def _draw(self, bars: dict[str, Any]) -> None:
        while True:
            try:
                name, step = self.messages.get_nowait()
            except queue.Empty:
                return
            if name in bars:
                self.progress.update(bars[name], completed=step)
