"""The modules that change the host and stay in it: completion blocks, and attention where there was none."""

from __future__ import annotations

import dataclasses
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from inpaint_distill.description import EXTRA, encode, kinds_and_places, read
from inpaint_distill.errors import CaptureError, PlanError, StateError
from inpaint_distill.host.attention_calls import apart
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.compiling import is_exporting
from inpaint_distill.host.guard import forked_rng, runs_again
from inpaint_distill.host.hole import HoleSource
from inpaint_distill.host.image_source import ImageSource
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import take_off
from inpaint_distill.host.trace import RESERVED
from inpaint_distill.host.wrappers import check_whole
from inpaint_distill.networks.completion import CompletionBlock
from inpaint_distill.networks.fusion import GlobalLocalAttention

if TYPE_CHECKING:
    from collections.abc import Callable

_Block = TypeVar("_Block", bound=nn.Module)

__all__ = ["KINDS", "Injected", "check_unlisted", "completion_kind", "injected", "kind_of"]

KINDS: dict[str, tuple[str, Callable[..., nn.Module]]] = {
    "completion": ("completion block", CompletionBlock),
    "adaptive completion": ("adaptive completion block", partial(CompletionBlock, adaptive=True)),
    "interpolating completion": (
        "completion block that starts at the interpolation",
        partial(CompletionBlock, interpolate=True),
    ),
    "adaptive interpolating completion": (
        "adaptive completion block that starts at the interpolation",
        partial(CompletionBlock, adaptive=True, interpolate=True),
    ),
    "fusion": ("attention with global-local fusion", GlobalLocalAttention),
}
"""By the names in files: the name in messages, and how to build one for so many channels."""

_HIDDEN = 32  # channels inside the block of an image, whose own three would be few


class _Known:
    """Where the hole is, once it is known; copies of a host that were made before learn of it, too."""

    def __init__(self, source: HoleSource | None = None) -> None:
        self.source = source

    def __deepcopy__(self, memo: dict[int, Any]) -> _Known:
        return self if self.source is None else _Known(self.source)


