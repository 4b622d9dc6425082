"""Find a host's attention layers in one dry run (ours)."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from inpaint_distill.host.attention import AttentionMap, AttentionSite, grids
from inpaint_distill.host.attention_calls import (
    AttentionCall,
    entering_of,
    is_mha,
    join_samples,
    read_function,
    read_mha,
)
from inpaint_distill.host.attention_choice import AttentionCandidate
from inpaint_distill.host.compiling import uncompiled
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.stage import MAX_PREFIX, level_of, token_grid
from inpaint_distill.host.taps import Hook
from inpaint_distill.host.trace import RESERVED
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["find_attention"]

_MIN_TOKENS = 16  # a hole on a grid below 4 x 4 says nothing
_MIN_KEYS = 4  # fewer are weights of a few branches
_PRODUCTS = frozenset(
    {"linear", "conv1d", "conv2d", "conv3d", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "baddbmm"}
    | {"einsum", "tensordot", "cdist"}
)


def find_attention(host: nn.Module, run: Callable[[], Any], image_size: tuple[int, int]) -> list[AttentionCandidate]:
    """Run the host once without gradients and list what may be attention, in order of running.

    An image that is not square tells more: there, channels or words are rarely as many as some grid of places.

    Args:
        host: The model; it is as before afterwards.
        run: Calls the host.
        image_size: Height and width of the image that it runs on.
    """
    recorder = _Recorder(host, image_size)
    handles = []
    try:
        for module in recorder.names:
            handles.append(module.register_forward_pre_hook(recorder.begin, with_kwargs=True))
            handles.append(module.register_forward_hook(recorder.end, with_kwargs=True))
        with untouched(host), torch.no_grad(), uncompiled(), _Watching(recorder):
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [candidate for _, candidate in sorted(recorder.found, key=lambda each: each[0])]


@dataclass
class _Frame:
    """One call of one module, and the attention computed in it."""

    name: str
    call: int
    entering: Tensor | None
    arguments: list[Tensor]
    calls: list[AttentionCall] = field(default_factory=list)
    positions: dict[int, int] = field(default_factory=dict)  # id of a call that is this module's own -> when it ran


class _Recorder(Hook):
    """Write down which module computes which attention."""

    def __init__(self, host: nn.Module, image_size: tuple[int, int]) -> None:
        self.names = {module: name for name, module in host.named_modules()}
        self.modules = {name: module for module, name in self.names.items()}
        self.image_size = image_size
        self.images = 0
        self.clock = 0
        self.counts: Counter[str] = Counter()
        self.open: list[_Frame] = []
        self.found: list[tuple[int, AttentionCandidate]] = []

    def begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = self.names[module]
        arguments = [tensor for _, tensor in tensors((*args, *kwargs.values()))]
        if not self.images:  # the first module to run is the host, and its first map is the image
            self.images = next((tensor.shape[0] for tensor in arguments if tensor.ndim == 4), 0)
        self.open.append(_Frame(name, self.counts[name], entering_of(args, kwargs), arguments))
        self.counts[name] += 1

    def see(self, call: AttentionCall) -> None:
        """Count a call for every module that is running; it belongs to the innermost that is no ``nn.Softmax``."""
        self.clock += 1
        if any(frame.name.partition(".")[0] == RESERVED for frame in self.open):
            return  # injected: the taps on the modules around it do not see it either
        light = dataclasses.replace(call, map=AttentionMap(), own=())
        for frame in self.open:
            frame.calls.append(light)
        owner = next(
            (each for each in reversed(self.open) if not isinstance(self.modules[each.name], nn.Softmax)), None
        )
        if owner is not None:
            owner.positions[id(light)] = self.clock

    def end(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        frame = self.open.pop()
        if is_mha(module):
            self.clock += 1
            call = read_mha(module, *args, **kwargs)
            frame.entering = call.entering
            self.found.append((self.clock, self._with_channels(frame, self.candidate(frame, 0, [call]))))
            return
        groups = join_samples(frame.calls, None if frame.entering is None else frame.entering.shape[0])
        for index, group in enumerate(groups):
            position = frame.positions.get(id(group[0]))
            if position is not None:
                self.found.append((position, self._with_channels(frame, self.candidate(frame, index, group))))

    def candidate(self, frame: _Frame, index: int, group: list[AttentionCall]) -> AttentionCandidate:
        """Say what one attention is of, or why it cannot be said."""
        call = group[0]
        _, heads, queries, keys = call.shape
        site = AttentionSite(
            name=frame.name, call=frame.call, index=index, kind=call.kind, heads=heads, queries=queries, keys=keys
        )
        if call.refusal:
            return AttentionCandidate(site, False, call.refusal)
        number, rest = divmod(sum(each.shape[0] for each in group), self.images or 1)
        if rest or not number:
            found = f"{sum(each.shape[0] for each in group)} maps for {self.images} images"
            return AttentionCandidate(site, False, found)
        if number > 1 and (windowed := self._windowed(site, number)):
            return windowed
        if number > 1 and not call.folded:
            found = f"{number} maps for each image, and no `window_size` of {queries} tokens on the module or above it"
            return AttentionCandidate(site, False, found)
        if call.folded:
            site = dataclasses.replace(site, heads=number)
        return self._global(site, frame, folded=call.folded)

    def _windowed(self, site: AttentionSite, number: int) -> AttentionCandidate | None:
        """Read the maps as windows where an attribute says their size and they tile the image, possibly beyond it."""
        window = self._nearest(site.name, "window_size")
        if window is None or window[0] * window[1] != site.queries or site.queries != site.keys:
            return None
        for rows, columns in grids(self.image_size):
            down, across = math.ceil(rows / window[0]), math.ceil(columns / window[1])
            if down * across == number:
                break
        else:
            return None
        found = self._nearest(site.name, "shift_size") or (0, 0)
        shift = (found[0] if down > 1 else 0, found[1] if across > 1 else 0)
        site = dataclasses.replace(site, windows=(down, across), window=window, shift=shift)
        if any(shift) and (down * window[0], across * window[1]) != (rows, columns):
            return AttentionCandidate(site, False, "shifted windows over a padded map: padded or shifted first, unseen")
        if rows * columns < _MIN_TOKENS:
            return AttentionCandidate(site, False, f"a grid of {rows} x {columns} only")
        return AttentionCandidate(site, True)

    def _global(self, site: AttentionSite, frame: _Frame, *, folded: bool) -> AttentionCandidate:
        """Read the map as one over the whole image."""
        queries, keys = site.queries, site.keys
        prefixes = range(MAX_PREFIX + 1) if queries == keys else (0,)
        prefix = next((each for each in prefixes if token_grid(queries - each, self.image_size)), None)
        site = dataclasses.replace(site, queries=queries - (prefix or 0), prefix=prefix or 0)
        height, width = self.image_size
        others = [each for each in frame.arguments if each is not frame.entering and each.ndim == 3]
        channels = set() if frame.entering is None else {frame.entering.shape[1], frame.entering.shape[-1]}
        reason = ""
        if prefix is None:
            reason = f"{queries} queries do not tile an image of {height} x {width}"
        elif site.queries < _MIN_TOKENS or keys < _MIN_KEYS:
            reason = f"{site.queries} queries and {keys} keys only"
        elif keys > queries or (keys != queries and not token_grid(keys, self.image_size)):
            reason = f"{keys} keys do not tile an image of {height} x {width} more coarsely: words, or channels"
        elif keys != queries and any(keys in each.shape[:2] for each in others):
            reason = f"the {keys} keys are those of another argument: words, or another image"
        elif site.kind == "softmax" and not folded and keys * site.heads in channels and _cells(frame) != queries:
            reason = f"{keys} keys are the channels of one of {site.heads} heads"
        return AttentionCandidate(site, not reason, reason)

    def _with_channels(self, frame: _Frame, candidate: AttentionCandidate) -> AttentionCandidate:
        """Add the channels of the feature that enters, where it can be read as the queries' tokens or as a map."""
        site, shape = candidate.site, () if frame.entering is None else tuple(frame.entering.shape)
        channels = 0
        if len(shape) == 3 and shape[:2] == (self.images * math.prod(site.windows), site.prefix + site.queries):
            channels = shape[2]
        elif len(shape) == 4 and level_of((shape[2], shape[3]), self.image_size) is not None:
            channels = shape[1]
        elif len(shape) == 4 and level_of((shape[1], shape[2]), self.image_size) is not None and shape[1] != shape[3]:
            channels = shape[3]
        return dataclasses.replace(candidate, site=dataclasses.replace(site, channels=channels))

    def _nearest(self, name: str, attribute: str) -> tuple[int, int] | None:
        """Read a size, one number or two, from a module or the nearest one above it that has it."""
        for owner in _upwards(name):
            value = getattr(self.modules.get(owner), attribute, None)
            if isinstance(value, int):
                return value, value
            if isinstance(value, (tuple, list)) and len(value) == 2 and all(isinstance(each, int) for each in value):
                return value[0], value[1]
        return None


