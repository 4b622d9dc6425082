"""Inject into a host what a configuration asks for, where a plan says, or what its weights were saved with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import distributed

from inpaint_distill.description import spec_in
from inpaint_distill.errors import PlanError, StateError
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.trace import RESERVED
from inpaint_distill.injection import KINDS, Injected, completion_kind, injected, kind_of
from inpaint_distill.networks.completion import CompletionBlock
from inpaint_distill.networks.fusion import GlobalLocalAttention

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from inpaint_distill.config import Config
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.plan import Plan

_FIX = "ask for what is there, or take it out first: distiller.detach(keep_completion=False)"

__all__ = ["completion_stages", "inject", "inject_saved"]


def inject(
    host: nn.Module, plan: Plan, config: Config, *, tap: bool = True
) -> tuple[Injected | None, tuple[AttentionSite, ...]]:
    """Inject what a configuration asks for, or take what an earlier distiller left in the host.

    Args:
        host: The model; its outputs do not change, unless a block is to start at the interpolation.
        plan: Its stages and attention.
        config: ``completion``, what belongs to it, and ``fusion``.
        tap: Whether the injected attention is to be tapped.

    Returns:
        What is in the host (``None`` where nothing was asked for), and the attention to tap, with the injected one.

    Raises:
        ConfigError: A block does not fit its stage.
        PlanError: The host cannot hold sub-modules, or has others already.
    """
    if not (config.completion or config.fusion):
        return None, plan.attention
    own = injected(host)
    image = plan.image.source if config.completion and plan.image is not None else None
    at_input = image is not None if own is None else own.image_block is not None
    interpolate = at_input and config.completion_start == "interpolation"
    completion = completion_kind(adaptive=config.completion_adaptive, interpolate=interpolate)
    # What is added last rewrites first: the attention sees the completed feature.
    wanted = ["fusion"] * config.fusion + [completion] * config.completion
    if own is None:
        stages = {"fusion": [plan.stages[-1]], completion: []}
        if config.completion and image is None:
            stages[completion] = completion_stages(plan.stages, config, plan.image_size)
        added = [(KINDS[kind][1](stage.channels), stage) for kind in wanted for stage in stages[kind]]
        own = Injected()
        own.install(host)
        if image is not None:
            own.add_at_input(host, image, completion)
        for block, stage in added:
            own.add(host, block, stage)
    else:
        blocks = [*own.blocks, *([own.image_block] if own.image_block is not None else [])]
        present = list(dict.fromkeys(kind_of(block) for block in blocks))
        if present != wanted:
            raise PlanError(
                f"to inject {' and '.join(KINDS[kind][0] for kind in wanted)}",
                f"the host has {' and '.join(KINDS[kind][0] for kind in present)} already",
                _FIX,
            )
        if config.completion and isinstance(config.completion_levels, tuple):
            asked = [f"after {stage.label}" for stage in completion_stages(plan.stages, config, plan.image_size)]
            found = _places(own)
            if found != asked:
                raise PlanError(f"completion blocks {' and '.join(asked)}", f"those {' and '.join(found)}", _FIX)
    site = _attention_site(own) if tap else None
    return own, (*plan.attention, site) if site else plan.attention


def _places(own: Injected) -> list[str]:
    """Say where the completion blocks of a host are."""
    pairs = zip(own.blocks, own.stages, strict=True)
    after = [f"after {stage.label}" for block, stage in pairs if isinstance(block, CompletionBlock)]
    return ["at the input"] * (own.image_block is not None) + after


def inject_saved(host: nn.Module, state: Mapping[str, Any], prefix: str = "", *, planned: bool) -> Injected | None:
    """Inject what the weights about to be loaded were saved with, unless the host has it already.

    Args:
        host: The model.
        state: The weights, with a description of the blocks among them.
        prefix: What stands before the host's own names.
        planned: The host is trained without blocks by now.

    Returns:
        What has been injected; ``None`` where nothing had to be.

    Raises:
        StateError: The blocks come too late, or cannot be built on this host.
    """
    spec = None if injected(host) is not None else spec_in(state, prefix)
    if spec is None:
        return None
    asked = "to load weights with injected blocks into a host without any"
    if planned:
        raise StateError(asked, "a host that is trained without them", "load them before the host's first step")
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        fix = "load them by load_host() before attach() and before the host is wrapped"
        raise StateError(asked, "several processes, which may have listed its parameters", fix)
    try:
        return Injected.from_spec(host, spec)
    except (LookupError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        raise StateError(asked, found, "load them into the host they were saved from") from None


def completion_stages(stages: Sequence[Stage], config: Config, image_size: tuple[int, int]) -> list[Stage]:
    """Choose the stages that get a completion block.

    Raises:
        ConfigError: A chosen stage is a single pixel.
        PlanError: A level that does not exist was asked for, or nothing is left.
    """
    levels = (0,) if config.completion_levels == "input" else config.completion_levels
    if levels is None:
        sizes = [_size_on(stage, image_size) for stage in stages]
        levels = tuple(level for level, stage in enumerate(stages) if stage.stride > 1 and sizes[level] != (1, 1))
    for level in levels:
        if not 0 <= level < len(stages):
            raise PlanError(
                f"a completion block at level {level}",
                f"{len(stages)} stages",
                f"use levels from 0 to {len(stages) - 1} in completion_levels",
            )
        CompletionBlock.check_size(_size_on(stages[level], image_size))
    if not levels:
        raise PlanError("completion blocks", "no stage below image resolution", "name some: completion_levels=(0,)")
    return [stages[level] for level in levels]


def _size_on(stage: Stage, image_size: tuple[int, int]) -> tuple[int, int]:
    """Return the size of a stage's map; the dry run may have seen a square image stretched in width."""
    rows, columns = stage.size
    if not rows:  # a stage that was described without it
        rows, columns = (-(-side // stage.stride) for side in image_size)
    return (rows, rows) if image_size[0] == image_size[1] else (rows, columns)


def _attention_site(own: Injected) -> AttentionSite | None:
    """Return the attention that was injected, as a site to tap."""
    for index, (block, stage) in enumerate(zip(own.blocks, own.stages, strict=True)):
        if isinstance(block, GlobalLocalAttention):
            tokens = stage.size[0] * stage.size[1]
            name = f"{RESERVED}.blocks.{index}"
            return AttentionSite(
                name=name, kind="sdpa", heads=block.heads, queries=tokens, keys=tokens, channels=stage.channels
            )
    return None
