"""The teacher's call by an adapter, for hosts whose own call cannot be repeated (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.host.call import HostCall
from inpaint_distill.host.replay import Recipe, derive_recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inpaint_distill.host.adapter import Adapter

__all__ = ["derive"]


@dataclass(frozen=True)
class _AdapterCall(HostCall):
    """A call that an adapter makes."""

    adapter: Adapter | None = None
    image: Tensor | None = None

    def run(self, module: nn.Module) -> Any:
        """Let the adapter run a module on the complete image and an empty hole."""
        if self.adapter is None or self.image is None:
            return super().run(module)
        return self.adapter.outputs(module, self.image, torch.zeros_like(self.image[:, :1]))


class _AdapterRecipe(Recipe):
    """A recipe that leaves the call to an adapter; the image given to ``loss()`` is in [-1, 1], as adapters take it."""

    def __init__(self, adapter: Adapter, signature: tuple[object, ...]) -> None:
        super().__init__({}, signature)
        self.adapter = adapter

    def apply(self, call: HostCall, image: Tensor) -> HostCall:
        """Return the adapter's call on the complete image."""
        return _AdapterCall(adapter=self.adapter, image=image)

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
        return _AdapterRecipe(adapter, call.signature())
    known = adapter.variant(host) if adapter is not None else None
    return derive_recipe(host, call, image, mask, known.convention.declared(image.shape[1]) if known else None)
