"""Attention taps: hooks, as objects, that keep queries and keys, or rows, of the listed attention layers (ours)."""

from __future__ import annotations

import dataclasses
import sys
from collections import defaultdict
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo
from torch.autograd.graph import saved_tensors_hooks

from inpaint_distill.errors import CaptureError, PlanError, near_names
from inpaint_distill.host.attention_calls import (
    AttentionCall,
    AttentionMode,
    entering_of,
    is_mha,
    join_samples,
    read_mha,
)
from inpaint_distill.host.mode_stack import OpenedMode, current_modes, take_off_modes
from inpaint_distill.host.taps import MethodHook, Placed, remove_with

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.overrides import TorchFunctionMode

    from inpaint_distill.host.attention import AttentionMap, AttentionSite

__all__ = ["AttentionTaps"]


@dataclass
class _Session:
    """What the hooks of one :class:`AttentionTaps` share."""

    sites: tuple[AttentionSite, ...]
    logits: bool
    active: bool = False
    watch: Callable[[int, Tensor], None] | None = None
    seen: Callable[[], None] | None = None
    outside: Sequence[TorchFunctionMode] = ()  # modes around the forward that is watched
    kept: dict[int, tuple[AttentionMap, list[tuple[Tensor, int]]]] = field(default_factory=dict)

    def keep(self, index: int, calls: list[AttentionCall], entering: Tensor | None) -> None:
        """Keep what one site showed: one call, or one for each sample."""
        site = self.sites[index]
        refused = next((call.refusal for call in calls if call.refusal), "")
        if refused or calls[0].kind != site.kind:
            found = refused or f"a call of kind {calls[0].kind!r}"
            raise CaptureError(f"attention {site.label} ({site.kind})", found, _FIX)
        if self.watch is not None:
            for call in calls:
                for offset, tensor in enumerate(call.own):
                    if tensor.requires_grad:
                        self.watch(2 * index + offset, tensor)
        joined = _joined(site, calls)
        joined.entering = None if entering is None else entering.detach()
        versions = [each for call in calls for each in call.versions]
        self.kept[index] = (joined, versions)
        if self.seen is not None:
            self.seen()


@dataclass
class _Running:
    """One call of a module that has begun."""

    number: int
    handled: BaseException | None  # what an ``except`` around the host is dealing with
    mode: AttentionMode | None
    opened: OpenedMode | None


