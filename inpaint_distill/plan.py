"""What a distiller taps, builds and adds, as a table; and the dry run that finds it without touching the host."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional as F

from inpaint_distill.errors import ConfigError
from inpaint_distill.host.adapter import Adapter
from inpaint_distill.host.attention_choice import choose_attention, named_attention
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.conventions import find_convention
from inpaint_distill.host.discovery import choose_encoder, find_encoders, span_of
from inpaint_distill.host.dry_run import trace_call, trace_sizes, watched_calls, without_training_only
from inpaint_distill.host.guard import module_device
from inpaint_distill.host.image_source import Found, find_image
from inpaint_distill.host.named_stages import named_stages
from inpaint_distill.host.stage import token_grid
from inpaint_distill.host.tree import format_path
from inpaint_distill.host.wrappers import name_inside, unwrap
from inpaint_distill.inputs import check_host, check_shapes, check_values

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.attention_choice import AttentionCandidate
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.targets import Target
    from inpaint_distill.host.trace import Trace

__all__ = ["Plan", "Wanted", "choose_adapter", "plan", "plan_call", "plan_images"]

DRY_BATCH = 2
"""Images of a dry run: two show which axis is the batch, and a whole training batch shows no more."""


@dataclass(frozen=True)
class Plan:
    """What is tapped and why, and what is built on it.

    Attributes:
        host: Class name of the host.
        stages: The tapped stages, shallow to deep.
        encoders: Every encoder found, in the order in which they run; empty where the stages were named.
        deeper: Features at the lowest resolution after the last stage, any of which could be named in its place.
        reason: Why these stages.
        image_size: Height and width of the images that the host is used with.
        dry_run_size: Height and width of the dry run, stretched where the host accepts it.
        call: How the host was called in the dry run, or what its own call carries.
        attention: The tapped attention layers, in the order in which they run.
        candidates: Every attention that was looked for and found, and whether it can be tapped.
        teacher: What the teacher is.
        injected: What is injected into the host and stays in it, in words.
        added: Name and number of parameters of each term's networks.
        draws: The host draws random numbers: its teacher is run with the same.
        draws_others: It draws from the generators of Python or numpy, too.
        overwrites: The host writes into the tensors it is given: they are remembered as copies.
        image: Where a completion block at the host's input goes, or why there is none; ``None`` where none is wanted.
    """

    host: str
    stages: tuple[Stage, ...]
    encoders: tuple[tuple[Stage, ...], ...]
    reason: str
    image_size: tuple[int, int]
    dry_run_size: tuple[int, int]
    call: str
    attention: tuple[AttentionSite, ...] = ()
    candidates: tuple[AttentionCandidate, ...] = ()
    teacher: str = ""
    injected: tuple[str, ...] = ()
    added: tuple[tuple[str, int], ...] = ()
    deeper: tuple[Stage, ...] = ()
    draws: bool = False
    draws_others: bool = False
    overwrites: bool = False
    image: Found | None = None

    def __str__(self) -> str:
        rows = [("stage", "call", "output", "layout", "channels", "size", "stride", "kept as")]
        for stage in self.stages:
            select = stage.selection.strip() or "tensor"
            if stage.mask is not None:
                select += f", mask {format_path(stage.mask)}"
            size = f"{stage.size[0]} x {stage.size[1]}"
            kept = "copy (overwritten in place later)" if stage.clone else "reference"
            fixed = (stage.layout, str(stage.channels), size, str(stage.stride), kept)
            rows.append((stage.name, str(stage.call), select, *fixed))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        table = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        table.insert(1, "  ".join("-" * width for width in widths))
        lines = [
            f"{self.host}, dry run on {self.dry_run_size[0]} x {self.dry_run_size[1]}",
            f"call: {self.call}",
            *table,
        ]
        lines.append(f"chosen: {self.reason}")
        lines += [
            "not chosen: " + ", ".join(f"{stage.label} (stride {stage.stride})" for stage in encoder)
            for encoder in self.encoders
            if encoder != self.stages
        ]
        if self.deeper:
            lines.append(f"as deep, later: {', '.join(stage.label for stage in self.deeper)}")
        lines += [f"attention: {_describe(site, self.dry_run_size)}" for site in self.attention]
        for candidate in self.candidates:
            if candidate.site not in self.attention:
                reason = "" if candidate.usable else f": {candidate.reason}"
                lines.append(f"attention not tapped: {_describe(candidate.site, self.dry_run_size)}{reason}")
        lines += [f"injected: {line}" for line in self.injected]
        if self.image is not None and self.image.reason:
            lines.append(f"not at the input: {self.image.reason}")
        if self.teacher:
            lines.append(f"teacher: {self.teacher}")
        lines += [f"{name}: {count:,} added parameters" for name, count in self.added]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What the user has named, or an adapter for them.

    Attributes:
        stages: Stages, names or globs; ``None`` finds them.
        attention: Attention layers, names or globs; ``None`` finds them, an empty list taps none.
        adapter: What is known about the host's family.
        named: Whether ``stages`` are the user's own.
        names_attention: Whether ``attention`` is, and is not empty.
        latent: Whether the host works on latents.
        image: Whether the emptied image among the host's arguments is to be found.
    """

    stages: Sequence[Target | Stage] | None = None
    attention: Sequence[Target | AttentionSite] | None = None
    adapter: Adapter | None = None
    named: bool = False
    names_attention: bool = False
    latent: bool = False
    image: bool = False

    @staticmethod
    def of(
        host: nn.Module,
        adapter: Adapter | None,
        stages: Sequence[Target | Stage] | None = None,
        attention: Sequence[Target | AttentionSite] | None = None,
        *,
        image: bool = False,
    ) -> Wanted:
        """Let the user's names go before the adapter's."""
        known = (adapter.stages(host), adapter.attention(host)) if adapter else (None, None)
        return Wanted(
            stages=[name_inside(host, each) for each in stages] if stages else known[0],
            attention=known[1] if attention is None else [name_inside(host, each) for each in attention],
            adapter=adapter,
            named=bool(stages),
            names_attention=bool(attention),
            latent=adapter is not None and adapter.takes_latents(host),
            image=image,
        )

    @property
    def taps_attention(self) -> bool:
        """Whether any attention is to be tapped; an empty list says no."""
        return self.attention is None or bool(len(self.attention))

    @property
    def source(self) -> str:
        """Who named the stages."""
        return "given by name" if self.named or self.adapter is None else f"named by adapter {self.adapter.name!r}"


