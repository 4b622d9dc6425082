"""Where a host's call carries the hole, so that it can be read there without a distiller (ours)."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.errors import CaptureError
from inpaint_distill.host.tree import Path, format_path, select

if TYPE_CHECKING:
    from torch import Tensor, nn
    from typing_extensions import Self

__all__ = ["Argument", "HoleSource"]


@dataclass(frozen=True, kw_only=True)
class Argument:
    """One tensor among the arguments of a host's call.

    Attributes:
        path: Position or keyword of the argument, then the way into it.
        also: The keyword or position by which the same argument may be given instead.
    """

    what: ClassVar[str]

    path: Path
    also: int | str | None = None

    def named(self, host: nn.Module) -> Self:
        """Look up by which other key the host's forward takes the same argument."""
        parameters = inspect.signature(host.forward).parameters.values()
        names = [each.name if each.kind is each.POSITIONAL_OR_KEYWORD else None for each in parameters]
        first = self.path[0]
        if isinstance(first, int):
            return dataclasses.replace(self, also=names[first] if first < len(names) else None)
        return dataclasses.replace(self, also=names.index(first) if first in names else None)

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where a call may have it: one way, or two."""
        return tuple((key, *self.path[1:]) for key in (self.path[0], self.also) if key is not None)

    def find(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Path, Tensor]:
        """Return where a call has the argument, and the tensor.

        Raises:
            CaptureError: The call does not have it.
        """
        for path in self.paths:
            tensor = _at(path, args if isinstance(path[0], int) else kwargs)
            if tensor is not None:
                return path, tensor
        raise CaptureError(
            f"{self.what} in argument {self.path[0]!r}{format_path(self.path[1:])} of the host's call",
            f"{len(args)} positional arguments and {', '.join(kwargs) or 'no keywords'}",
            "call the host as it was called when its completion blocks were injected",
        )


def _at(path: Path, arguments: Any) -> Tensor | None:
    try:
        found: Tensor = select(arguments, path)
    except LookupError:
        return None
    return found


@dataclass(frozen=True, kw_only=True)
class HoleSource(Argument):
    """One channel of one argument, ``slope * hole + bias``.

    Attributes:
        channel: Channel that carries the mask.
        slope: Factor.
        bias: Offset.
    """

    what: ClassVar[str] = "the hole"

    channel: int
    slope: float
    bias: float

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the hole (B, 1, H, W) of a call.

        Raises:
            CaptureError: The call does not have the argument.
        """
        plane = self.find(args, kwargs)[1]
        plane = plane.unsqueeze(1) if plane.ndim == 3 else plane
        return (plane[:, self.channel : self.channel + 1].detach().float() - self.bias) / self.slope
