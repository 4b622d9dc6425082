"""Find a host's encoder stages in one traced forward (ours).

An encoder is a stretch of the forward in which the resolution never rises and falls at least once. Its stages are the
last map at each resolution on the way down, the bottleneck included.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inpaint_distill.errors import PlanError, near_names
from inpaint_distill.host.stage import Layout, Stage, level_of, token_grid

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inpaint_distill.host.trace import Event, Trace
    from inpaint_distill.host.tree import Path

__all__ = ["choose_encoder", "find_encoders", "named_stages", "output_stages"]

_MIN_CHANNELS = 8  # fewer is an image, a mask or a gate
_ATTENTION = re.compile(r"attn|attention|^att\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class _Map:
    """A map put out by one event."""

    event: Event
    path: Path
    layout: Layout
    channels: int
    size: tuple[int, int]
    level: int
    identity: int

    def stage(self, image_size: tuple[int, int]) -> Stage:
        return Stage(
            name=self.event.name,
            call=self.event.call,
            select=self.path,
            layout=self.layout,
            clone=self.path in self.event.overwritten,
            channels=self.channels,
            size=self.size,
            stride=round(image_size[0] / self.size[0]),
        )


def find_encoders(trace: Trace) -> list[tuple[Stage, ...]]:
    """Return every encoder of a traced forward in the order in which they run, each as stages from shallow to deep.

    Raises:
        PlanError: The resolution falls nowhere.
    """
    for inside in (False, True):  # with the inside of down-sampling blocks only where nothing is found without
        runs = _down_runs(_candidates(trace, inside_blocks=inside))
        if runs:
            return [tuple(_nameable(found, trace).stage(trace.image_size) for found in run) for run in runs]
    raise PlanError(
        "an encoder: maps whose resolution falls from one module to the next",
        f"none in {len(trace.events)} module calls on an image of {trace.image_size[0]} x {trace.image_size[1]}",
        "name the stages: attach(..., stages=['module.name', ...]), shallow to deep",
    )


def choose_encoder(encoders: Sequence[tuple[Stage, ...]]) -> int:
    """Return the index of the encoder to tap: the most levels, without gaps if possible, and of these the last to run.

    In a two-stage host the last one is the refinement's, whose output reaches the final image last. A gap in the
    levels is a sign of blocks on skip connections, which run after the encoder that feeds them.
    """

    def rank(index: int) -> tuple[int, bool, int]:
        strides = [stage.stride for stage in encoders[index]]
        return len(strides), strides[-1] <= strides[0] * 2 ** (len(strides) - 1), index

    return max(range(len(encoders)), key=rank)


def named_stages(trace: Trace, wanted: Sequence[str | Stage]) -> tuple[Stage, ...]:
    """Resolve names, globs and stages against a traced forward, in the order given (shallow to deep).

    Raises:
        PlanError: A name matches no module, or one that did not run or put out no map.
    """
    stages: list[Stage] = []
    ran = list(dict.fromkeys(event.name for event in trace.events if event.name))
    for item in wanted:
        pattern = item.name if isinstance(item, Stage) else item
        names = [pattern] if pattern in ran else fnmatch.filter(ran, pattern)
        if not names:
            raise PlanError(
                f"stage {pattern!r}",
                "no module of that name ran in the host's forward",
                f"use a module that runs, such as {near_names(pattern, ran)}",
            )
        stages.extend(_stage_of(trace, name, item) for name in names)
    return tuple(stages)


def output_stages(trace: Trace) -> tuple[Stage, ...]:
    """Return the maps that the root itself puts out, shallow to deep, if they are a pyramid; else nothing."""
    root = next(event for event in reversed(trace.events) if not event.name)
    maps = sorted(_maps(root, trace.image_size), key=lambda found: found.level)
    distinct = len({found.level for found in maps}) == len(maps) >= 2
    return tuple(found.stage(trace.image_size) for found in maps) if distinct else ()


def _stage_of(trace: Trace, name: str, item: str | Stage) -> Stage:
    call = item.call if isinstance(item, Stage) else 0
    events = [event for event in trace.events if (event.name, event.call) == (name, call)]
    maps = [found for event in events for found in _maps(event, trace.image_size, least=1)]
    if isinstance(item, Stage) and item.select:
        maps = [found for found in maps if found.path == item.select]
    if not maps:
        outputs = [shape for event in events for _, shape, _ in event.outputs]
        raise PlanError(
            f"a feature map from stage {name!r}, call {call}",
            f"outputs of shape {outputs or 'no tensor'} for an image of {trace.image_size}",
            "name a module whose output is (B, C, H, W), (B, H, W, C) or (B, N, C) at a power-of-two stride",
        )
    stage = maps[0].stage(trace.image_size)
    return dataclasses.replace(stage, clone=True) if isinstance(item, Stage) and item.clone else stage


def _maps(event: Event, image_size: tuple[int, int], least: int = _MIN_CHANNELS) -> list[_Map]:
    """Read every tensor of an event's output as a map where its shape allows it and it has the least channels."""
    found = []
    for path, shape, identity in event.outputs:
        for layout, channels, size in _readings(shape, image_size):
            level = level_of(size, image_size)
            if level is not None and channels >= least:
                found.append(_Map(event, path, layout, channels, size, level, identity))
                break
    return found