def choose_adapter(host: nn.Module, choice: Adapter | str | None) -> Adapter | None:
    """Return the adapter given, the one of a name, or the one that knows the host.

    Raises:
        ConfigError: There is no such adapter.
    """
    adapters = import_module("inpaint_distill.adapters")
    if choice is None:
        return cast("Adapter | None", adapters.find(host))
    if isinstance(choice, str):
        return cast("Adapter", adapters.get(choice))
    if not isinstance(choice, Adapter):
        found = f"an object of type {type(choice).__name__}"
        raise ConfigError("an adapter", found, "give the name of a family or an Adapter")
    return choice


def plan(
    host: nn.Module,
    image: Tensor,
    mask: Tensor,
    *,
    stages: Sequence[Target | Stage] | None = None,
    attention: Sequence[Target | AttentionSite] | None = None,
    adapter: Adapter | str | None = None,
) -> Plan:
    """Show what would be tapped, without touching the host: by its adapter, or by the common conventions in turn.

    Args:
        host: The model, as before afterwards.
        image: (B, 3, H, W) in [-1, 1] or [0, 1].
        mask: (B, 1, H, W), 1 in the hole.
        stages: As in :func:`~inpaint_distill.attach`.
        attention: As there.
        adapter: As there.

    Raises:
        InputError: Image or mask are not what they should be.
        PlanError: The host does not run, no stages are found, or a name does not fit.
    """
    check_host(host)
    wanted = Wanted.of(host, choose_adapter(host, adapter), stages, attention)
    return plan_images(unwrap(host), image, mask, wanted)


