"""The Distiller: what watches a host train and hands back one number to add to its loss."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.companion import CompanionOptimizer
from inpaint_distill.config import Config, to_dict
from inpaint_distill.errors import CaptureError, StateError
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.guard import forked_rng, module_device
from inpaint_distill.host.taps import FeatureTaps, MethodHook, remove_with
from inpaint_distill.inputs import check_complete, check_shapes, check_values
from inpaint_distill.losses.build import build_terms, term_weights
from inpaint_distill.losses.composer import Composer
from inpaint_distill.plan import Plan, plan_call, plan_images
from inpaint_distill.state import read_state, write_state
from inpaint_distill.teachers.base import CopyTeacher, Teacher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path
    from types import TracebackType

    from torch.autograd.graph import GradientEdge
    from typing_extensions import Self

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.losses.balance import Observation

__all__ = ["Distiller"]

_CHECK_EVERY = 100  # steps between checks that wait for an accelerator; on the CPU every step is checked


class Distiller:
    """Watches a host train; made by :func:`attach`.

    Attributes:
        config: Every choice.
        plan: What is tapped and added, once the host has run; prints as a table.
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        config: Config,
        teacher: Teacher,
        stages: Sequence[str | Stage] | None,
        adapter: Adapter | None,
    ) -> None:
        self.config = config
        self.plan: Plan | None = None
        self._host = host
        self._optimizer = optimizer
        self._teacher = teacher
        self._wanted = stages or (adapter.stages if adapter else None)
        self._source = "given by name" if stages else f"named by adapter {adapter.name!r}" if adapter else ""
        self._adapter = adapter
        self._composer = Composer(config, term_weights(config))
        self._terms = nn.ModuleDict()
        self._companion = CompanionOptimizer([], optimizer)
        self._taps: FeatureTaps | None = None
        self._recipe: Recipe | None = None
        self._pending: tuple[dict[str, Tensor], dict[str, Any]] | None = None
        self._call: HostCall | None = None
        self._observation: Observation | None = None
        self._ran_without_grad = False
        self._paused = 0
        self._step = 0
        self._handles: list[Any] = []
        self._attached = True

    # -- what the user calls -------------------------------------------------------------------------------------

    def loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the distillation loss of the host's last forward, to be added to the host's own loss.

        Args:
            image: The complete image (B, 3, H, W) of that forward, in [-1, 1] or [0, 1], whatever the host got.
            mask: (B, 1, H, W), 1 in the hole, 0 elsewhere.

        Returns:
            Scalar; exactly 0 and without a graph where every weight is 0 or the distiller is paused.

        Raises:
            InputError: Image or mask are not what they should be.
            CaptureError: The host has not run since the last loss, ran without gradients, or a tap saw nothing.
            ReplayError: The host's call cannot be repeated with the complete image.
        """
        if not self._attached:
            raise CaptureError("a distillation loss", "the distiller is detached", "attach() again")
        check_shapes(image, mask)
        if not torch.is_grad_enabled():
            raise CaptureError("a distillation loss", "loss() was called under no_grad", "call it with gradients on")
        if self._paused or not self._composer.active(self._step):
            return image.new_zeros((), dtype=torch.float32)
        call, features, observation, edges = self._take_forward()
        checked = image.device.type == "cpu" or self._recipe is None or self._step % _CHECK_EVERY == 0
        if checked:
            check_values(image, mask)
        teacher = self._teacher_features(call, image, mask, checked=checked) if self._needs_teacher else []
        size = (image.shape[2], image.shape[3])
        with torch.autocast(image.device.type, enabled=False):
            maps = [stage.as_map(f, size).float() for stage, f in zip(self._stages, features, strict=True)]
            targets = [feature.float() for feature in teacher]
            hole = mask.float().expand(image.shape[0], -1, -1, -1)
            terms = {name: term(maps, targets, hole) for name, term in self._terms.items()}
            loss = self._composer.combine(terms, self._step, observation, edges)
        loss.register_hook(self._companion.arrive)  # type: ignore[no-untyped-call]
        return loss

    @property
    def log(self) -> dict[str, Tensor]:
        """Named values of the last loss, detached, on the device: terms, the factors they entered with, the sum."""
        return dict(self._composer.log)

    def step(self) -> None:
        """Follow one optimizer step; called by the optimizer's own hook where one was given to :func:`attach`."""
        self._companion.step()
        self._teacher.update(self._host)
        self._step += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the host run unwatched, e.g. for validation; :meth:`loss` returns 0 inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def detach(self) -> nn.Module:
        """Take everything off the host and return it: same class, keys and attributes, no hook left."""
        self._attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._taps is not None:
            self._taps.remove()
        self._teacher.release()
        self._call = self._observation = None
        return self._host

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.detach()

    def save(self, path: str | Path) -> None:
        """Save all that a resumed run needs besides the host and its optimizer: one safetensors file.

        Raises:
            StateError: The folder does not exist, or the host has not run yet.
        """
        if self.plan is None:
            raise StateError(
                f"to save the distiller to {path}", "the host has not run yet", "save after the first step"
            )
        parts = {
            "terms": (dict(self._terms.state_dict()), {}),
            "teacher": self._teacher.state(),
            "companion": self._companion.state(),
            "composer": self._composer.state(),
        }
        tensors = {f"{part}/{name}": tensor for part, (own, _) in parts.items() for name, tensor in own.items()}
        values = {part: own for part, (_, own) in parts.items()}
        meta = {"step": self._step, "config": to_dict(self.config), "stages": [stage.label for stage in self._stages]}
        write_state(path, tensors, {**meta, "parts": values})

    def load(self, path: str | Path) -> None:
        """Take a saved state back; before the host's first forward it is kept until then.

        Raises:
            StateError: The file cannot be read, or was saved from other settings or stages.
        """
        tensors, values = read_state(path)
        if values["config"] != to_dict(self.config):
            changed = [key for key, value in to_dict(self.config).items() if values["config"].get(key) != value]
            found = f"saved with other settings of {', '.join(changed)}"
            raise StateError(f"the distiller saved in {path}", found, "attach with the configuration it was saved with")
        self._pending = (tensors, values)
        self._step = int(values["step"])
        if self.plan is not None:
            self._restore()

    # -- what the hooks call -------------------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._paused or not self._composer.active(self._step):
            return
        if not torch.is_grad_enabled():
            self._ran_without_grad = True
            return
        call = HostCall(args, kwargs)
        if self._taps is None:
            try:
                with self.paused():
                    self._prepare(plan_call(self._host, call, self._wanted, source=self._source))
            except BaseException:
                self.detach()
                raise
        self._observation = self._composer.observation(self._step, len(self._stages))
        if self._taps is not None:
            self._taps.begin(self._observation.watch if self._observation else None)
        self._call = call

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._taps is not None and not self._paused:
            self._taps.active = False

    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._paused:
            self.step()

    # -- how it is built -----------------------------------------------------------------------------------------

    def install(self, image: Tensor | None, mask: Tensor | None) -> None:
        """Plan if there is something to plan with, then put the hooks on; called by :func:`attach`."""
        self._teacher.bind(self._host)
        if image is not None and mask is not None:
            self._prepare(
                plan_images(self._host, image, mask, self._wanted, adapter=self._adapter, source=self._source)
            )
        before, after, step = (MethodHook(self, name) for name in ("_before_forward", "_after_forward", "_after_step"))
        self._handles = [
            self._host.register_forward_pre_hook(before, with_kwargs=True),
            self._host.register_forward_hook(after),
        ]
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_post_hook(step))
        remove_with(self, self._handles)

    def _prepare(self, plan: Plan) -> None:
        """Build teacher taps, terms and host taps on a plan."""
        device = module_device(self._host)
        if isinstance(self._teacher, CopyTeacher):
            self._teacher.follow(self._host)
        paired = self._teacher.plan(plan.stages, plan.image_size)
        with forked_rng():
            torch.default_generator.manual_seed(self.config.seed)
            self._terms = build_terms(self.config, plan.stages, paired).to(device)
        self._companion = CompanionOptimizer(self._terms.parameters(), self._optimizer)
        self._taps = FeatureTaps(self._host, plan.stages)
        added = tuple((name, sum(p.numel() for p in term.parameters())) for name, term in self._terms.items())
        self.plan = dataclasses.replace(plan, teacher=self._teacher.describe(), added=added)
        if self._pending is not None:
            self._restore()

    def _restore(self) -> None:
        tensors, values = self._pending or ({}, {})
        self._pending = None
        labels = [stage.label for stage in self._stages]
        if values["stages"] != labels:
            found = f"saved from stages {', '.join(values['stages'])}; these are {', '.join(labels)}"
            raise StateError("a saved distiller", found, "load it into the host it was saved from")

        def part(name: str) -> dict[str, Tensor]:
            return {key[len(name) + 1 :]: value for key, value in tensors.items() if key.startswith(f"{name}/")}

        try:
            self._terms.load_state_dict(part("terms"))
            self._teacher.load(part("teacher"), values["parts"]["teacher"])
            self._companion.load(part("companion"), values["parts"]["companion"])
            self._composer.load(part("composer"))
        except (RuntimeError, KeyError, ValueError, IndexError) as error:
            raise StateError("a saved distiller", f"{error}", "load it into the host it was saved from") from None

    def _teacher_features(self, call: HostCall, image: Tensor, mask: Tensor, *, checked: bool) -> list[Tensor]:
        """Run the teacher by the host's own call, with the complete image and an empty hole."""
        recipe = self._recipe
        known = recipe is not None and recipe.signature == call.signature()
        if recipe is None or not known or (checked and not recipe.fits(call, image, mask)):
            check_complete(image, mask)
            recipe = self._recipe = derive(self._host, call, image, mask, self._adapter)
            with self.paused():
                self._teacher.prepare(recipe, recipe.apply(call, image), image)
        return self._teacher.features(recipe.apply(call, image), image)

    def _take_forward(self) -> tuple[HostCall, list[Tensor], Observation | None, list[GradientEdge]]:
        """Hand out the last watched forward, once."""
        call, observation = self._call, self._observation
        self._call = self._observation = None
        if call is None or self._taps is None:
            if self._ran_without_grad:
                found, fix = "the host ran under no_grad", "run the host with gradients before loss()"
            else:
                found, fix = "the host has not run since the last one", "call the host, then loss(), once per forward"
            raise CaptureError("a distillation loss", found, fix)
        self._ran_without_grad = False
        edges, features = self._taps.take_edges(), self._taps.take()
        for stage, feature in zip(self._stages, features, strict=True):
            if not feature.requires_grad:
                found = "a feature without gradient: the layers before it are frozen"
                raise CaptureError(
                    f"stage {stage.label}", found, "train them, or name other stages: attach(stages=...)"
                )
        return call, features, observation, edges

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return self.plan.stages if self.plan else ()

    @property
    def _needs_teacher(self) -> bool:
        return any(getattr(term, "needs_teacher", False) for term in self._terms.values())