class _ModuleTap:
    """Watch one module: its own calls by hook, the functions called inside it by a mode.

    Under ``torch.compile`` the hooks themselves are left as they are: dynamo does not follow their bookkeeping. The
    public ``torch.compiler.disable`` would import it together with this file.
    """

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.wanted: dict[int, list[tuple[int, int]]] = defaultdict(list)  # n-th call -> (n-th attention in it, site)
        self.calls = 0
        self.running: list[_Running] = []

    def reset(self) -> None:
        """Count calls from 0, and take off the modes that an interrupted forward left."""
        self.calls = 0
        while self.running:
            self._end()

    @_disable_dynamo
    def enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call of the module."""
        if self.session.active:
            # A mode would keep an nn.MultiheadAttention off its fast path, and is not needed there.
            unseen = self.calls not in self.wanted or is_mha(module)
            mode = None if unseen else AttentionMode(logits=self.session.logits)
            self.running.append(_Running(self.calls, sys.exc_info()[1], mode, OpenedMode(mode) if mode else None))
            self.calls += 1

    @_disable_dynamo
    def leave(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """End a call of the module, and keep what it showed unless an exception ended it."""
        if not self.running:
            return
        call = self._end()
        if call.number not in self.wanted or not self.session.active or sys.exc_info()[1] is not call.handled:
            return
        entering = entering_of(args, kwargs)
        if is_mha(module):
            # A checkpoint counts what is saved in it, and its second run will find no tap.
            with ExitStack() as stack:
                with suppress(RuntimeError):  # disabled in a look-ahead, through which no checkpoint goes
                    stack.enter_context(saved_tensors_hooks(_same, _same))
                projected = read_mha(module, *args, **kwargs)
            projected.remember(logits=False)
            entering = projected.entering
            groups = [[projected]]
        else:
            seen = call.mode.calls if call.mode is not None else []
            groups = join_samples(seen, None if entering is None else entering.shape[0])
        for number, index in sorted(self.wanted[call.number]):
            if number < len(groups):
                self.session.keep(index, groups[number], entering)

    def _end(self) -> _Running:
        call = self.running.pop()
        if call.mode is not None:
            call.mode.over = True
        if call.opened is not None:
            passing = sys.exc_info()[1] is not call.handled
            call.opened.close(self.session.outside if passing else ())
        return call


class AttentionTaps:
    """Attention taps for one module tree.

    A forward under ``torch.compile`` is seen if it is compiled with the taps in place: the graph breaks at tapped
    modules, and ``fullgraph=True`` is refused with the reason. A graph compiled before never calls the taps;
    :meth:`take` reports it.

    Args:
        root: The module whose forward is watched.
        sites: What to keep; :meth:`take` returns the maps in this order.
        logits: Also keep the input of a tapped softmax (for a teacher).

    Raises:
        PlanError: A site names a module that ``root`` does not have, or one of another kind.
    """

    def __init__(self, root: nn.Module, sites: Sequence[AttentionSite], *, logits: bool = False) -> None:
        self.sites = tuple(sites)
        self._session = _Session(self.sites, logits)
        self._taps: dict[str, _ModuleTap] = {}
        self._handles: list[Placed] = []
        remove_with(self, self._handles)
        modules = dict(root.named_modules(remove_duplicate=False))
        for index, site in enumerate(self.sites):
            if site.name not in modules:
                near = near_names(site.name, modules)
                raise PlanError(f"attention {site.name!r}", "no such module", f"use an existing name, such as {near}")
            if (site.kind == "mha") != is_mha(modules[site.name]):
                found = f"a {type(modules[site.name]).__name__}"
                raise PlanError(f"attention {site.label} of kind {site.kind!r}", found, "leave the kind to the dry run")
            tap = self._taps.setdefault(site.name, _ModuleTap(self._session))
            tap.wanted[site.call].append((site.index, index))
        for name, tap in self._taps.items():
            module = modules[name]
            enter, leave = MethodHook(tap, "enter", _BESIDE), MethodHook(tap, "leave", _BESIDE)
            self._handles += [Placed(module, enter), Placed(module, leave)]
            module.register_forward_pre_hook(enter, with_kwargs=True)
            # First of all hooks: one on the root says that the forward is over, after which nothing is kept.
            module.register_forward_hook(leave, with_kwargs=True, always_call=True, prepend=True)

    @property
    def active(self) -> bool:
        """Whether what runs is kept."""
        return self._session.active

    @active.setter
    def active(self, active: bool) -> None:
        self._session.active = active

    def begin(self, watch: Callable[[int, Tensor], None] | None = None, seen: Callable[[], None] | None = None) -> None:
        """Forget the last forward and keep the next one.

        Args:
            watch: Told of each tensor that takes a gradient, as its module ends: (2 i, query) and (2 i + 1, key) of
                site i, or (2 i, rows), once for each sample where the host loops over the samples. Of an
                ``nn.MultiheadAttention`` these are its arguments, as its projections cannot be reached.
            seen: Called once for each site, when its module has ended.
        """
        self.clear()
        self._session.watch, self._session.seen = watch, seen
        self._session.outside = current_modes()
        self._session.active = True

    def enter(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Begin a call of the root, where its forward had begun before the taps were put on."""
        if "" in self._taps:
            self._taps[""].enter(root, args, kwargs)

    def take(self) -> list[AttentionMap]:
        """Return what the watched forward showed and forget it.

        Raises:
            CaptureError: A site showed nothing, or what it showed was overwritten in place afterwards.
        """
        kept = dict(self._session.kept)
        self.clear()
        missing = [site.label for index, site in enumerate(self.sites) if index not in kept]
        if missing:
            found = (
                "the forward ended without it: its module was skipped or called fewer times than planned, "
                "or the model was compiled before the taps were put on it"
            )
            raise CaptureError(f"the attention of {', '.join(missing)}", found, _FIX)
        for index, (_, versions) in kept.items():
            if any(tensor._version != version for tensor, version in versions):
                label = self.sites[index].label
                raise CaptureError(f"the attention of {label}", "a later operation overwrote it in place", _FIX)
        return [kept[index][0] for index in range(len(self.sites))]

    def swap(self, kept: Any) -> Any:
        """Put what was kept of another forward in place of what is, and return that."""
        former, self._session.kept = self._session.kept, kept
        return former

    def clear(self) -> None:
        """Forget what was kept and stop watching."""
        self._session.active = False
        self._session.watch = self._session.seen = None
        self._session.kept.clear()
        for tap in self._taps.values():
            tap.reset()
        take_off_modes(lambda mode: isinstance(mode, AttentionMode) and mode.over)  # that have come back

    def remove(self) -> None:
        """Take every hook off; other people's hooks stay."""
        self.clear()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()


_BESIDE = (
    "attention is read beside the host's graph, and fullgraph=True leaves no room for that inside it: "
    "compile without fullgraph=True, or tap no attention: attach(..., attention=())"
)
_FIX = "tap another attention layer, or none: attach(..., attention=[...]); compile the model after attaching"


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _joined(site: AttentionSite, calls: list[AttentionCall]) -> AttentionMap:
    """Make one map of a site's calls, with its heads in their own dimension and without the prefix's rows."""
    maps = [call.map for call in calls]
    heads = site.heads if calls[0].folded else 1

    def join(name: str, *, queries: bool) -> Tensor | None:
        parts = [getattr(each, name) for each in maps]
        if any(part is None for part in parts):
            return None
        tensor: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        if heads > 1 and tensor.shape[0] % heads == 0:
            tensor = tensor.reshape(-1, heads, *tensor.shape[2:])
        return tensor[:, :, site.prefix :] if queries and tensor.shape[2] > 1 else tensor

    return dataclasses.replace(
        maps[0],
        query=join("query", queries=True),
        key=join("key", queries=False),
        bias=join("bias", queries=True),
        rows=join("rows", queries=True),
        logits=join("logits", queries=True),
    )
