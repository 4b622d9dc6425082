"""Leave out of a teacher's forward what its features do not depend on (ours).

A two-stage host pastes its coarse network's result into the hole. On the complete image there is none, so that the
features of the second network are the same whatever the first one says, and it need not run.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from inpaint_distill.host.guard import copy_module, untouched
from inpaint_distill.host.tree import rebuild, tensors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

__all__ = ["leave_out", "moved_copy", "put_back"]


def leave_out(root: nn.Module, tapped: Collection[str], views: Callable[[nn.Module], Any]) -> list[str]:
    """Have modules of a teacher return zeros at once where its views do not depend on what they return.

    Each is tried on a copy of ``root`` whose parameters have been moved at random, so that a path that is closed by
    a weight of zero (and opens in training) counts as a dependence: the views must stay equal bit for bit while the
    module is not run and gives noise. A module that is left out still runs on inputs of shapes that it has not
    met.

    Args:
        root: The teacher's network; its modules are changed, their parameters and keys are not.
        tapped: Names of the modules whose views are wanted. Only modules beside the path that leads to all of them are
            tried.
        views: Runs a network like ``root`` on a batch, and returns what is wanted of it: maps (B, C, H, W), nested in
            any way.

    Returns:
        Names of the modules left out.
    """
    beside = _run(root, _beside(root, tapped), views)
    if not beside:
        return []
    probe = moved_copy(root)
    shells = {name: _Shell(probe.get_submodule(name)) for name in beside}

    def look() -> list[Tensor]:
        try:
            return [tensor for _, tensor in tensors(views(probe))]
        except Exception:  # whatever a foreign forward raises on such weights, or on noise
            return []

    wanted = look()
    if not wanted or any(map(_dead, wanted)):
        return []  # what depends on nothing now may do so later
    unneeded = []
    for name, shell in shells.items():
        shell.fill = _noise
        found = look() if shell.met else []
        shell.fill = None
        if len(found) == len(wanted) and all(map(torch.equal, found, wanted)):
            unneeded.append(name)
    for name in unneeded:
        _Shell(root.get_submodule(name)).fill = torch.zeros_like
    return unneeded


def _run(root: nn.Module, names: Collection[str], views: Callable[[nn.Module], Any]) -> list[str]:
    """Return those of the modules that are run before the last tap."""
    run: dict[str, None] = {}
    handles = [
        root.get_submodule(name).register_forward_pre_hook(lambda *_, n=name: run.update({n: None})) for name in names
    ]
    try:
        with untouched(root):
            views(root)
    finally:
        for handle in handles:
            handle.remove()
    return list(run)


def _dead(tensor: Tensor) -> bool:
    """Tell whether every channel of a map has one value."""
    return tensor.ndim == 4 and tensor[0, 0].numel() > 1 and bool((tensor == tensor[..., :1, :1]).all())


def put_back(root: nn.Module, names: Collection[str]) -> None:
    """Have modules that were left out run again."""
    for name in names:
        module = root.get_submodule(name)
        if isinstance(module.forward, _Shell):
            module.forward = module.forward.forward


@torch.no_grad()
def moved_copy(root: nn.Module) -> nn.Module:
    """Copy a network and move parameters and buffers at random, also those that are zero; variances stay positive."""
    module = copy_module(root)
    for parameter in module.parameters():
        if parameter.is_floating_point():
            parameter.add_(torch.randn_like(parameter) * (0.1 * parameter.abs().mean() + 0.01))
    for buffer in module.buffers():
        if buffer.is_floating_point():
            buffer.add_(torch.rand_like(buffer), alpha=0.01)
    return module


def _beside(root: nn.Module, tapped: Collection[str]) -> list[str]:
    """Name the modules beside the path from the root to the last one that holds everything tapped."""
    paths = [name.split(".") for name in tapped]
    common: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    names = []
    for depth in range(len(common) + 1):
        prefix = "".join(f"{part}." for part in common[:depth])
        for child, module in root.get_submodule(prefix[:-1]).named_children():
            name = f"{prefix}{child}"
            holds = any(f"{each}.".startswith(f"{name}.") for each in tapped)
            if not holds and not isinstance(module, torch.jit.ScriptModule):
                names.append(name)
    return names


class _Shell:
    """Stand in for a module's ``forward``: run it, or return what ``fill`` makes of the tensors that it returned."""

    def __init__(self, module: nn.Module) -> None:
        self.forward = module.forward
        self.fill: Callable[..., Tensor] | None = None
        self.met: dict[Any, Any] = {}  # what it returned for inputs of such shapes, as tensors without data
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the module on inputs of new shapes, or where nothing is to be filled in."""
        given = [tensor for _, tensor in tensors([args, kwargs])]
        device = given[0].device if given else torch.device("cpu")
        key = (
            *((tensor.shape, tensor.dtype, tensor.device) for tensor in given),
            torch.is_autocast_enabled(device.type),
        )
        if self.fill is not None and key in self.met:
            fill = self.fill
            return rebuild(self.met[key], lambda _, tensor: fill(tensor, device=device))
        with torch.no_grad() if self.fill is not None else nullcontext():  # of what is left out nothing is trained
            output = self.forward(*args, **kwargs)
        parts = output if isinstance(output, (tuple, list)) else [output]
        if all(isinstance(part, Tensor) for part in parts):  # of anything else it is not known what zero is
            self.met[key] = rebuild(output, lambda _, tensor: torch.empty_like(tensor, device="meta"))
        return output


def _noise(tensor: Tensor, device: torch.device) -> Tensor:
    return (torch.randn_like if tensor.is_floating_point() else torch.zeros_like)(tensor, device=device)
