"""Choose among the attention layers that were found, or take those that are named (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from inpaint_distill.errors import PlanError, near_names
from inpaint_distill.host.attention import AttentionSite
from inpaint_distill.host.targets import Target, format_target, match

if TYPE_CHECKING:
    from collections.abc import Container, Mapping, Sequence

    from torch import nn

__all__ = ["AttentionCandidate", "choose_attention", "named_attention"]

_MAX_SITES = 4


@dataclass(frozen=True)
class AttentionCandidate:
    """An attention layer that ran.

    Attributes:
        site: Where it sits.
        usable: Its queries are places of the image.
        reason: Why not, where they are not; empty otherwise.
    """

    site: AttentionSite
    usable: bool
    reason: str = ""


def choose_attention(
    candidates: Sequence[AttentionCandidate], before: Container[tuple[str, int]] | None = None
) -> tuple[AttentionSite, ...]:
    """Return the last usable layer of each token grid, at most the last four, in order of running.

    Args:
        candidates: What was found.
        before: Names and calls of the modules that run within the encoder: of one grid, a layer among these goes
            before those of the decoder, so that a teacher need not run to its end.
    """
    last: dict[tuple[object, ...], int] = {}
    for number, each in enumerate(candidates):
        grid = (each.site.queries, each.site.windows)
        if each.usable and (grid not in last or _replaces(each.site, candidates[last[grid]].site, before)):
            last[grid] = number
    return tuple(candidates[number].site for number in sorted(last.values())[-_MAX_SITES:])


def _replaces(later: AttentionSite, chosen: AttentionSite, before: Container[tuple[str, int]] | None) -> bool:
    """Tell whether a layer of the same grid that runs later is to be taken instead."""
    return before is None or (later.name, later.call) in before or (chosen.name, chosen.call) not in before


def named_attention(
    candidates: Sequence[AttentionCandidate],
    wanted: Sequence[Target | AttentionSite],
    modules: Mapping[str, nn.Module] | None = None,
) -> tuple[AttentionSite, ...]:
    """Resolve targets and sites against what ran, in the order given.

    A site that states its ``queries`` is taken at its word, also where the dry run would not have chosen it.

    Raises:
        PlanError: A name matches nothing that ran, or nothing that can be used.
    """
    sites: list[AttentionSite] = []
    for item in wanted:
        found = _matching(candidates, item, modules or {})
        if isinstance(item, AttentionSite) and item.queries:
            sites.append(item)
            continue
        usable = [each.site for each in found if each.usable]
        if not usable:
            raise PlanError(
                f"attention {_name(item)}",
                "; ".join(f"{each.site.label}: {each.reason}" for each in found),
                "name another layer, or describe this one: AttentionSite(name=..., kind=..., queries=..., window=...)",
            )
        sites.extend(usable)
    return tuple(dict.fromkeys(sites))


def _name(item: Target | AttentionSite) -> str:
    return format_target(item.name if isinstance(item, AttentionSite) else item)


def _matching(
    candidates: Sequence[AttentionCandidate], item: Target | AttentionSite, modules: Mapping[str, nn.Module]
) -> list[AttentionCandidate]:
    names = list(dict.fromkeys(each.site.name for each in candidates))
    matched = match(item.name if isinstance(item, AttentionSite) else item, names, modules)
    found = [each for each in candidates if each.site.name in matched]
    if isinstance(item, AttentionSite):
        found = [each for each in found if _place(each.site) == _place(item)]
    if not found:
        raise PlanError(
            f"attention {_name(item)}",
            "no attention was computed under that name in the host's forward",
            f"use a layer that runs, such as {near_names(_name(item), names)}",
        )
    return found


def _place(site: AttentionSite) -> tuple[str, int, int, str]:
    return site.name, site.call, site.index, site.kind