class Injected(nn.Module):
    """What is injected into one host: registered on its root, run by hooks that rewrite the outputs of its stages.

    It moves with the host, is in its ``state_dict`` with a description of itself, and is copied and pickled with it,
    hooks included. Each of its blocks starts as the identity, but for one at the input that is to start at the
    interpolation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        self.stages: list[Stage] = []
        self.image_block: CompletionBlock | None = None
        self.image: ImageSource | None = None
        self._known = _Known()
        self._hole: Tensor | None = None
        self._image_size = (0, 0)
        self._calls: dict[int, int] = {}
        self._over = True

    @property
    def source(self) -> HoleSource | None:
        """Where the host's call carries the hole; ``None`` as long as that is not known."""
        return self._known.source

    @source.setter
    def source(self, source: HoleSource | None) -> None:
        if self._known.source is None:
            self._known.source = source
        else:
            self._known = _Known(source)

    def stand_alone(self) -> None:
        """Learn nothing of what the host finds out that this is a copy of."""
        self._known = _Known(self.source)

    def install(self, host: nn.Module) -> None:
        """Register this on a host that has none yet.

        Raises:
            PlanError: The host already has a sub-module of this name, or runs its children one by one.
        """
        if hasattr(host, RESERVED):
            found = f"a {type(getattr(host, RESERVED)).__name__} of that name"
            raise PlanError(f"to inject a sub-module {RESERVED!r}", found, "detach the first distiller, or rename it")
        if isinstance(host, (nn.Sequential, nn.ModuleList, nn.ModuleDict)):
            raise PlanError(
                "to inject a sub-module into the host",
                f"a {type(host).__name__}, which would run it as one more layer",
                "put the host into a module whose forward calls it",
            )
        host.add_module(RESERVED, self)
        host.register_forward_pre_hook(_Begin(self), prepend=True, with_kwargs=True)
        host.register_forward_hook(_End(self), always_call=True)

    def add(self, host: nn.Module, block: nn.Module, stage: Stage) -> None:
        """Let a block rewrite a stage's output, before any other hook sees it."""
        if callable(stage.select):
            found, fix = "a feature chosen by a function, which cannot be saved", "give the path: Stage(select=(...))"
            raise PlanError(f"a block after {stage.label}", found, fix)
        module = host.get_submodule(stage.name)
        self.blocks.append(_beside(block, module, host))
        self.stages.append(stage)
        module.register_forward_hook(_Rewrite(self, len(self.blocks) - 1), prepend=True)

    def add_at_input(self, host: nn.Module, image: ImageSource, kind: str) -> None:
        """Let a completion block rewrite the image among the host's arguments, after any other hook has seen it."""
        hidden = {} if "adaptive" in kind else {"hidden": _HIDDEN}
        block = cast("CompletionBlock", KINDS[kind][1](len(image.channels), **hidden))
        self.image_block, self.image = _beside(block, host), image
        host.register_forward_pre_hook(_RewriteImage(self), with_kwargs=True)

    def rewrite_last(self, host: nn.Module) -> None:
        """Let hooks on the root that have come since see the image as the host was given it."""
        hooks = host._forward_pre_hooks
        for key in [key for key, hook in hooks.items() if isinstance(hook, _RewriteImage) and hook.own is self]:
            hooks[key] = hooks.pop(key)  # last

    def remove(self, host: nn.Module) -> None:
        """Take everything off the host."""
        for module in host.modules():
            take_off(module, lambda hook: isinstance(hook, _Hook) and hook.own is self)
        if getattr(host, RESERVED, None) is self:
            delattr(host, RESERVED)

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the size of the image, and the hole, of a call.

        A checkpoint around the whole call runs it again in backward, and has to see what the call saw.
        """
        blind = self.source is None or (runs_again() and self._hole is None)
        self._calls = {}
        self._over = False
        self._image_size = HostCall(args, kwargs).image_size() or (0, 0)
        self._hole = self.source.read(args, kwargs) if self.source is not None and not blind else None

    def rewrite_image(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Return a call's arguments with the image rewritten; ``None`` leaves them, where the hole is not known."""
        block, image, hole = self.image_block, self.image, self._hole
        if block is None or image is None or (hole is None and not torch.is_grad_enabled()):
            return None

        def change(pixels: Tensor) -> Tensor:
            own = torch.zeros_like(pixels[:, :1]) if hole is None else hole
            changed: Tensor = block(pixels, own)
            return changed

        return image.rewrite(args, kwargs, change)

    def end(self) -> None:
        """Note that the forward is over; the hole is kept for what gradient checkpointing runs again in backward."""
        self._over = True
        if is_exporting():
            self._hole = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave the hole of the last batch out of copies and files."""
        left: dict[str, Any] = {"_hole": None, "_calls": {}, "_over": True}
        return {**self.__dict__, **left, "_next_hook": RemovableHandle.next_id}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Let hooks that are put on from now on have other numbers than those that come with a pickled host."""
        state = dict(state)
        RemovableHandle.next_id = max(RemovableHandle.next_id, state.pop("_next_hook", 0))
        if "source" in state:  # of a version before
            state["_known"] = _Known(state.pop("source"))
        super().__setstate__(state)  # type: ignore[no-untyped-call]

    def rewrite(self, index: int, output: Any) -> Any:
        """Return a module's output with a stage's feature rewritten; what travels with it (a mask) stays as it is."""
        stage = self.stages[index]
        call = self._calls.get(index, 0)
        if not self._over:
            self._calls[index] = call + 1
        elif not runs_again():
            return output  # an activation that other models share, or a part that is called by itself
        elif call == 1:
            call = 0  # the one call of this forward, run again
        elif call:
            raise CaptureError(
                f"a block after {stage.label}",
                f"gradient checkpointing of a module that runs {call} times in one forward",
                "checkpoint other modules, or leave this stage out of completion_levels",
            )
        block = self.blocks[index]
        completes = isinstance(block, CompletionBlock)
        # A teacher's copy, and the first forward, do not know the hole. Training begins with an empty one, so that the
        # block's parameters are in the graph from the first step on.
        blind = completes and self._hole is None
        if call != stage.call or (blind and not torch.is_grad_enabled()):
            return output
        feature = stage.read(output)
        map = stage.as_map(feature, self._image_size)
        hole = map.new_zeros(map.shape[0], 1, *self._image_size) if blind else self._hole
        if completes:
            changed = block(map, hole)
        else:
            with nullcontext() if torch.compiler.is_compiling() else apart():
                changed = block(map)
        return stage.write(output, stage.as_output(changed, feature))

    def describe(self) -> list[str]:
        """Say in one line each what is injected."""
        found = []
        if self.image_block is not None and self.image is not None:
            kind, count = KINDS[kind_of(self.image_block)][0], sum(p.numel() for p in self.image_block.parameters())
            found.append(f"{kind} on {self.image}: {count:,} parameters")
        return found + [
            f"{KINDS[kind_of(block)][0]} after {stage.label}: {sum(p.numel() for p in block.parameters()):,} parameters"
            for block, stage in zip(self.blocks, self.stages, strict=True)
        ]

    def to_spec(self) -> dict[str, Any]:
        """Return what is needed to build the same again, as JSON values."""
        return {
            "source": dataclasses.asdict(self.source) if self.source else None,
            "image": {"kind": kind_of(self.image_block), **dataclasses.asdict(self.image)}
            if self.image_block is not None and self.image is not None
            else None,
            "blocks": [
                {"kind": kind_of(block), "stage": dataclasses.asdict(stage)}
                for block, stage in zip(self.blocks, self.stages, strict=True)
            ],
        }

    def get_extra_state(self) -> Tensor:
        """Return :meth:`to_spec` for the host's ``state_dict``, from which :func:`spec_in` reads it in any file."""
        return encode(self.to_spec(), next(self.parameters()))

    def set_extra_state(self, state: Any) -> None:
        """Take from a state where the hole is, unless that is known.

        Raises:
            StateError: The state is of blocks of another kind, or in other places.
        """
        if (spec := read(state)) is None:
            return
        own, others = (kinds_and_places(each) for each in (self.to_spec(), spec))
        if own != others:
            raise StateError(
                f"weights for {' and '.join(own)}",
                f"those of {' and '.join(others)}",
                "attach as they were trained, or load them by load_host() into a host without blocks",
            )
        if self.source is None:
            self.source = Injected.read_source(spec)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        prefix, missing = args[1], args[4]
        if f"{prefix}{EXTRA}" in missing:  # a state of before there was one
            missing.remove(f"{prefix}{EXTRA}")

    @staticmethod
    def read_source(spec: dict[str, Any]) -> HoleSource | None:
        """Return where the hole is, according to :meth:`to_spec`."""
        source = spec["source"]
        return None if source is None else HoleSource(**{**source, "path": tuple(source["path"])})

    @staticmethod
    def from_spec(host: nn.Module, spec: dict[str, Any]) -> Injected:
        """Build and install on a host what :meth:`to_spec` described; after an error nothing of it stays."""
        own = Injected()
        own.install(host)
        try:
            own.source = Injected.read_source(spec)
            with forked_rng():  # the blocks' first weights are drawn, and replaced
                if (image := spec.get("image")) is not None:
                    image = dict(image)
                    kind = image.pop("kind")
                    own.add_at_input(host, ImageSource.from_spec(image), kind)
                for each in spec["blocks"]:
                    stage = Stage.from_spec(each["stage"])
                    own.add(host, KINDS[each["kind"]][1](stage.channels), stage)
        except BaseException:
            own.remove(host)
            raise
        return own