def _readings(shape: tuple[int, ...], image_size: tuple[int, int]) -> Iterator[tuple[Layout, int, tuple[int, int]]]:
    if len(shape) == 4:
        yield "NCHW", shape[1], (shape[2], shape[3])
        yield "NHWC", shape[3], (shape[1], shape[2])
    elif len(shape) == 3 and (grid := token_grid(shape[1], image_size)):
        yield "tokens", shape[2], grid


def _candidates(trace: Trace, *, inside_blocks: bool) -> list[_Map]:
    """List the maps that can be a stage, in the order in which they were completed."""
    hidden = [event for event in trace.events if event.name and not event.leaf and _is_attention(event)]
    blocks = [event for event in trace.events if not event.leaf and _goes_down_once(event, trace.image_size)]
    if not inside_blocks:
        hidden += blocks
    found = []
    for event in trace.events:
        if not event.name or any(_inside(event, other) for other in hidden) or "pad" in event.kind.lower():
            continue
        maps = _maps(event, trace.image_size)
        if any(event is block for block in blocks):  # what it hands to the skip connection, then the next level
            by_level = {each.level: each for each in reversed(maps)}
            found += [by_level[level] for level in sorted(by_level)]
        elif maps:
            levels = {each.level for each in maps}
            # Several maps: a feature and its companion (mask, global branch) share a level and come feature first;
            # a list of skips ends at the deepest one.
            found.append(maps[0] if len(levels) == 1 else max(maps, key=lambda each: each.level))
    return found


def _inside(event: Event, other: Event) -> bool:
    return other.start < event.start and event.end < other.end


def _is_attention(event: Event) -> bool:
    return any(_ATTENTION.search(name) for name in (event.name.rpartition(".")[2], event.kind))


def _goes_down_once(event: Event, image_size: tuple[int, int]) -> bool:
    """Tell whether a block takes one map to the next lower resolution: what happens inside it is its own affair."""
    before = [level_of((shape[2], shape[3]), image_size) for shape in event.inputs if len(shape) == 4]
    after = [found.level for found in _maps(event, image_size)]
    return bool(before and after) and before[0] is not None and max(after) == before[0] + 1


def _down_runs(maps: list[_Map]) -> list[list[_Map]]:
    """Cut the sequence where the resolution rises; keep the last map of each level of every stretch of two or more."""
    runs: list[list[_Map]] = [[]]
    for found in maps:
        if runs[-1] and found.level < runs[-1][-1].level:
            runs.append([])
        if runs[-1] and runs[-1][-1].level == found.level:
            runs[-1][-1] = found
        else:
            runs[-1].append(found)
    return [run for run in runs if len(run) >= 2]


def _nameable(found: _Map, trace: Trace) -> _Map:
    """Prefer the outermost module that put out the very same tensor and works at this resolution alone."""
    best = found
    for event in trace.events:
        same = [
            each
            for each in _maps(event, trace.image_size)
            if each.identity == found.identity and each.path not in event.overwritten
        ]
        if not same or not event.name or event.start >= best.event.start:
            continue
        inner = (each for each in trace.events if _inside(each, event))
        if all(other.level == found.level for each in inner for other in _maps(each, trace.image_size)):
            best = same[0]
    return best
