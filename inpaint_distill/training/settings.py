"""What a boost study is: one dataclass that round-trips with YAML and with the settings in ``result.json``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from inpaint_distill.adapters import get
from inpaint_distill.config import Config
from inpaint_distill.errors import ConfigError, near_names
from inpaint_distill.training.ablation import (
    ALONE,
    ARM_LABELS,
    BARE,
    CHANGES,
    FILLED,
    LONGER_OF,
    PRETRAINED,
    WHOLE,
    WIDENED,
    variant_config,
)

if TYPE_CHECKING:
    from inpaint_distill.host.adapter import Adapter

__all__ = ["BoostSettings", "Run"]


@dataclass(frozen=True, kw_only=True)
class Run:
    """One training of one host.

    Attributes:
        arm: ``pretrained``: the host that the others start from; ``bare``: the host alone; ``bare_equal_time``: alone,
            for the seconds that the last variant takes, as ``filled_equal_time`` for ``filled`` and
            ``completion_equal_time`` for ``completion``; ``widened``: alone, with ``widened_options``; otherwise the
            variant: ``distilled``, or one of ``VARIANTS`` or ``CHANGES`` in ``inpaint_distill.training.ablation``.
        seed: Seed of initialisation, data order, crops and masks: the same for every arm. A widened host, whose weights
            have other shapes, shares everything but the initialisation.
        steps: Optimizer steps, over which the schedule is laid.
        lr: Peak learning rate.
        trial: It only serves to choose the learning rate: the test images are not looked at.
    """

    arm: str
    seed: int
    steps: int
    lr: float
    trial: bool = False

    def __post_init__(self) -> None:
        if self.arm not in ARM_LABELS:  # it becomes part of file names
            raise ConfigError(f"a run of {self.arm!r}", "no such arm", f"use {near_names(self.arm, ARM_LABELS)}")

    @property
    def name(self) -> str:
        """Name of the run's files."""
        return f"{'trial' if self.trial else self.arm}-seed{self.seed}-steps{self.steps}-lr{self.lr:g}"