def _upwards(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
    yield ""


def _cells(frame: _Frame) -> int:
    """Count the places of the feature that enters a module."""
    if frame.entering is None or frame.entering.ndim < 3:
        return 0
    return frame.entering.shape[1] if frame.entering.ndim == 3 else math.prod(frame.entering.shape[-2:])


class _Watching(TorchFunctionMode):
    """Show the recorder every attention, except softmaxes of something else than a product of two features.

    Linear attention, gates and weights of branches put a softmax on a projection: a product of a feature and a
    parameter. A map of queries and keys comes from a product of two features, by way of masks, scales and biases.
    """

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self.recorder = recorder
        self.products = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function; write down what it means."""
        output = func(*args, **(kwargs or {}))
        inputs = [tensor for _, tensor in tensors((args, kwargs or {}))]
        call = read_function(func, args, kwargs or {}, output)
        if call is not None:
            if call.kind == "softmax" and not call.refusal and not any(each in self.products for each in inputs):
                call.refusal = "a softmax of something else than a product of two features: no queries and keys"
            self.recorder.see(call)
        if getattr(func, "__name__", "") in _PRODUCTS:
            product = not any(isinstance(each, nn.Parameter) for each in inputs)
        else:
            product = any(each in self.products for each in inputs)
        if product:
            self.products.update({each: True for _, each in tensors(output)})
        return output
