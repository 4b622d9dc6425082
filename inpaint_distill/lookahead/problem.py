"""What a look-ahead is about: two losses as functions of theta and of the meta-networks' parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Engine", "Parameters", "Problem"]

Parameters: TypeAlias = "dict[str, Tensor]"


class Problem(Protocol):
    """The two losses of one look-ahead, each a pure function: the same arguments give the same value."""

    def distillation(self, theta: Parameters, meta: Parameters, anchor: Any = None) -> tuple[Tensor, Any]:
        """Compute the distillation terms on batch A.

        Args:
            theta: The trained parameters, by name.
            meta: Those of the meta-networks.
            anchor: What an earlier call returned: whatever the terms detach is then taken from it, and not from
                ``theta``.

        Returns:
            The loss, and the anchor of this ``theta``.
        """

    def inpainting(self, theta: Parameters) -> Tensor:
        """Compute the inpainting loss on batch B."""


Engine: TypeAlias = "Callable[[Problem, Parameters, Parameters], tuple[Tensor, Parameters]]"
"""From a problem, theta and meta to the inpainting loss after the look-ahead and its gradient in meta."""
