"""Where a host's call carries the hole, so that it can be read there without a distiller (ours)."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.tree import Path, format_path, select

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["HoleSource"]


@dataclass(frozen=True, kw_only=True)
class HoleSource:
    """One channel of one argument, ``slope * hole + bias``.

    Attributes:
        path: Position or keyword of the argument, then the way into it.
        also: The keyword or position by which the same argument may be given instead.
        channel: Channel that carries the mask.
        slope: Factor.
        bias: Offset.
    """

    path: Path
    channel: int
    slope: float
    bias: float
    also: int | str | None = None

    def named(self, host: nn.Module) -> HoleSource:
        """Look up by which other key the host's forward takes the same argument."""
        names = list(inspect.signature(host.forward).parameters)
        first = self.path[0]
        if isinstance(first, int):
            return dataclasses.replace(self, also=names[first] if first < len(names) else None)
        return dataclasses.replace(self, also=names.index(first) if first in names else None)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the hole (B, 1, H, W) of a call.

        Raises:
            CaptureError: The call does not have the argument.
        """
        for key in (self.path[0], self.also):
            container: Any = args if isinstance(key, int) else kwargs
            try:
                plane: Tensor = select(container, (key, *self.path[1:]) if key is not None else self.path)
            except LookupError:
                continue
            plane = plane.unsqueeze(1) if plane.ndim == 3 else plane
            return (plane[:, self.channel : self.channel + 1].detach().float() - self.bias) / self.slope
        raise CaptureError(
            f"the hole in argument {self.path[0]!r}{format_path(self.path[1:])} of the host's call",
            f"{len(args)} positional arguments and {', '.join(kwargs) or 'no keywords'}",
            "call the host as it was called when its completion blocks were injected",
        )
