"""Train one host once, with or without distillation, resumable and with everything paired that can be."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.attach import attach
from inpaint_distill.completed import save_host
from inpaint_distill.errors import ConfigError, StateError
from inpaint_distill.state import from_plain, read_state, to_plain, write_state
from inpaint_distill.teachers import FrozenTeacher
from inpaint_distill.training.data import Batches, EvalSet
from inpaint_distill.training.explained import explained
from inpaint_distill.training.images import crop_batch
from inpaint_distill.training.kept import DISTILLER, HOST, kept_file
from inpaint_distill.training.perceptual import not_measured
from inpaint_distill.training.scoring import evaluate, mean_fill, restore, scored
from inpaint_distill.training.start import load_weights
from inpaint_distill.training.stepper import Stepper

if TYPE_CHECKING:
    from collections.abc import Callable

    from inpaint_distill.config import Config
    from inpaint_distill.distiller import Distiller
    from inpaint_distill.training.data import StudyData
    from inpaint_distill.training.settings import BoostSettings, Run

__all__ = ["Trainer", "reconstruction_loss"]

_SHORTEST_CYCLE = 20
_PROGRESS = ("step", "seconds", "curve", "val_scores", "channel_weights")  # what a checkpoint holds of the run itself
_KIND = "run"  # of a checkpoint's content
_EAGER = 16  # steps before one may be recorded: in the first ones libraries choose and load their kernels
_ANEW = 10_000  # of the seed of the batches that a trained host goes on with: others than it was trained on
_STUCK_MARGIN = 0.5  # dB above filling the hole with one colour, below which a host has not learned


def reconstruction_loss(outputs: tuple[Tensor, ...], image: Tensor, hole: Tensor) -> Tensor:
    """Return the host's own loss: L1 in the hole plus L1 outside it, each a mean, averaged over its images."""
    inside = hole.sum().clamp_min(1) * image.shape[1]
    outside = (1 - hole).sum().clamp_min(1) * image.shape[1]
    losses = []
    for output in outputs:
        error = (output - image).abs()
        losses.append((error * hole).sum() / inside + (error * (1 - hole)).sum() / outside)
    return torch.stack(losses).mean()