class _Hook:
    """A hook that stays in the host; unlike a tap, it is copied and pickled with it."""

    def __init__(self, own: Injected) -> None:
        self.own = own


class _Begin(_Hook):
    """Root pre-hook that reads the hole."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if getattr(module, "_is_replica", False):
            check_whole(module)  # says why: the copies would share one hole
        self.own.begin(args, kwargs)


class _RewriteImage(_Hook):
    """Root pre-hook that rewrites the image."""

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        return self.own.rewrite_image(args, kwargs)


class _End(_Hook):
    """Root hook that ends it."""

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.own.end()


class _Rewrite(_Hook):
    """Hook of one stage's module."""

    def __init__(self, own: Injected, index: int) -> None:
        super().__init__(own)
        self.index = index

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        return self.own.rewrite(self.index, output)


def kind_of(block: nn.Module) -> str:
    """Return a block's key in the table of kinds."""
    if not isinstance(block, CompletionBlock):
        return "fusion"
    return completion_kind(adaptive=block.adaptive, interpolate=block.interpolate)


def completion_kind(*, adaptive: bool, interpolate: bool) -> str:
    """Return the key of a completion block in the table of kinds."""
    return f"{'adaptive ' if adaptive else ''}{'interpolating ' if interpolate else ''}completion"


def _beside(block: _Block, *modules: nn.Module) -> _Block:
    """Bring a block to the device and type of the first parameter that one of the modules has."""
    parameter = next((each for module in modules for each in module.parameters()), None)
    if parameter is not None:
        trains = parameter.is_floating_point() and parameter.itemsize > 1  # integers and 8 bits hold weights alone
        block.to(device=parameter.device, dtype=parameter.dtype if trains else None)
    return block


def injected(host: nn.Module) -> Injected | None:
    """Return what has been injected into a host."""
    own = getattr(host, RESERVED, None)
    return own if isinstance(own, Injected) else None


def check_unlisted(host: nn.Module) -> None:
    """Refuse a host that DDP has wrapped before anything was injected.

    Raises:
        PlanError: Nothing has been.
    """
    if injected(host) is None:
        found = "DistributedDataParallel, which has already listed the parameters that it synchronises"
        raise PlanError("to inject a sub-module into the host", found, "attach before wrapping, with image and mask")