@dataclass(frozen=True, kw_only=True)
class BoostSettings:
    """A paired study of a host alone and the host with distillation, or with parts of it.

    Attributes:
        host: Name of the family in ``inpaint_distill.adapters``.
        host_options: Arguments of the family's ``build``.
        widened_options: Arguments of ``build`` for the arm ``widened``, in place of ``host_options``: those of a host
            with about the parameters of the host with completion blocks, to tell what the blocks do from what their
            parameters do.
        data: Folder of images, searched recursively; ``None`` makes synthetic scenes.
        masks: Folder of masks, white = hole; ``None`` draws free-form ones.
        size: Side of the training crops and the test images, in pixels.
        interpolate: Give the host, in every arm, its holes interpolated from the pixels around them instead of emptied:
            what that is worth, and what distillation adds to it.
        train_images: Use at most this many training images; with synthetic scenes, make this many.
        eval_images: Use at most this many validation and as many test images.
        batch: Images per step.
        start: File of a trained host's weights from which every run starts: of ``save_host``, ``torch.save`` or
            safetensors. ``None``: each seed starts from its own initialisation.
        pretrain_steps: Optimizer steps for which each seed's host is trained alone before its arms start from it, on
            images in another order: a study of fine-tuning. ``None``: they start from its initialisation.
        pretrain_lr: Its learning rate, with the same schedule.
        steps: Optimizer steps of the host and of the distilled host.
        seeds: One paired run each.
        lrs: Learning rates among which the bare host's is chosen, on validation images; extended where the best is at
            the end of the list.
        tune_steps: Steps of each of these trials; ``None`` for ``steps``.
        clip: Largest gradient norm.
        evaluations: Points of the learning curve.
        fade: Parts of the training (first, last) between which distillation fades to zero, after which it costs nothing
            more; completion blocks stay. ``None`` for never. It replaces ``distillation.decay``.
        equal_time: Also train the bare host for the seconds of the last variant.
        score_test: Score the test images at the end of each run; ``False`` while choosing between settings, so that
            nothing is chosen on them: the validation images are then all there is.
        variants: What is trained beside the bare host: ``distilled``, the distillation as it is; parts of it, or it
            with one thing changed; ``widened``.
        distillation: The distillation; by default that of :func:`~inpaint_distill.attach`, with completion blocks.
        jobs: Runs at a time, one thread each; ``None`` for the number of cores (1 on an accelerator).
        device: ``cpu`` or ``cuda``.
    """

    host: str = "partial-conv"
    host_options: dict[str, Any] = field(default_factory=dict)
    widened_options: dict[str, Any] = field(default_factory=dict)
    data: str | None = None
    masks: str | None = None
    interpolate: bool = False
    size: int = 32
    train_images: int | None = None
    eval_images: int | None = 400
    batch: int = 8
    start: str | None = None
    pretrain_steps: int | None = None
    pretrain_lr: float | None = None
    steps: int = 600
    seeds: tuple[int, ...] = (0, 1, 2)
    lrs: tuple[float, ...] = (1e-3, 2e-3, 4e-3)
    tune_steps: int | None = None
    clip: float = 1.0
    evaluations: int = 10
    fade: tuple[float, float] | None = (0.1, 0.25)
    equal_time: bool = True
    score_test: bool = True
    variants: tuple[str, ...] = (WHOLE,)
    distillation: Config = field(default_factory=lambda: Config(completion=True))
    jobs: int | None = None
    device: Literal["cpu", "cuda"] = "cpu"

    def __post_init__(self) -> None:
        for name in ("size", "batch", "steps", "evaluations"):
            if getattr(self, name) < 1:
                raise ConfigError(name, f"{getattr(self, name)}", "use an integer >= 1")
        for name in ("train_images", "eval_images", "pretrain_steps", "tune_steps", "jobs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(name, f"{value}", "use an integer >= 1, or leave it out")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds", f"{self.seeds}", "give distinct seeds, at least one; an interval needs two")
        if not self.lrs or min(self.lrs) <= 0:
            raise ConfigError("lrs", f"{self.lrs}", "give at least one learning rate > 0")
        steps, rate = self.pretrain_steps, self.pretrain_lr
        if (steps is None) != (rate is None) or (rate is not None and not rate > 0):
            found = f"pretrain_steps = {steps}, pretrain_lr = {rate}"
            raise ConfigError("a host that is trained beforehand", found, "give both, the rate > 0, or neither")
        if self.start is not None and steps is not None:
            raise ConfigError("a trained host to start from", "start and pretrain_steps", "leave one of them out")
        if WIDENED in self.variants and (self.start is not None or steps is not None):
            found = f"{'pretrain_steps' if self.start is None else 'start'}, the weights of another host"
            raise ConfigError(f"variant {WIDENED!r}", found, "leave one of them out")
        if self.fade is not None and not 0 <= self.fade[0] < self.fade[1] <= 1:
            raise ConfigError("fade", f"{self.fade}", "give two parts of the training, 0 <= first < last <= 1")
        if not self.variants or len(set(self.variants)) < len(self.variants):
            raise ConfigError("variants", f"{self.variants}", "give distinct variants, at least one")
        own = self.distillation_for(WHOLE, self.steps)
        for name in self.variants:
            if name == WIDENED:
                if not self.widened_options:
                    fix = "say how wide, such as widened_options: {width: 40}"
                    raise ConfigError(f"variant {name!r}", "no widened_options", fix)
                continue
            if name == FILLED:
                if self.interpolate:
                    raise ConfigError(
                        f"variant {name!r}", "interpolate = true, which fills them in every arm", "use one"
                    )
                continue
            variant_config(name, self.distillation)
            if name in CHANGES and self.distillation_for(name, self.steps) == own:
                raise ConfigError(f"variant {name!r}", "the study's distillation is like that", f"use {WHOLE!r}")

    def adapter(self, arm: str = BARE) -> Adapter:
        """Return the host's adapter, by which an arm calls it.

        Raises:
            ConfigError: There is none of that name.
        """
        found = get(self.host)
        return found.interpolated() if self.interpolate or LONGER_OF.get(arm, arm) == FILLED else found

    def options_for(self, arm: str) -> dict[str, Any]:
        """Return the arguments of ``build`` for an arm."""
        return self.widened_options if arm == WIDENED else self.host_options

    def fade_for(self, arm: str) -> tuple[float, float] | None:
        """Return the parts of the training between which an arm's distillation fades; ``None`` for never."""
        part = CHANGES[arm].fade if arm in CHANGES else 1.0
        return None if self.fade is None or part is None else (part * self.fade[0], part * self.fade[1])

    def distillation_for(self, arm: str, steps: int) -> Config | None:
        """Return an arm's distillation, with its fade in steps; ``None`` for a host alone."""
        if arm in ALONE:
            return None
        config, fade = variant_config(LONGER_OF.get(arm, arm), self.distillation), self.fade_for(arm)
        if fade is None:
            return config
        first, last = (round(part * steps) for part in fade)
        return dataclasses.replace(config, decay=(first, max(last, first + 1)))

    def trials(self) -> list[Run]:
        """Return the runs among which the learning rate is chosen; their seed is none of the study's."""
        steps = self.tune_steps or self.steps
        return [Run(arm=BARE, seed=self._trial_seed, steps=steps, lr=lr, trial=True) for lr in self.lrs]

    def pretrainings(self) -> list[Run]:
        """Return the runs whose hosts the others start from, the study's own seeds first, then that of the trials."""
        if self.pretrain_steps is None or self.pretrain_lr is None:
            return []
        steps, lr = self.pretrain_steps, self.pretrain_lr
        return [Run(arm=PRETRAINED, seed=seed, steps=steps, lr=lr) for seed in (*self.seeds, self._trial_seed)]

    def start_of(self, run: Run) -> Run | None:
        """Return the run whose host a run starts from; ``None`` where it starts from its seed's initialisation."""
        own = (each for each in self.pretrainings() if each.seed == run.seed)
        return None if run.arm == PRETRAINED else next(own, None)

    @property
    def _trial_seed(self) -> int:
        return 1 + max(*self.seeds, 999)
