"""The teacher's call by an adapter, for hosts whose own call cannot be repeated (ours)."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.host.call import HostCall
from inpaint_distill.host.explain import derive_recipe, find_hole
from inpaint_distill.host.replay import Recipe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.host.hole import HoleSource
    from inpaint_distill.host.tree import Path

__all__ = ["derive"]


@dataclass(frozen=True)
class _AdapterCall(HostCall):
    """A call that an adapter makes; its arguments are the image and the hole."""

    adapter: Adapter | None = None

    def pass_to(self, module: nn.Module) -> Any:
        """Let the adapter run a module."""
        return super().pass_to(module) if self.adapter is None else self.adapter.outputs(module, *self.args)


class _AdapterRecipe(Recipe):
    """A recipe that leaves the call to an adapter; the image given to ``loss()`` is in [-1, 1], as adapters take it."""

    def __init__(self, adapter: Adapter, signature: tuple[object, ...], source: HoleSource | None) -> None:
        super().__init__({}, signature)
        self.adapter = adapter
        self.source = source

    def apply(self, call: HostCall, image: Tensor) -> HostCall:
        """Return the adapter's call on the complete image."""
        return _AdapterCall((image, torch.zeros_like(image[:, :1])), None, call.random, call.overwritten, self.adapter)

    def own(self, call: HostCall, image: Tensor, mask: Tensor) -> HostCall:
        """Return the adapter's call with the hole: the host's own does not carry all that it needs."""
        hole = mask.to(image).expand(image.shape[0], -1, -1, -1)
        return _AdapterCall((image, hole), None, call.random, call.overwritten, self.adapter)

    def hole(self, host: nn.Module) -> HoleSource | None:
        """Return where the host's own call carries the hole."""
        return self.source

    def target(self, call: HostCall, image: Tensor) -> Tensor:
        """Return the complete image, in the range in which adapters give theirs back."""
        return image

    def describe(self) -> str:
        """Say who makes the call."""
        return f"made by adapter {self.adapter.name!r}"


def derive(host: nn.Module, call: HostCall, image: Tensor, mask: Tensor, adapter: Adapter | None) -> Recipe:
    """Derive the teacher's call from the host's own, or leave it to an adapter that says that this cannot be done.

    Raises:
        ReplayError: The call cannot be explained by the image and the mask.
    """
    if adapter is not None and not adapter.replayable:
        return _AdapterRecipe(adapter, call.signature(), find_hole(host, call, mask))
    known = adapter.variant(host) if adapter is not None else None
    names = list(inspect.signature(host.forward).parameters)
    declared: dict[Path, Mapping[int, int | None]] = {}
    for index, channels in known.convention.declared(image.shape[1]).items() if known else ():
        declared[(index,)] = channels
        if index < len(names):
            declared[(names[index],)] = channels  # given by keyword
    return derive_recipe(host, call, image, mask, declared)
