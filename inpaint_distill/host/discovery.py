"""Find a host's encoder stages in one traced forward (ours).

An encoder is a stretch of the forward in which the resolution never rises and falls at least once. Its stages are the
last map at each resolution on the way down. At the lowest one it ends where the encoder does: after the layers of its
kind, before dilated ones, residual trunks, attention and decoders.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from inpaint_distill.errors import PlanError
from inpaint_distill.host.maps import Map, read_maps, single_maps
from inpaint_distill.host.stage import level_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.trace import Event, Trace

__all__ = ["Encoder", "choose_encoder", "find_encoders", "span_of"]

_ATTENTION = re.compile(r"attn|attention|^att\d*$", re.IGNORECASE)


@dataclass(frozen=True)
class Encoder:
    """One encoder of a host.

    Attributes:
        stages: Its features, shallow to deep.
        deeper: What follows the last stage at its resolution, before the resolution rises: as good a bottleneck.
        span: Positions in the forward at which it begins, and at which the resolution rises again.
    """

    stages: tuple[Stage, ...]
    deeper: tuple[Stage, ...] = ()
    span: tuple[int, int] = (0, 0)


def find_encoders(trace: Trace) -> list[Encoder]:
    """Return every encoder of a traced forward in the order in which they run.

    Raises:
        PlanError: The resolution falls nowhere.
    """
    for inside in (False, True):  # with the inside of down-sampling blocks only where nothing is found without
        images = _images(trace)
        ways = _ways(_candidates(trace, inside_blocks=inside), trace)
        runs = [run for way in ways for run in _down_runs(way, images)]
        if runs:
            return [_encoder(run, trace) for run in sorted(runs, key=lambda run: run[-1].event.end)]
    raise PlanError(
        "an encoder: maps whose resolution falls from one module to the next",
        f"none in {len(trace.events)} module calls on an image of {trace.image_size[0]} x {trace.image_size[1]}",
        "name the stages: attach(..., stages=['module.name', ...]), shallow to deep",
    )


def choose_encoder(encoders: Sequence[Encoder]) -> tuple[int, str]:
    """Return the index of the encoder to tap, and why: the most levels, without gaps, and of these the last to run.

    In a two-stage host the last one is the refinement's, whose output reaches the final image last. A gap in the
    levels is a sign of blocks on skip connections, which run after the encoder that feeds them.
    """

    def rank(index: int) -> tuple[int, bool, int]:
        stages = encoders[index].stages
        return len(stages), stages[-1].stride <= stages[0].stride * 2 ** (len(stages) - 1), index

    chosen = max(range(len(encoders)), key=rank)
    if len(encoders) == 1:
        return chosen, "the only encoder"
    levels, gapless, _ = rank(chosen)
    equal = [index for index in range(len(encoders)) if rank(index)[:2] == (levels, gapless)]
    why = (
        f"of the {len(equal)} with {levels} levels the last to run" if len(equal) > 1 else f"the most levels, {levels}"
    )
    return chosen, f"encoder {chosen + 1} of {len(encoders)}: {why}"


def span_of(trace: Trace, stages: Sequence[Stage]) -> tuple[int, int]:
    """Return the positions at which the first of some named stages begins, and the resolution rises after the last."""
    named = {(stage.name, stage.call) for stage in stages}
    events = [event for event in trace.events if (event.name, event.call) in named]
    first, last = min(event.start for event in events), max(event.end for event in events)
    with suppress(PlanError):
        return first, next((each.span[1] for each in find_encoders(trace) if each.span[1] >= last), last)
    return first, last


def _candidates(trace: Trace, *, inside_blocks: bool) -> list[Map]:
    """List the maps that can be a stage, in the order in which they were completed."""
    hidden = [event for event in trace.events if event.name and not event.leaf and _is_attention(event)]
    blocks = [event for event in trace.events if not event.leaf and _goes_down_once(event, trace)]
    if not inside_blocks:
        hidden += blocks
    starts = {block.start for block in blocks}
    found = []
    for event in trace.events:
        maps = read_maps(event, trace)
        if not event.name or not maps or "pad" in event.kind.lower():
            continue
        around = [other for other in hidden if _inside(event, other)]
        if any(other.start not in starts or not _ends_level(event, maps, other, trace) for other in around):
            continue
        if event.start in starts:  # what it hands to the skip connection, then the next level
            by_level = {each.level: each for each in reversed(maps)}
            found += [by_level[level] for level in sorted(by_level)]
        else:
            levels = {each.level for each in maps}
            # Several maps: those of one level come feature first; a list of skips ends at the deepest one.
            found.append(maps[0] if len(levels) == 1 else max(maps, key=lambda each: each.level))
    return found


def _ends_level(event: Event, maps: list[Map], block: Event, trace: Trace) -> bool:
    """Tell whether a part of a down-sampling block does the work of the level above, in the layout of the block.

    Blocks that convolve first and go down last (those of autoencoders) keep the last feature of a resolution inside.
    It has the channels that the block puts out; the wide or narrow middle of a bottleneck has not.
    """
    module = trace.modules[event.name]
    layers = sum(parameter.ndim >= 2 for parameter in module.parameters())
    lowest = max(read_maps(block, trace), key=lambda each: each.level)
    return (
        layers >= 2
        and maps[0].level < lowest.level
        and (maps[0].layout, maps[0].channels) == (lowest.layout, lowest.channels)
    )


def _inside(event: Event, other: Event) -> bool:
    return other.start < event.start and event.end < other.end


def _is_attention(event: Event) -> bool:
    return any(_ATTENTION.search(name) for name in (event.name.rpartition(".")[2], event.kind))


def _goes_down_once(event: Event, trace: Trace) -> bool:
    """Tell whether a block takes one map to the next lower resolution: what happens inside it is its own affair."""
    before = [level_of((shape[2], shape[3]), trace.image_size) for shape in event.inputs if len(shape) == 4]
    after = [found.level for found in read_maps(event, trace)]
    return bool(before and after) and before[0] is not None and max(after) == before[0] + 1


def _images(trace: Trace) -> list[Event]:
    """List what puts out an image, or latents, at full resolution: there a network ends and another may begin."""
    return [
        event
        for event in trace.events
        if any(found.level == 0 and found.channels in (3, 4) for found in single_maps(event, trace, named=True))
    ]


def _ways(maps: list[Map], trace: Trace) -> list[list[Map]]:
    """Take detours out of the sequence of maps: each is one of its own.

    A module that goes down and up again inside, after which its surroundings go on down from where they were, is no
    part of their encoder: a network that predicts the filters of the next stage, or a stage that is a U-Net itself.
    """
    detours: list[tuple[Event, int]] = []  # each with the level at which it begins
    ends = [found.event.end for found in maps]  # they come in this order, and calls are nested
    for module in reversed(trace.events):  # what holds others comes before them
        if module.leaf or not module.name or any(_inside(module, other) for other, _ in detours):
            continue
        first, last = bisect_left(ends, module.start), bisect_left(ends, module.end)
        levels = [found.level for found in maps[first:last]]
        steps = [after - before for before, after in itertools.pairwise(levels)]
        falls = next((index for index, step in enumerate(steps) if step > 0), None)
        if falls is None or all(step >= 0 for step in steps[falls:]):
            continue
        begins = maps[first - 1].level if first else 0
        after = next((found.level for found in maps[last:] if found.event.start > module.end), 0)
        if after == begins + 1:
            detours.append((module, begins))

    def of(found: Map, module: Event, begins: int) -> bool:
        return _inside(found.event, module) or (found.event is module and found.level < begins)

    inside = [[found for found in maps if of(found, *detour)] for detour in detours]
    return [[found for found in maps if not any(of(found, *detour) for detour in detours)], *inside]


def _down_runs(maps: list[Map], images: list[Event]) -> list[list[Map]]:
    """Cut the sequence where the resolution rises; keep the stretches of two levels or more.

    It is cut again at the image in which a rise ends: what led to it is still of the decoder.
    """
    runs: list[list[Map]] = [[]]
    rising = False  # the last run began where the resolution had risen, and no image has come of it yet
    for found in maps:
        if runs[-1] and found.size == (1, 1) and found.level > runs[-1][-1].level + 1:
            continue  # pooled, to weigh channels with
        before = runs[-1][-1] if runs[-1] else None
        if before and found.level < before.level:
            runs.append([])
            rising = True
        elif before and rising and any(before.event.end < each.end < found.event.start for each in images):
            runs.append([])
            rising = False
        runs[-1].append(found)
    return [run for run in runs if len({found.level for found in run}) >= 2]


def _encoder(run: list[Map], trace: Trace) -> Encoder:
    """Take the last map of each level, and of the lowest one the last that belongs to the encoder."""
    last = {found.level: found for found in run}
    lowest = max(last)
    above = [last[level] for level in sorted(last) if level < lowest]
    bottom = [found for found in run if found.level == lowest]
    end = _end_of_encoder(bottom, [found for found in run if found.level < lowest], trace)
    stages = [_nameable(found, trace).stage() for found in (*above, bottom[end])]
    rest = bottom[end + 1 :]
    later = [
        found
        for found in rest
        if not found.event.leaf
        and not any(_inside(found.event, other.event) for other in rest)
        and (not found.identity or found.identity != bottom[end].identity)
    ]
    deeper = dict.fromkeys(_nameable(found, trace).stage() for found in later)
    return Encoder(
        tuple(stages), tuple(each for each in deeper if each not in stages), (run[0].event.start, run[-1].event.end)
    )


def _end_of_encoder(bottom: list[Map], above: list[Map], trace: Trace) -> int:
    """Return which of the maps at the lowest resolution is the encoder's last.

    The encoder goes on in the module that holds the stage before: in the child that goes down, and in those after it
    that are of a class used higher up, and not dilated.
    """
    container = above[-1].event.path
    held: list[int] = []
    while not held and container:
        container = container.rpartition(".")[0]
        held = [index for index, found in enumerate(bottom) if _child(found, container)]
    if not held:
        return len(bottom) - 1

    def module_of(child: str) -> nn.Module | None:
        return trace.paths.get(f"{container}.{child}" if container else child)

    kinds = {type(module_of(child)) for found in above if (child := _child(found, container))}
    end, current, idle = held[0], _child(bottom[held[0]], container), True
    for index in held:
        child = _child(bottom[index], container)
        module = module_of(child)
        if child != current and not idle and (type(module) not in kinds or _is_dilated(module)):
            break
        end, current = index, child
        # Pooling does nothing at this resolution, nor does the block that hands over from the one before.
        works = module is not None and next(module.parameters(), None) is not None
        idle = idle and (not works or bottom[index].event is above[-1].event)
    return end


def _child(found: Map, container: str) -> str:
    """Return through which child of a container a map's module is reached; empty where it is not inside."""
    name = found.event.path
    if not container:
        return name.partition(".")[0]
    return name[len(container) + 1 :].partition(".")[0] if name.startswith(f"{container}.") else ""


def _is_dilated(module: nn.Module | None) -> bool:
    convolutions = [part for part in module.modules() if isinstance(part, nn.modules.conv._ConvNd)] if module else []
    return any(max(part.dilation) > 1 for part in convolutions)


def _nameable(found: Map, trace: Trace) -> Map:
    """Prefer the outermost module that put out the very same tensor and works at this resolution alone."""
    best = found
    if not found.identity:
        return best
    for event in trace.events:
        same = [
            each
            for each in read_maps(event, trace)
            if each.identity == found.identity and each.paths[0] not in event.overwritten
        ]
        if not same or not event.name or event.start >= best.event.start:
            continue
        inner = (each for each in trace.events if _inside(each, event))
        if all(other.level == found.level for each in inner for other in read_maps(each, trace)):
            best = same[0]
    return best
