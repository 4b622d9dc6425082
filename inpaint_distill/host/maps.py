"""Read what a module puts out as maps of the image: layout, channels, size, masks and halves (ours)."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from inpaint_distill.host.stage import MAX_PREFIX, Layout, Stage, level_of, token_grid

if TYPE_CHECKING:
    from collections.abc import Iterator

    from inpaint_distill.host.trace import Event, Trace
    from inpaint_distill.host.tree import Path

__all__ = ["Map", "join", "read_maps", "single_maps"]

_MIN_CHANNELS = 8  # fewer is an image, a mask or a gate


@dataclass(frozen=True)
class Map:
    """A map put out by one event.

    Attributes:
        event: The call that put it out.
        paths: Where it is in the output: one path, or those of the tensors that are concatenated.
        layout: How it is laid out.
        channels: Number of channels.
        size: Height and width.
        level: Pyramid level, 0 at image resolution.
        identity: Identity of its tensor; 0 where there are several.
        mask: Where a mask that travels with it is.
        prefix: Tokens before those of its grid.
    """

    event: Event
    paths: tuple[Path, ...]
    layout: Layout
    channels: int
    size: tuple[int, int]
    level: int
    identity: int
    mask: Path | None = None
    prefix: int = 0

    def stage(self) -> Stage:
        """Return it as a stage to tap."""
        return Stage(
            name=self.event.name,
            call=self.event.call,
            select=self.paths[0] if len(self.paths) == 1 else self.paths,
            layout=self.layout,
            prefix=self.prefix,
            mask=self.mask,
            clone=len(self.paths) == 1 and self.paths[0] in self.event.overwritten,
            channels=self.channels,
            size=self.size,
            stride=2**self.level,
        )


def read_maps(event: Event, trace: Trace, *, named: bool = False) -> list[Map]:
    """Read an event's output as maps: with its mask, and as one where two halves make a feature.

    A pair of one size is a feature and the mask that travels with it (partial convolutions) where the second holds
    nothing but 0 and 1, and two halves of a feature where a module takes them as one argument (the local and the
    global one of LaMa).

    Args:
        event: A call of a module.
        trace: The forward that it was a part of.
        named: The user has named the module: any number of channels will do, and class tokens may come first.
    """
    found = single_maps(event, trace, named=named)
    if len(found) == 2 and found[0].size == found[1].size and found[0].identity != found[1].identity:
        first, second = found
        if second.paths[0] in event.binary:
            return [dataclasses.replace(first, mask=second.paths[0])]
        if any((first.identity, second.identity) in other.pairs for other in trace.events):
            return [join(found)]
    return found


def single_maps(event: Event, trace: Trace, *, named: bool = False) -> list[Map]:
    """Read every tensor of an event's output as a map where its shape allows it and it has enough channels."""
    least = 1 if named else _MIN_CHANNELS
    found = []
    for path, shape, identity in event.outputs:
        if trace.batch and shape[:1] != (trace.batch,):
            continue  # windows, or heads, folded into the batch
        for layout, channels, size, prefix in _readings(shape, trace.image_size, named=named):
            level = level_of(size, trace.image_size)
            if level is None:
                continue
            pooled = size == (1, 1) and len(set(trace.image_size)) > 1 and not named
            if channels >= least and not pooled:
                found.append(Map(event, (path,), layout, channels, size, level, identity, prefix=prefix))
            break  # of a few channels, it is not to be read in another layout
    return found


def join(parts: list[Map]) -> Map:
    """Return the concatenation of maps of one size along their channels."""
    paths = tuple(path for part in parts for path in part.paths)
    return dataclasses.replace(parts[0], paths=paths, channels=sum(part.channels for part in parts), identity=0)


def _readings(
    shape: tuple[int, ...], image_size: tuple[int, int], *, named: bool
) -> Iterator[tuple[Layout, int, tuple[int, int], int]]:
    if len(shape) == 4:
        yield "NCHW", shape[1], (shape[2], shape[3]), 0
        yield "NHWC", shape[3], (shape[1], shape[2]), 0
    elif len(shape) == 3:
        for prefix in range(MAX_PREFIX + 1 if named else 1):
            if grid := token_grid(shape[1] - prefix, image_size):
                yield "tokens", shape[2], grid, prefix
