"""The arguments of the host's own call, remembered by reference (ours)."""

from __future__ import annotations

import dataclasses
import inspect
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from inpaint_distill.host.tree import Path, copied, format_path, rebuild, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn

    from inpaint_distill.host.guard import RandomState

__all__ = ["HostCall", "argument_name"]


@dataclass(frozen=True)
class HostCall:
    """Positional and keyword arguments of one forward of the host, as they were before it.

    Hosts write into their arguments: a batch comes in as a dictionary and goes out with the result in it.

    Attributes:
        args: Positional arguments.
        kwargs: Keyword arguments.
        random: Where the random numbers stood before a forward that draws some.
        overwritten: The host writes into its tensors too: whatever is run is given copies of them.
    """

    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] | None = None
    random: RandomState | None = None
    overwritten: bool = False

    @staticmethod
    def of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> HostCall:
        """Remember the arguments of a forward that begins."""
        return HostCall(copied(args), copied(kwargs))

    def safe(self) -> HostCall:
        """Copy the tensors of a call that the host is about to write into."""
        return dataclasses.replace(self.rebuild(lambda _, tensor: tensor.clone()), overwritten=True)

    def tensors(self) -> Iterator[tuple[Path, Tensor]]:
        """Yield every tensor among the arguments; a path starts with the position or the keyword."""
        yield from tensors(self.args)
        yield from tensors(self.kwargs or {})

    def rebuild(self, change: Callable[[Path, Tensor], Tensor]) -> HostCall:
        """Copy the call with every tensor replaced by ``change(path, tensor)``."""
        return dataclasses.replace(self, args=rebuild(self.args, change), kwargs=rebuild(self.kwargs or {}, change))

    def run(self, module: nn.Module) -> Any:
        """Call a module with these arguments, and the random numbers that were drawn with them."""
        given = self.safe() if self.overwritten else self
        with self.random.again() if self.random is not None else nullcontext():
            return given.pass_to(module)

    def pass_to(self, module: nn.Module) -> Any:
        """Call a module with these arguments as they are."""
        return module(*copied(self.args), **copied(self.kwargs or {}))

    def image_size(self) -> tuple[int, int] | None:
        """Return the largest (height, width) among the arguments (B, C, H, W); ``None`` where there is none."""
        sizes = [(tensor.shape[-2], tensor.shape[-1]) for _, tensor in self.tensors() if tensor.ndim == 4]
        return max(sizes, key=lambda size: size[0] * size[1], default=None)

    def signature(self) -> tuple[Any, ...]:
        """Summarise which tensors are passed and how many channels they have, without batch and pixel sizes."""
        return tuple((path, tensor.dtype, tuple(tensor.shape[1:2])) for path, tensor in self.tensors())


def argument_name(host: nn.Module, path: Path) -> str:
    """Name the argument that a path leads to as the host's author did, e.g. ``argument 'x'`` or ``argument 'x'[0]``."""
    first, rest = path[0], path[1:]
    if isinstance(first, int):
        parameters = list(inspect.signature(host.forward).parameters.values())
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        if first < len(parameters) and parameters[first].kind in kinds:
            return f"argument {parameters[first].name!r}{format_path(rest)}"
        return f"positional argument {first}{format_path(rest)}"
    return f"argument {first!r}{format_path(rest)}"
