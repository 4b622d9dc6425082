"""The Distiller: what watches a host train and hands back one number to add to its loss."""

from __future__ import annotations

import dataclasses
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from inpaint_distill.companion import CompanionOptimizer, adopt, disown
from inpaint_distill.distributed import Processes
from inpaint_distill.errors import CaptureError, PlanError, ReplayError, StateError
from inpaint_distill.host.adapted import derive
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.compiling import AroundCompiled, EagerForward, is_compiled_in_place, uncompiled
from inpaint_distill.host.forwards import Forward, Forwards
from inpaint_distill.host.guard import RandomState, forked_rng, module_device, module_place, runs_again
from inpaint_distill.host.image_source import find_image
from inpaint_distill.host.taps import MethodHook, Placed, remove_with
from inpaint_distill.host.tree import tensors
from inpaint_distill.host.watch import Views, Watch
from inpaint_distill.host.wrappers import check_whole, unwrap
from inpaint_distill.inject import inject, inject_saved
from inpaint_distill.injection import check_unlisted, injected
from inpaint_distill.inputs import check_complete, check_shapes, check_values
from inpaint_distill.lookahead.host_problem import HostProblem
from inpaint_distill.lookahead.lookahead import Lookahead
from inpaint_distill.losses.build import build_terms, term_weights
from inpaint_distill.losses.composer import Composer
from inpaint_distill.losses.screen import Screen
from inpaint_distill.losses.terms import Terms
from inpaint_distill.networks.meta import meta_parameters
from inpaint_distill.plan import Plan, Wanted, plan_call, plan_images
from inpaint_distill.saved import SavedDistiller
from inpaint_distill.state import Stateful, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from types import TracebackType

    from torch.autograd.graph import GradientEdge
    from typing_extensions import Self

    from inpaint_distill.config import Config
    from inpaint_distill.host.replay import Recipe
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.watch import Place
    from inpaint_distill.injection import Injected
    from inpaint_distill.lookahead.host_problem import Batch, InpaintingLoss
    from inpaint_distill.teachers.base import Teacher

__all__ = ["Distiller"]

_BESIDE = (
    "a distiller plans and watches beside the host's graph, and fullgraph=True leaves no room for that inside it: "
    "compile first, then attach to what is called: attach(torch.compile(host, fullgraph=True), ...)"
)
_NO_GRADIENT = (
    "nothing that takes a gradient: the layers before it are frozen, or run in reentrant gradient checkpointing",
    "train them, checkpoint them with use_reentrant=False, or tap others: attach(stages=..., attention=...)",
)
_CHECK_EVERY = 100  # distilled steps between checks that wait for an accelerator; on the CPU every step is checked