def plan_call(host: nn.Module, call: HostCall, wanted: Wanted) -> Plan:
    """Plan from the arguments of the host's own call.

    Args:
        host: The model, as before afterwards.
        call: Its arguments.
        wanted: What has been named.

    Raises:
        PlanError: No stages are found, or a name does not fit.
    """
    return _plan(host, trace_call(host, call), wanted, "the host's own", lambda: [call])


@torch.inference_mode(False)  # whose tensors do not tell when they are written into
def plan_images(host: nn.Module, image: Tensor, mask: Tensor, wanted: Wanted) -> Plan:
    """Plan from an image and a mask; see :func:`plan`."""
    check_shapes(image, mask, latent=wanted.latent)
    check_values(image, mask, latent=wanted.latent)
    adapter = wanted.adapter
    device = module_device(host)
    image = image[:DRY_BATCH].clone().to(device)
    mask = mask[:DRY_BATCH].clone().to(device).float().expand(image.shape[0], -1, -1, -1)
    if adapter is None:
        convention = find_convention(host, image, mask)
        # Which of the two the host's mask means is as good as a guess: a block at the input has to do under both.
        calls = [each.pack(image, mask) for each in (convention, convention.inverted())]
        return _plan(host, trace_call(host, calls[0]), wanted, str(convention), lambda: calls)

    def run(size: tuple[int, int]) -> object:
        return adapter.outputs(host, F.interpolate(image, size), F.interpolate(mask, size))

    size = (image.shape[2], image.shape[3])
    trace = trace_sizes(host, run, size)
    return _plan(host, trace, wanted, f"adapter {adapter.name!r}", lambda: watched_calls(host, lambda: run(size))[:1])


def _plan(host: nn.Module, trace: Trace, wanted: Wanted, words: str, calls: Callable[[], list[HostCall]]) -> Plan:
    encoders: tuple[tuple[Stage, ...], ...] = ()
    deeper: tuple[Stage, ...] = ()
    left_out: set[str] = set()
    if wanted.stages:
        stages, reason = named_stages(trace, wanted.stages), wanted.source
        span = span_of(trace, stages)
    else:
        ran = {event.name for event in trace.events}
        trace = without_training_only(host, trace)
        left_out = ran - {event.name for event in trace.events}
        found = find_encoders(trace)
        chosen, reason = choose_encoder(found)
        encoders = tuple(each.stages for each in found)
        stages, deeper, span = found[chosen].stages, found[chosen].deeper, found[chosen].span
    sites: tuple[AttentionSite, ...] = ()
    candidates: tuple[AttentionCandidate, ...] = ()
    if wanted.taps_attention:
        candidates = tuple(find_attention(host, trace.run, trace.image_size))
        if wanted.attention is None:
            candidates = tuple(each for each in candidates if each.site.name not in left_out)
            within = [event for event in trace.events if span[0] <= event.start and event.end <= span[1]]
            before = {(event.name, event.call) for event in within}
            sites = choose_attention(candidates, before)
        else:
            sites = named_attention(candidates, wanted.attention, trace.modules)
    return Plan(
        host=type(host).__name__,
        stages=stages,
        encoders=encoders,
        reason=reason,
        image_size=trace.used_size,
        dry_run_size=trace.image_size,
        call=words,
        attention=sites,
        candidates=candidates,
        deeper=deeper,
        draws=trace.draws or trace.draws_others,
        draws_others=trace.draws_others,
        overwrites=trace.overwrites,
        image=find_image(host, *calls()) if wanted.image else None,
    )


def _describe(site: AttentionSite, image_size: tuple[int, int]) -> str:
    grid = token_grid(site.queries, image_size)
    where = f"{site.queries} queries" if grid is None else f"{grid[0]} x {grid[1]} queries"
    if site.windows != (1, 1):
        where = f"{site.windows[0]} x {site.windows[1]} windows of {site.window[0]} x {site.window[1]}"
        where += f" shifted by {site.shift[0]} x {site.shift[1]}" if any(site.shift) else ""
    heads = f"{site.heads} head{'s' if site.heads > 1 else ''}"
    return f"{site.label} ({site.kind}, {where}, {site.keys} keys, {heads})"
