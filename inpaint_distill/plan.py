"""What a distiller taps, builds and adds, as a table; and the dry run that finds it without touching the host."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from torch.nn import functional as F

from inpaint_distill.host.conventions import find_convention
from inpaint_distill.host.discovery import choose_encoder, find_encoders, named_stages
from inpaint_distill.host.guard import module_device
from inpaint_distill.host.trace import trace_call, trace_sizes
from inpaint_distill.inputs import check_shapes, check_values

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.host.call import HostCall
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.trace import Trace

__all__ = ["Plan", "plan_call", "plan_images"]


@dataclass(frozen=True)
class Plan:
    """What is tapped and why, and what is built on it.

    Attributes:
        host: Class name of the host.
        stages: The tapped stages, shallow to deep.
        encoders: Every encoder found, in the order in which they run; empty where the stages were named.
        reason: Why these stages.
        image_size: Height and width of the images that the host is used with.
        dry_run_size: Height and width of the dry run, stretched where the host accepts it.
        call: How the host was called in the dry run, or what its own call carries.
        teacher: What the teacher is.
        added: Name and number of parameters of each term's networks.
    """

    host: str
    stages: tuple[Stage, ...]
    encoders: tuple[tuple[Stage, ...], ...]
    reason: str
    image_size: tuple[int, int]
    dry_run_size: tuple[int, int]
    call: str
    teacher: str = ""
    added: tuple[tuple[str, int], ...] = ()

    def __str__(self) -> str:
        rows = [("stage", "call", "output", "layout", "channels", "size", "stride", "kept as")]
        for stage in self.stages:
            select = "".join(f"[{key!r}]" for key in stage.select) or "tensor"
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
        if self.teacher:
            lines.append(f"teacher: {self.teacher}")
        lines += [f"{name}: {count:,} added parameters" for name, count in self.added]
        return "\n".join(lines)


def plan_call(
    host: nn.Module, call: HostCall, wanted: Sequence[str | Stage] | None, *, source: str = "given by name"
) -> Plan:
    """Plan from the arguments of the host's own call.

    Args:
        host: The model, as before afterwards.
        call: Its arguments.
        wanted: Stages, names or globs; ``None`` finds them.
        source: Who named them.

    Raises:
        PlanError: No stages are found, or a name does not fit.
    """
    return _plan(host, trace_call(host, call), wanted, source, "the host's own")


def plan_images(
    host: nn.Module,
    image: Tensor,
    mask: Tensor,
    wanted: Sequence[str | Stage] | None = None,
    *,
    adapter: Adapter | None = None,
    source: str = "given by name",
) -> Plan:
    """Plan from an image and a mask: by the adapter, or by the common conventions tried in turn.

    Args:
        host: The model, as before afterwards.
        image: (B, 3, H, W) in [-1, 1] or [0, 1].
        mask: (B, 1, H, W), 1 in the hole.
        wanted: Stages, names or globs; ``None`` finds them.
        adapter: How to call the host.
        source: Who named the stages.

    Raises:
        InputError: Image or mask are not what they should be.
        PlanError: The host does not run, no stages are found, or a name does not fit.
    """
    check_shapes(image, mask)
    check_values(image, mask)
    if adapter is None:
        adapter = import_module("inpaint_distill.adapters").find(host)
        if adapter is not None and wanted is None and adapter.stages is not None:
            wanted, source = adapter.stages, f"named by adapter {adapter.name!r}"
    device = module_device(host)
    image, mask = image.to(device), mask.to(device).float().expand(image.shape[0], -1, -1, -1)
    if adapter is None:
        name, convention = find_convention(host, image, mask)
        return _plan(host, trace_call(host, convention(image, mask)), wanted, source, name)

    def run(size: tuple[int, int]) -> object:
        return adapter.outputs(host, F.interpolate(image, size), F.interpolate(mask, size))

    trace = trace_sizes(host, run, (image.shape[2], image.shape[3]))
    return _plan(host, trace, wanted, source, f"adapter {adapter.name!r}")


def _plan(host: nn.Module, trace: Trace, wanted: Sequence[str | Stage] | None, source: str, call: str) -> Plan:
    encoders: tuple[tuple[Stage, ...], ...] = ()
    if wanted:
        stages, reason = named_stages(trace, wanted), source
    else:
        encoders = tuple(find_encoders(trace))
        chosen = choose_encoder(encoders)
        stages = encoders[chosen]
        reason = f"encoder {chosen + 1} of {len(encoders)}: the most levels, and of these the last to run"
    return Plan(type(host).__name__, stages, encoders, reason, trace.used_size, trace.image_size, call)