class Distiller:
    """Watches a host train; made by :func:`attach`.

    Attributes:
        config: Every choice.
        plan: What is tapped and added, once the host has run; prints as a table.
        attached: Whether it watches: until :meth:`detach`.
    """

    def __init__(
        self,
        host: nn.Module,
        optimizer: torch.optim.Optimizer | None,
        config: Config,
        teacher: Teacher,
        wanted: Wanted,
        inpainting_loss: InpaintingLoss | None = None,
    ) -> None:
        self.config = config
        self.plan: Plan | None = None
        self._called = host
        self._host = unwrap(host)
        self._optimizer = optimizer
        self._teacher = teacher
        self._wanted = wanted
        self._inpainting_loss = inpainting_loss
        self._composer = Composer(config, term_weights(config))
        self._terms = Terms()
        self._screen = Screen(config.nonfinite, {})
        self._companion = CompanionOptimizer([], optimizer)
        self._lookahead = Lookahead(config.lookahead, {}, config.every)
        self._injected: Injected | None = None
        self._watch: Watch | None = None
        self._planned: Plan | None = None  # before anything was added to it
        self._place = module_place(self._host)  # of the host, when all this was built
        self._recipe: Recipe | None = None
        self._pending: SavedDistiller | None = None
        self._forwards = Forwards()
        self._injects_anew = False
        self._guessed = False  # how the host is called, when it was planned
        self._ran_without_grad = False
        self._processes = Processes()
        self._whole = False
        self._paused = 0
        self._step = 0
        self._handles: list[Any] = []
        self.attached = True
        self._eager = EagerForward()
        teacher.engage(self)

    # -- what the user calls -------------------------------------------------------------------------------------

    @_disable_dynamo
    def loss(self, image: Tensor, mask: Tensor) -> Tensor:
        """Return the distillation loss of the host's last forward, to be added to the host's own loss.

        Args:
            image: The complete image (B, 3, H, W) of that forward, in [-1, 1] or [0, 1], whatever the host got.
            mask: (B, 1, H, W), 1 in the hole, 0 elsewhere.

        Returns:
            Scalar; exactly 0 and without a graph where every weight is 0, the distiller is paused or, with
            ``Config(every=n)``, at the steps between.

        Raises:
            InputError: Image or mask are not what they should be.
            CaptureError: The host has not run since the last loss, ran without gradients, or a tap saw nothing.
            ReplayError: The host's call cannot be repeated with the complete image.
            NumericsError: A term saw NaN or inf, unless ``Config(nonfinite="skip")``.
        """
        if not self.attached:
            raise CaptureError("a distillation loss", "the distiller is detached", "attach() again")
        check_shapes(image, mask, latent=self._wanted.latent)
        if self._paused:
            return image.new_zeros((), dtype=torch.float32)
        if not torch.is_grad_enabled():
            fix = "call it with gradients on; in validation, call it, and the host, within distiller.paused()"
            raise CaptureError("a distillation loss", "loss() was called under no_grad", fix)
        if not self._composer.due(self._step):
            if self._seeks_hole and self._forwards.last is not None:
                check_values(image, mask, latent=self._wanted.latent)
                self._derive(self._forwards.last.call, image, mask)
            self._forget()
            return image.new_zeros((), dtype=torch.float32)
        forward, student, edges = self._take_forward(image, mask)
        with self._processes.joint():
            self._processes.begin_alike(self._terms, getattr(self._teacher, "module", None))
            return self._compare(forward, student, edges, image, mask)

    @property
    def log(self) -> dict[str, Tensor]:
        """Named values of the last loss, detached, on the device: terms, the factors they entered with, the sum.

        With ``Config(every=n)`` they are those of the last step that was distilled. With ``Config(nonfinite="skip")``
        also how often each term has been left out, ``skipped/...``. Once all has faded, only that is left.
        """
        found = dict(self._composer.log)
        if self.config.nonfinite == "skip":
            found |= {f"skipped/{name}": count for name, count in self._screen.skipped.items()}
        if self._lookahead.objective is not None:
            found["inpainting after look-ahead"] = self._lookahead.objective
        return found

    @property
    def channel_weights(self) -> dict[str, Tensor]:
        """Mean over the last batch of ``rho/level`` and ``phi/level``, each (C,) and summing to 1; on the device.

        Empty where the channels weigh alike because no meta-network weighs them.
        """
        return self._terms.channel_weights

    def step(self) -> None:
        """Follow one optimizer step; called by the optimizer's own hook where one was given to :func:`attach`."""
        if not self.attached:
            return
        self._forget()  # a forward of the weights before the step
        if self._composer.over(self._step):  # the teacher is not asked again
            self._composer.log = {}
            self._lookahead.forget()
            self._step += 1
            return
        with self._processes.joint():
            self._composer.settle()
            self._companion.step()
            if self.plan is not None:
                self._teacher.update(self._host)
            self._step += 1
            if self._lookahead.due(self._step):
                with self.paused(), uncompiled():  # with weights and taps that no graph knows
                    self._lookahead.look(self._problem)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Let the host run unwatched, e.g. for validation; :meth:`loss` returns 0 inside."""
        self._paused += 1
        try:
            yield
        finally:
            self._paused -= 1

    def detach(self, *, keep_completion: bool = True) -> nn.Module:
        """Take everything off the host and return it: same class, keys and attributes, no hook left.

        Args:
            keep_completion: Leave injected blocks in the host, where they have become part of what it has learned;
                :func:`~inpaint_distill.save_host` saves them with it. ``False`` takes them out, and out of the
                optimizer; not those of an earlier distiller, where this one has no completion.
        """
        self.attached = False
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._watch is not None:
            self._watch.remove()
        self._teacher.release()
        self._forwards.clear()
        if self._injected is not None and not keep_completion:
            if self._optimizer is not None:
                disown(self._optimizer, self._injected)
            self._injected.remove(self._host)
            self._injected = None
        return self._called

    def undo(self) -> None:
        """Take off what has been put on the host so far; blocks that it had before, or that have been trained, stay."""
        self.detach(keep_completion=not self._injects_anew or self._step > 0)

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
            if self._pending is None:
                asked, fix = f"to save the distiller to {path}", "save after the first step"
                raise StateError(asked, "the host has not run yet", fix)
            dataclasses.replace(self._pending, step=self._step).write(path)  # nothing is planned after the fade
            return
        tensors, values = pack(self._parts)
        SavedDistiller(
            step=self._step,
            config=self.config,
            stages=[stage.label for stage in self._stages],
            tensors=tensors,
            parts=values,
            teacher=self._teacher.kind,
            injected=self._injected.to_spec() if self._injected is not None else None,
        ).write(path)

    def load(self, path: str | Path) -> None:
        """Take a saved state back; before the host's first forward it is kept until then.

        Raises:
            StateError: The file cannot be read, or was saved from other settings, stages or another kind of teacher.
        """
        saved = SavedDistiller.read(path)
        saved.check(path, self.config, self._teacher.kind)
        if self.plan is None:
            self._pending = saved
        else:
            self._restore(saved)
        self._step = saved.step

    # -- what the hooks call -------------------------------------------------------------------------------------

    @_disable_dynamo
    def _before_forward(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if runs_again() or self._paused or not self._wants_forward:
            return None
        if not torch.is_grad_enabled():
            self._ran_without_grad = True
            return None
        call = HostCall.of(args, kwargs)
        self._meet(module)
        late = self._watch is None or self._place != module_place(self._host)
        fresh = late and injected(self._host) is None
        if late:  # hooks that are put on the root now miss this forward of it
            self._build(call)
            if self._injected is not None:
                self._injected.begin(args, kwargs)
        self._settle_image(call)
        self._watch_forward(call)
        if late and module is self._host and self._watch is not None:
            self._watch.enter(module, args, kwargs)
        if fresh and module is self._host and self._injected is not None:
            return self._injected.rewrite_image(args, kwargs)
        return None

    @_disable_dynamo
    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if self._watch is not None and not self._paused and not runs_again():
            self._watch.end()
            if torch.is_grad_enabled() and self._forwards.last is not None and not self._forwards.last.ended:
                self._forwards.last.end(output)

    @_disable_dynamo
    def _finish_forward(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._eager.end()

    @_disable_dynamo
    def _after_step(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        overflow = getattr(optimizer, "found_inf", None)  # by it GradScaler tells a fused step to do nothing
        if not self._paused and not (overflow is not None and bool(overflow)):
            self.step()

    def _before_load(self, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Inject what the weights about to be loaded were saved with, if nothing has been injected yet."""
        own = inject_saved(self._host, state, prefix, planned=self.plan is not None)
        if own is not None and self._optimizer is not None:
            adopt(self._optimizer, self._host, own)

    # -- how it is built -----------------------------------------------------------------------------------------

    def install(self, image: Tensor | None, mask: Tensor | None) -> None:
        """Plan if there is something to plan with, then put the hooks on; called by :func:`attach`."""
        self._teacher.check()
        plan = None if image is None or mask is None else plan_images(self._host, image, mask, self._wanted)
        self._guessed = plan is not None and self._wanted.adapter is None
        names = ("_before_forward", "_after_forward", "_finish_forward", "_after_step")
        before, after, finish, step = (MethodHook(self, name, _BESIDE) for name in names)
        remove_with(self, self._handles)
        if is_compiled_in_place(self._called):
            self._handles.append(AroundCompiled(self._called, before, after, finish))
        else:
            self._handles += [Placed(self._called, hook) for hook in (before, after, finish)]
            self._called.register_forward_pre_hook(before, with_kwargs=True)
            self._called.register_forward_hook(after)
            self._called.register_forward_hook(finish, always_call=True)
        own = injected(self._host)
        if own is not None:  # these hooks see the image as the host is given it
            own.rewrite_last(self._host)
        load = MethodHook(self, "_before_load")
        self._handles.append(Placed(self._host, load))
        self._host._register_load_state_dict_pre_hook(load)  # type: ignore[no-untyped-call]
        if self._optimizer is not None:
            self._handles.append(self._optimizer.register_step_post_hook(step))
        if plan is not None:  # now: where the root itself is tapped, the hooks above have to come before the tap
            self._prepare(plan)

    def _prepare(self, plan: Plan) -> None:
        """Inject what is to be injected, and build teacher, terms and taps on a plan."""
        self._planned, self._place = plan, module_place(self._host)
        device = module_device(self._host)
        with forked_rng():
            torch.default_generator.manual_seed(self.config.seed)
            self._injects_anew = self._injects_anew or injected(self._host) is None
            self._injected, sites = inject(self._host, plan, self.config, tap=self._wanted.taps_attention)
            self._teacher.bind(self._host)
            paired = self._teacher.plan(plan.stages, plan.image_size, sites)
            if sites and not self._teacher.sites:
                if self._wanted.names_attention:
                    found = f"the teacher, {self._teacher.describe()}, has no attention that is named"
                    fix = "name it: ModuleTeacher(module, attention=[...]), or leave out attach(attention=...)"
                    raise PlanError("attention transfer between the layers named", found, fix)
                sites = ()
            plan = dataclasses.replace(plan, attention=sites)
            self._terms = build_terms(self.config, plan.stages, paired, sites, self._teacher.sites)
            self._terms.to(device)
            labels = ([each.label for each in places] for places in (plan.stages, sites))
            self._screen = Screen(self.config.nonfinite, self._terms.each, *labels)
        if self._injected is not None and self._optimizer is not None:
            adopt(self._optimizer, self._host, self._injected)
        self._composer.keep(self._terms.keys(), device)
        self._companion = CompanionOptimizer(self._terms.trained(), self._optimizer, self._host)
        self._lookahead = Lookahead(self.config.lookahead, dict(meta_parameters(self._terms)), self.config.every)
        restores = self._wanted.adapter is None or self._wanted.adapter.restores
        if self._lookahead.active and not restores and self._inpainting_loss is None:
            asked, found = "a restored image among the host's outputs", "outputs of another kind, such as noise"
            self._lookahead.give_up(ReplayError(asked, found, "give attach(inpainting_loss=...)"))
        self._watch = Watch(self._host, plan.stages, sites)
        added = [(name, sum(p.numel() for p in term.parameters())) for name, term in self._terms.items()]
        inserted = tuple(self._injected.describe()) if self._injected else ()
        self.plan = dataclasses.replace(plan, teacher=self._teacher.describe(), added=tuple(added), injected=inserted)
        if self._pending is not None:
            pending, self._pending = self._pending, None
            self._restore(pending)

    def _build(self, call: HostCall) -> None:
        """Build all of it beside a host that is about to run, or, where it has been moved since, all of it anew."""
        try:
            with self.paused():
                if self._planned is None:
                    self._prepare(plan_call(self._host, call, self._wanted))
                else:
                    self._build_anew(self._planned)
        except BaseException:
            self.undo()
            raise

    def _build_anew(self, plan: Plan) -> None:
        """Build the same again, with all that it has learned, beside a host that has been moved since.

        What is kept of a former batch stays behind: it is of the device or type that the host was of.
        """
        self._forget()
        self._lookahead.forget()
        state = pack(self._parts)
        if self._watch is not None:
            self._watch.remove()
        self._teacher.release()
        self._prepare(plan)
        unpack(self._parts, *state)
        self._recipe = None

    def _restore(self, saved: SavedDistiller) -> None:
        source = saved.check_host([stage.label for stage in self._stages], blocks=self._injected is not None)
        unpack(self._parts, saved.tensors, saved.parts)
        if self._injected is not None:
            self._injected.source = source

    @property
    def _parts(self) -> dict[str, Stateful]:
        """What has a state, by the name under which it is saved."""
        return {
            "terms": self._terms,
            "teacher": self._teacher,
            "companion": self._companion,
            "composer": self._composer,
            "lookahead": self._lookahead,
        }

    # -- what happens in a step ----------------------------------------------------------------------------------

    def _meet(self, running: nn.Module) -> None:
        """See how the host is trained: it may have been wrapped since :func:`attach`."""
        try:
            if not self._whole or getattr(running, "_is_replica", False):
                check_whole(self._called)
                check_whole(running)  # which may be a copy on another device
                self._whole = True
            if self._processes.meet(self._called):
                self._composer.wait()
                if (self.config.completion or self.config.fusion) and self.plan is None:
                    check_unlisted(self._host)
        except PlanError:
            if not self._step:  # else it may go on as before
                self.undo()
            raise

    def _compare(
        self, forward: Forward, student: Views, edges: dict[Place, GradientEdge], image: Tensor, mask: Tensor
    ) -> Tensor:
        """Let the teacher see the complete image, and add the terms up."""
        call = forward.call
        due = self._step // self.config.every % _CHECK_EVERY == 0
        checked = image.device.type == "cpu" or self._recipe is None or due
        if checked:
            elsewhere = self._processes.group is not None and self._recipe is not None
            check_values(image, mask, latent=self._wanted.latent, hole_elsewhere=elsewhere)
            if self._composer.balancer is not None:
                self._composer.balancer.check()
        self._explain(call, image, mask, checked=checked)
        teacher = Views()
        if self._terms.needs_teacher:
            # As the host ran, also where loss() is called outside the autocast.
            with torch.autocast(image.device.type, dtype=forward.autocast, enabled=forward.autocast is not None):
                teacher = self._teacher.views(self._teacher_call(call, image), image)
        with torch.autocast(image.device.type, enabled=False):
            student, teacher = student.float32(), teacher.float32()
            hole = mask.float().expand(image.shape[0], -1, -1, -1)
            terms = self._screen.values(self._terms(*self._screen.views(student, teacher), hole), self._step)
            if checked:
                self._screen.check(self._step)
            loss = self._composer.combine(terms, self._step, forward.observation, self._terms.looks_at, edges)
        loss.register_hook(self._companion.arrive)  # type: ignore[no-untyped-call]
        if self._recipe is not None:
            call = self._recipe.own(call, image, mask)
        self._lookahead.remember(self._step, call, image, mask, forward.autocast)
        return loss

    def _watch_forward(self, call: HostCall) -> None:
        """Keep what the forward that begins now shows, and how to repeat it."""
        if self.plan is not None and self.plan.overwrites:
            call = call.safe()
        if self.plan is not None and self.plan.draws:
            random = RandomState.now(module_device(self._host), others=self.plan.draws_others)
            call = dataclasses.replace(call, random=random)
        observation = self._composer.observation(self._step, self._host.parameters)
        device = module_device(self._host).type
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        self._forwards.add(Forward(call, autocast, observation), self._watch)
        if self._watch is not None:
            self._watch.begin(observation.watch if observation else None)
        if observation is not None:  # no graph shows the gradients inside it
            self._eager.begin()

    def _explain(self, call: HostCall, image: Tensor, mask: Tensor, *, checked: bool) -> None:
        """Find out which of the call's arguments carry image and mask, where that is not known or has changed."""
        if not (self._terms.needs_teacher or self._seeks_hole or self._lookahead.active):
            return
        recipe = self._recipe
        if recipe is None or recipe.signature != call.signature() or (checked and not recipe.fits(call, image, mask)):
            check_complete(image, mask)
            try:
                recipe = self._derive(call, image, mask)
            except ReplayError as error:
                if self._terms.needs_teacher or self._seeks_hole:
                    raise
                self._lookahead.give_up(error)
                return
            with self.paused():
                self._teacher.prepare(recipe, recipe.apply(call, image), image)

    def _settle_image(self, call: HostCall) -> None:
        """Move a block at the input to where the host's own call has its image, if it was planned by a guess."""
        own = self._injected
        if own is None or own.image is None or own.source is not None or not self._guessed:
            return
        with self.paused():
            found = find_image(self._host, call).source
        if found is not None and len(found.channels) == len(own.image.channels):
            self._guessed = False
            own.image = found
            if self.plan is not None:
                self.plan = dataclasses.replace(self.plan, injected=tuple(own.describe()))

    def _derive(self, call: HostCall, image: Tensor, mask: Tensor) -> Recipe:
        self._recipe = derive(self._host, call, image, mask, self._wanted.adapter)
        if self._seeks_hole and self._injected is not None:
            place = self._injected.image
            if place is not None and self._guessed and not self._recipe.has_image(place):
                self.undo()
                raise PlanError(
                    f"a completion block on {place}, by the call {self.plan and self.plan.call}",
                    f"the host's own call, {self._recipe.describe()}",
                    "attach without image and mask, with an adapter that calls it so, or with completion_levels=(0,)",
                )
            source = self._recipe.hole(self._host)
            if source is None:
                self.undo()
                raise PlanError(
                    "completion blocks, which rewrite the hole",
                    "no argument of the host's call carries the mask",
                    "set completion=False, or put the host into a module whose forward takes the mask",
                )
            self._injected.source = source
        return self._recipe

    def _teacher_call(self, call: HostCall, image: Tensor) -> HostCall:
        """Return the host's own call with the complete image and an empty hole."""
        if self._recipe is None:
            raise ReplayError("the teacher's call", "a host that has not run yet", "call the host, then loss()")
        return self._recipe.apply(call, image)

    def _forget(self) -> None:
        """Forget the forwards whose loss has not been asked for."""
        self._forwards.clear()
        if self._watch is not None:
            self._watch.clear()

    def _which(self, candidates: list[Forward], image: Tensor, mask: Tensor) -> Forward:
        """Return the newest forward of this batch; compares, and so waits for the device, where there are several."""
        if len(candidates) == 1:
            return candidates[0]
        found = "none is of this image and mask"
        for forward in candidates:
            recipe = self._recipe
            if recipe is None or recipe.signature != forward.call.signature():
                try:
                    recipe = derive(self._host, forward.call, image, mask, self._wanted.adapter)
                except ReplayError:
                    continue
            if not recipe.tells:
                found = "the call does not tell of which batch it is"
                break
            if recipe.fits(forward.call, image, mask):
                return forward
        raise CaptureError(
            f"the distillation loss of one of the host's last {len(candidates)} forwards",
            found,
            "call loss() right after the forward, and run others under torch.no_grad() or distiller.paused()",
        )

    def _take_forward(self, image: Tensor, mask: Tensor) -> tuple[Forward, Views, dict[Place, GradientEdge]]:
        """Hand out the watched forward of a batch, once."""
        candidates = self._forwards.candidates()
        if not candidates or self._watch is None:
            if self._ran_without_grad:
                found = "the host ran under no_grad, or in reentrant gradient checkpointing, which does so"
                fix = "run the host with gradients before loss(), and checkpoint it with use_reentrant=False"
            else:
                found = "the host has not run since the forward that the last one was of"
                fix = "call the host, then loss(), once per forward and in their order"
            raise CaptureError("a distillation loss", found, fix)
        self._ran_without_grad = False
        forward = self._which(candidates, image, mask)
        self._forwards.take(forward, self._watch)
        edges = self._watch.take_edges()
        views = self._watch.take((image.shape[2], image.shape[3]))
        labels = [f"stage {stage.label}" for stage in self._stages]
        labels += [f"attention {site.label}" for site in self._watch.sites]
        for label, seen in zip(labels, (*views.features, *views.attention), strict=True):
            if not any(tensor.requires_grad for _, tensor in tensors(seen)):
                raise CaptureError(label, *_NO_GRADIENT)
        return forward, views, edges

    def _problem(self, first: Batch, second: Batch) -> HostProblem:
        """Pose a look-ahead on two batches."""
        if self._recipe is None:
            raise ReplayError("a look-ahead", "a host that has not run yet", "call the host, then loss()")
        teacher = Views()
        if self._terms.needs_teacher:
            with first.cast():
                teacher = self._teacher.look(self._teacher_call(first.call, first.image), first.image)
        return HostProblem(
            host=self._host,
            stages=self._stages,
            sites=self._watch.sites if self._watch else (),
            terms=self._terms.each,
            factors=self._composer.factors(),
            first=first,
            teacher=teacher.float32(),
            second=second,
            recipe=self._recipe,
            inpainting_loss=self._inpainting_loss,
        )

    @property
    def _wants_forward(self) -> bool:
        """Whether a forward in this step is to be seen: for a loss, to find the hole, or to plan."""
        unplanned = self._watch is None and (self.config.fusion or self._composer.active(self._step))
        return self._composer.due(self._step) or self._seeks_hole or unplanned

    @property
    def _stages(self) -> tuple[Stage, ...]:
        return self.plan.stages if self.plan else ()

    @property
    def _seeks_hole(self) -> bool:
        """Whether completion blocks are wanted and it is not known yet where the host's call carries the hole."""
        return self.config.completion and (self._injected is None or self._injected.source is None)
