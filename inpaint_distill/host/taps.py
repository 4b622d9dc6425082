"""Feature taps: hooks, as objects, that keep the listed features of one forward (ours)."""

from __future__ import annotations

import sys
import weakref
from collections import defaultdict
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.errors import CaptureError, PlanError, near_names
from inpaint_distill.host.compiling import break_graph

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.stage import Stage

__all__ = ["FeatureTaps", "Hook", "MethodHook", "Placed", "StopForward", "remove_with", "take_off"]


class StopForward(BaseException):
    """End a forward once its last tap has fired; not an ``Exception``, so that no host swallows it."""


class Hook:
    """A hook that works on the module it was put on and nowhere else.

    ``copy.deepcopy`` and ``pickle`` carry a module's hooks along. In the copy this one becomes the ``__exit__`` of a
    ``nullcontext``: the standard library's function that takes the three arguments of a forward hook and does
    nothing, so that a saved host also loads where this package is not installed.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (nullcontext(), "__exit__")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return nullcontext().__exit__


class MethodHook(Hook):
    """A hook that calls a method of its owner, beside any graph, and does not keep the owner alive.

    Args:
        owner: What has the method.
        method: Its name.
        beside: Why it cannot be part of a graph, and what to do where there has to be one graph, if it may meet one.
    """

    def __init__(self, owner: object, method: str, beside: str = "") -> None:
        self.owner = weakref.ref(owner)
        self.method = method
        self.beside = beside

    def __call__(self, *args: Any) -> Any:
        """Call the method, if the owner is still there."""
        owner = self.owner()
        if owner is None:
            return None
        if self.beside:
            break_graph(self.beside)
        return getattr(owner, self.method)(*args)


class Placed:
    """A handle that is made before its hook is put on a module, and finds the hook there by what it is.

    Between the return of torch's own and the note of it, Ctrl-C would leave a hook that nobody knows.

    Args:
        module: Where the hook is put next; it is not kept alive.
        hook: The hook.
    """

    def __init__(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        self._module = weakref.ref(module)
        self._hook = hook

    def remove(self) -> None:
        """Take the hook off, if it is there."""
        module = self._module()
        if module is not None:
            take_off(module, lambda hook: hook is self._hook)


def take_off(module: nn.Module, ours: Callable[[Any], bool]) -> None:
    """Take those hooks off a module that ``ours`` tells, whoever has the handles: a copy has others."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if ours(hook)]:
            del hooks[key]
            for options in (
                module._forward_hooks_with_kwargs,
                module._forward_hooks_always_called,
                module._forward_pre_hooks_with_kwargs,
            ):
                options.pop(key, None)
    loads = module._load_state_dict_pre_hooks  # of these torch keeps a wrapper
    for key in [key for key, each in loads.items() if ours(getattr(each, "hook", None))]:
        del loads[key]


def remove_with(owner: object, handles: list[Any]) -> None:
    """Take hooks off when their owner is gone without having done it; called before they are put on."""
    weakref.finalize(owner, _remove, handles).atexit = False


def _remove(handles: list[Any]) -> None:
    for handle in handles:
        handle.remove()
    handles.clear()


class _StageHook(Hook):
    """Keep what one module puts out, call by call."""

    def __init__(self, taps: FeatureTaps, wanted: dict[int, list[int]]) -> None:
        self.owner = weakref.ref(taps)  # the features die with whoever asked for them
        self.wanted = wanted  # n-th call -> indices of the stages it holds
        self.calls = 0

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        taps = self.owner()
        if taps is not None and taps.active:
            indices = self.wanted.get(self.calls, [])
            self.calls += 1
            for index in indices:
                taps.keep(index, output)


