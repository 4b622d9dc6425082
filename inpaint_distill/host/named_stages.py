"""Resolve the stages that a user or an adapter names against one traced forward (ours)."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from inpaint_distill.errors import PlanError, near_names
from inpaint_distill.host.maps import Map, join, read_maps, single_maps
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.targets import Target, format_target, match

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.host.trace import Event, Trace

__all__ = ["named_stages", "output_stages"]


def named_stages(trace: Trace, wanted: Sequence[Target | Stage]) -> tuple[Stage, ...]:
    """Resolve targets and stages against a traced forward, in the order given (shallow to deep).

    Raises:
        PlanError: A target matches no module, or one that did not run or put out no map.
    """
    stages: list[Stage] = []
    ran = list(dict.fromkeys(event.name for event in trace.events if event.name))
    for item in wanted:
        target = item.name if isinstance(item, Stage) else item
        names = match(target, ran, trace.modules)
        if not names:
            bypassed = match(target, [name for name in trace.modules if name], trace.modules)
            raise PlanError(
                f"stage {format_target(target)}",
                f"{bypassed[0]} did not run in the host's forward: its forward is bypassed, or another one is called"
                if bypassed
                else "no module of that name ran in the host's forward",
                f"use a module that runs, such as {near_names(bypassed[0] if bypassed else str(target), ran)}",
            )
        stages.extend(_stage_of(trace, name, item) for name in names)
    return tuple(stages)


def output_stages(trace: Trace) -> tuple[Stage, ...]:
    """Return the maps that the root itself puts out, shallow to deep, if they are a pyramid; else nothing."""
    root = next((event for event in reversed(trace.events) if not event.name), None)
    if root is None:  # the module is run by a method of its own
        return ()
    maps = sorted(read_maps(root, trace), key=lambda found: found.level)
    distinct = len({found.level for found in maps}) == len(maps) >= 2
    return tuple(found.stage() for found in maps) if distinct else ()


def _stage_of(trace: Trace, name: str, item: Target | Stage) -> Stage:
    wanted = item if isinstance(item, Stage) else Stage(name=name)
    calls = sorted({event.call for event in trace.events if event.name == name})
    call = calls[wanted.call] if -len(calls) <= wanted.call < 0 else wanted.call
    events = [event for event in trace.events if (event.name, event.call) == (name, call)]
    described = bool(wanted.channels and wanted.stride)
    if callable(wanted.select) and not described:
        raise PlanError(
            f"stage {dataclasses.replace(wanted, name=name).label}",
            "a function that chooses the feature, of which the dry run sees no shape",
            "say what it gives: Stage(name=..., select=..., channels=..., stride=...)",
        )
    if described:
        if not events:
            raise PlanError(f"stage {wanted.label}", f"{len(calls)} calls of {name}", f"use a call below {len(calls)}")
        return dataclasses.replace(wanted, name=name, call=call)  # what is said of it is taken as it is
    maps = [found for event in events for found in read_maps(event, trace, named=True)]
    if wanted.select:
        maps = [found for event in events for found in _selected(event, wanted, trace)]
    if not maps:
        outputs = [shape for event in events for _, shape, _ in event.outputs]
        raise PlanError(
            f"a feature map from stage {dataclasses.replace(wanted, name=name).label!r}, call {call}",
            f"outputs of shape {outputs or 'no tensor'} for an image of {trace.image_size}",
            "name a module whose output is (B, C, H, W), (B, H, W, C) or (B, N, C) at a power-of-two stride, or "
            "describe it: Stage(name=..., select=..., layout=..., channels=..., stride=...)",
        )
    stage = maps[0].stage()
    return dataclasses.replace(
        stage,
        mask=wanted.mask or stage.mask,
        grid=wanted.grid,
        clone=wanted.clone or stage.clone,
    )


def _selected(event: Event, wanted: Stage, trace: Trace) -> list[Map]:
    """Read the map at the paths that a stage selects: one, or several to be concatenated."""
    single = {found.paths[0]: found for found in single_maps(event, trace, named=True)}
    parts = [single[path] for path in wanted.paths if path in single]
    if not parts or len(parts) < len(wanted.paths) or len({(part.size, part.layout) for part in parts}) > 1:
        return []
    return [parts[0]] if len(parts) == 1 else [join(parts)]