class Trainer:
    """One run: a host, its optimizer and schedule, its batches and, unless it is bare, a distiller.

    Args:
        run: Arm, seed, steps and learning rate.
        settings: The study.
        data: Its pixels.
        start: File of a trained host to start from; that of the settings by default.
    """

    def __init__(self, run: Run, settings: BoostSettings, data: StudyData, start: Path | None = None) -> None:
        self.run = run
        self.settings = settings
        self.data = data
        self.adapter = settings.adapter(run.arm)
        self.device = torch.device(settings.device)
        torch.manual_seed(run.seed)
        host = self.adapter.build(**settings.options_for(run.arm))
        if host is None:
            raise ConfigError(
                f"to build the host {settings.host!r}", "its code has to be cloned", "attach() in its own loop"
            )
        if start is None and settings.start is not None:
            start = Path(settings.start)
        if start is not None:
            load_weights(host, start)
        host.to(self.device)
        host.train()
        self.host = host
        self.optimizer = self._adam()
        config = settings.distillation_for(run.arm, run.steps)
        # Before the schedule, which has to know the parameters of what is injected.
        self.distiller = None if config is None else self._attach(config)
        # A cycle of 10 steps, whose rise is one step, makes OneCycleLR divide by zero.
        cycle = max(run.steps + 1, _SHORTEST_CYCLE)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer, max_lr=run.lr, total_steps=cycle, pct_start=0.1, cycle_momentum=False
        )
        self.batches = Batches(data, settings.size, settings.batch, run.seed if start is None else run.seed + _ANEW)
        # What a distiller adds is not the same in every step, and the kernels of completion blocks cannot be recorded.
        self.stepper = Stepper(self._update, self.device, record=self.distiller is None)
        self.step = 0
        self.seconds = 0.0
        self.curve: list[dict[str, Any]] = []
        self.val_scores: dict[str, dict[str, float]] = {}
        self.channel_weights: list[dict[str, Any]] = []
        self.train_loss = math.nan

    def train_step(self, *, record: bool = False) -> Tensor:
        """Do one step and return the host's own loss.

        Args:
            record: Let a CUDA device replay the steps of a host alone.
        """
        loss = self.stepper(*self.batches.draw(), replay=record and self.step >= _EAGER)
        self.scheduler.step()
        self.step += 1
        return loss

    def train(self, folder: Path, progress: Callable[[int], bool]) -> dict[str, Any]:
        """Train to the end, resuming from ``folder`` where a checkpoint lies there, and score once.

        Args:
            folder: Where checkpoints are kept while the run lasts.
            progress: Told the number of steps done; where it returns ``False``, the run is saved and ends.

        Raises:
            KeyboardInterrupt: ``progress`` ended the run.
        """
        checkpoint = folder / f"{self.run.name}.checkpoint"
        self._resume(checkpoint)
        points = {round(self.run.steps * (i + 1) / self.settings.evaluations) for i in range(self.settings.evaluations)}
        while self.step < self.run.steps:
            began = time.perf_counter()
            loss = self.train_step(record=True)
            if self.step in points:
                self.stepper.wait()
            self.seconds += time.perf_counter() - began
            if self.step in points:
                self.train_loss = float(loss)
                self._add_point()
                self._save(checkpoint)
            if not progress(self.step):
                self._save(checkpoint)
                raise KeyboardInterrupt
        return self._result()

    def restored(self, count: int) -> Tensor:
        """Return the host's images for the first of the images that are scored, for the panels."""
        shown = scored(self.settings, self.data)
        return restore(self.host, self.adapter, EvalSet(shown.images[:count], shown.holes[:count]))

    def keep(self, folder: Path) -> None:
        """Write the trained host and, where there is one, the distiller, to be looked into later."""
        save_host(self.host, kept_file(folder, self.run, HOST))
        if self.distiller is not None and self.distiller.plan is not None:
            self.distiller.save(kept_file(folder, self.run, DISTILLER))

    def _update(self, image: Tensor, hole: Tensor) -> Tensor:
        loss = reconstruction_loss(self.adapter.outputs(self.host, image, hole), image, hole)
        total = loss if self.distiller is None else loss + self.distiller.loss(image, hole)
        self.optimizer.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.host.parameters(), self.settings.clip)
        self.optimizer.step()
        return loss.detach()

    def _adam(self) -> torch.optim.Adam:
        if self.device.type != "cuda":
            return torch.optim.Adam(self.host.parameters(), lr=self.run.lr, betas=(0.9, 0.99))
        lr = torch.tensor(self.run.lr, device=self.device)  # which a recorded step reads each time
        return torch.optim.Adam(self.host.parameters(), lr=lr, betas=(0.9, 0.99), fused=True, capturable=True)

    def _attach(self, config: Config) -> Distiller:
        teacher = None
        if config.teacher == "frozen":
            generator = torch.Generator().manual_seed(self.run.seed)
            images = crop_batch(self.data.train, torch.arange(len(self.data.train)), self.settings.size, generator)
            teacher = FrozenTeacher(images, steps=config.teacher_steps, lr=config.teacher_lr, seed=self.run.seed)
        image = mask = None
        if config.completion or config.fusion:  # whose parameters the schedule and a checkpoint have to find
            image, mask = (tensor[:2].to(self.device) for tensor in (self.data.val.images, self.data.val.holes))
        return attach(
            self.host,
            self.optimizer,
            image=image,
            mask=mask,
            teacher=teacher,
            config=config,
            adapter=self.adapter,
        )

    def _add_point(self) -> None:
        last = self.step == self.run.steps and not self.run.trial and not self.settings.score_test
        restored = restore(self.host, self.adapter, self.data.val)
        self.val_scores = evaluate(restored, self.data.val, self.device if last else None)
        known = explained(restored, self.data.val.images, self.data.val.holes)["known"]
        self.curve.append(
            {
                "step": self.step,
                "seconds": round(self.seconds, 3),
                "hole_psnr": self.val_scores["hole_psnr"]["all"],
                "train_loss": self.train_loss,
                **{f"known_{part}": share for part, share in known.items()},
            }
        )
        weights = {} if self.distiller is None else self.distiller.channel_weights
        if weights:
            rounded = {name: [round(value, 6) for value in tensor.tolist()] for name, tensor in weights.items()}
            self.channel_weights.append({"step": self.step, "weights": rounded})

    def _result(self) -> dict[str, Any]:
        test = self.data.test
        stuck = not self.curve[-1]["hole_psnr"] > mean_fill(self.data.val) + _STUCK_MARGIN
        unseen = self.run.trial or not self.settings.score_test
        scores = {} if unseen else evaluate(restore(self.host, self.adapter, test), test, self.device)
        return {
            "arm": self.run.arm,
            "seed": self.run.seed,
            "steps": self.run.steps,
            "lr": self.run.lr,
            "seconds": round(self.seconds, 3),
            "parameters": sum(parameter.numel() for parameter in self.host.parameters()),
            "stuck": stuck,
            "curve": self.curve,
            "channel_weights": self.channel_weights,
            "val_scores": self.val_scores,
            "scores": scores,
            "not_measured": {} if self.run.trial else not_measured(len(scored(self.settings, self.data).images)),
        }

    def _save(self, path: Path) -> None:
        """Write a checkpoint: the old one or the new one is there at every moment."""
        self.stepper.wait()
        state = {
            "host": self.host.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "batches": self.batches.state(),
            "rng": torch.get_rng_state(),
            "progress": {name: getattr(self, name) for name in _PROGRESS},
        }
        if self.distiller is not None and self.distiller.plan is not None:
            self.distiller.save(path.with_suffix(f".distiller-{self.step}"))
        tensors: dict[str, Tensor] = {}
        write_state(path, tensors, {"kind": _KIND, "state": to_plain(state, tensors)})
        for old in path.parent.glob(f"{path.stem}.distiller-*"):
            if old.name != f"{path.stem}.distiller-{self.step}":
                old.unlink()

    def _resume(self, path: Path) -> None:
        if not path.exists():
            return
        asked, fix = f"an interrupted run saved in {path}", "delete it and go on with --resume: the run begins again"
        tensors, values = read_state(path, "an interrupted run", fix)
        if values.get("kind") != _KIND:
            raise StateError(asked, f"a {values.get('kind')}", fix)
        try:
            state = from_plain(values["state"], tensors)
            self.host.load_state_dict(state["host"])
            self.optimizer.load_state_dict(state["optimizer"])
            for group in self.optimizer.param_groups:
                if isinstance(group["lr"], Tensor):  # which is not moved with the moments
                    group["lr"] = group["lr"].to(self.device)
            self.scheduler.load_state_dict(state["scheduler"])
            self.batches.load(state["batches"])
            torch.set_rng_state(state["rng"])
            for name in _PROGRESS:
                setattr(self, name, state["progress"][name])
            if self.distiller is not None:
                self.distiller.load(path.with_suffix(f".distiller-{self.step}"))
        except StateError as error:  # of the distiller: "it" in the text below is the checkpoint
            raise StateError(asked, f"{error.asked}: {error.found}", fix) from None
        except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
            raise StateError(asked, f"{type(error).__name__}: {error}", fix) from None