class FeatureTaps:
    """Taps for one module tree.

    Args:
        root: The module whose forward is watched.
        stages: What to keep; :meth:`take` returns the features in this order.

    Raises:
        PlanError: A stage names a module that ``root`` does not have.
    """

    def __init__(self, root: nn.Module, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.active = False
        self.watch: Callable[[int, Tensor], None] | None = None
        self.seen: Callable[[], None] | None = None
        self._kept: dict[int, tuple[Tensor, int | None]] = {}
        self._hooks: list[_StageHook] = []
        self._handles: list[Placed] = []
        remove_with(self, self._handles)
        modules = dict(root.named_modules(remove_duplicate=False))
        wanted: dict[str, dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
        for index, stage in enumerate(self.stages):
            if stage.name not in modules:
                near = near_names(stage.name, modules)
                raise PlanError(f"stage {stage.name!r}", "no such module", f"use an existing name, such as {near}")
            wanted[stage.name][stage.call].append(index)
        for name, calls in wanted.items():
            hook = _StageHook(self, dict(calls))
            self._hooks.append(hook)
            self._handles.append(Placed(modules[name], hook))
            modules[name].register_forward_hook(hook)

    def begin(self, watch: Callable[[int, Tensor], None] | None = None, seen: Callable[[], None] | None = None) -> None:
        """Forget the last forward and keep the next one.

        Args:
            watch: Told of each feature that takes a gradient, as it appears: it may be overwritten in place later.
            seen: Called once a feature is kept; it may end the forward by an exception.
        """
        self._kept.clear()
        self.watch = watch
        self.seen = seen
        for hook in self._hooks:
            hook.calls = 0
        self.active = True

    def keep(self, index: int, output: Any) -> None:
        """Keep one stage's feature; called by the hooks."""
        stage = self.stages[index]
        try:
            parts = stage.parts(output)
        except LookupError as error:
            raise CaptureError(f"stage {stage.label}", str(error), "correct the stage's `select`") from None
        for part in parts:
            if self.watch is not None and part.requires_grad:
                self.watch(index, part)
        feature = stage.join(parts)
        if stage.clone:
            feature = feature.clone()
        # In a graph the counter is not that of the tensor which leaves it; there the plan alone says what to clone.
        version = None if torch.compiler.is_dynamo_compiling() else feature._version
        self._kept[index] = (feature, version)
        if self.seen is not None:
            self.seen()

    def take(self) -> list[Tensor]:
        """Return the features of the watched forward and forget them.

        Raises:
            CaptureError: A stage did not run, or its feature was overwritten in place after the tap saw it.
        """
        self._end()
        kept, self._kept = self._kept, {}
        missing = [stage.label for index, stage in enumerate(self.stages) if index not in kept]
        if missing:
            found = "the forward ended without it: the module was skipped, bypassed or called fewer times than planned"
            fix = "tap another module: attach(..., stages=[...])"
            if "torch._dynamo" in sys.modules:
                found += ", or the host was compiled before the taps were put on it"
                fix += "; after compiling, call torch.compiler.reset() once the distiller is attached"
            raise CaptureError(f"a feature of {', '.join(missing)}", found, fix)
        for index, (feature, version) in kept.items():
            if version is not None and feature._version != version:
                label = self.stages[index].label
                found = "a later operation overwrote it in place"
                raise CaptureError(f"the feature of {label}", found, "plan it with Stage(..., clone=True)")
        return [kept[index][0] for index in range(len(self.stages))]

    def swap(self, kept: dict[int, tuple[Tensor, int | None]]) -> dict[int, tuple[Tensor, int | None]]:
        """Put what was kept of another forward in place of what is, and return that."""
        former, self._kept = self._kept, kept
        return former

    def clear(self) -> None:
        """Forget what was kept and stop watching."""
        self._end()
        self._kept.clear()

    def _end(self) -> None:
        """Let go of whoever is told: a circle would keep these taps, and their hooks, until garbage is collected."""
        self.active = False
        self.watch = self.seen = None

    def remove(self) -> None:
        """Take every hook off; other people's hooks stay."""
        self.clear()
        _remove(self._handles)
