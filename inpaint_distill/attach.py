"""attach(): choose, check, and install a distiller."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from inpaint_distill.companion import check_optimizer
from inpaint_distill.config import Config, from_dict, to_dict
from inpaint_distill.distiller import Distiller
from inpaint_distill.errors import ConfigError, PlanError
from inpaint_distill.host.adapter import Adapter
from inpaint_distill.teachers.choose import make_teacher

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from inpaint_distill.host.stage import Stage
    from inpaint_distill.teachers.base import Teacher

__all__ = ["attach"]


def attach(
    host: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    teacher: Literal["ema", "frozen", "online"] | Teacher | nn.Module | None = None,
    stages: Sequence[str | Stage] | None = None,
    adapter: Adapter | str | None = None,
    config: Config | Mapping[str, Any] | None = None,
) -> Distiller:
    """Attach distillation to a host that is about to be trained.

    Nothing is installed before everything has been checked, and nothing stays installed after an error. Without
    ``image`` and ``mask`` the plan is made from the arguments of the host's first forward with gradients.

    Args:
        host: Any inpainting module; it is called as before, by your own loop.
        optimizer: The optimizer that trains it. Its steps then move the teacher and the added networks; without it,
            call :meth:`Distiller.step` after each of them.
        image: A complete image (B, 3, H, W) in [-1, 1] or [0, 1], to plan now.
        mask: Its mask (B, 1, H, W), 1 in the hole.
        teacher: ``"ema"`` (default), ``"frozen"``, ``"online"``, a teacher object, or any module.
        stages: Names or globs of the encoder stages, shallow to deep; found by default.
        adapter: An adapter or the name of one; looked up for the host by default.
        config: Everything else.

    Raises:
        ConfigError: A choice that does not exist or does not fit.
        OptimizerError: ``optimizer`` holds none of the host's parameters.
        PlanError: No stages are found, or a name does not fit.
    """
    _check_host(host)
    if isinstance(stages, str):
        raise ConfigError(f"stages={stages!r}", "one name", f"give a list of names, shallow to deep: [{stages!r}, ...]")
    if (image is None) != (mask is None):
        raise ConfigError("an image and a mask to plan with", "only one of them", "give both, or neither")
    if not isinstance(config, Config):
        config = from_dict(Config, config or {})
    if isinstance(teacher, str):
        config = from_dict(Config, {**to_dict(config), "teacher": teacher})
        teacher = None
    distiller = Distiller(
        host, check_optimizer(host, optimizer), config, make_teacher(teacher, config), stages, _adapter(host, adapter)
    )
    try:
        distiller.install(image, mask)
    except BaseException:
        distiller.detach()
        raise
    return distiller


def _check_host(host: Any) -> None:
    """Refuse what cannot be watched."""
    if not isinstance(host, nn.Module):
        raise ConfigError("a host to attach to", f"a {type(host).__name__}", "give the inpainting model, an nn.Module")
    if isinstance(host, torch.jit.ScriptModule):
        found = "a TorchScript module, whose layers cannot be watched"
        raise PlanError("a host to attach to", found, "give the nn.Module it was made from")
    if any(nn.parameter.is_lazy(tensor) for tensor in (*host.parameters(), *host.buffers())):
        raise PlanError(
            "a host to attach to", "Lazy modules without parameters yet", "run the host once before attach()"
        )


def _adapter(host: nn.Module, choice: Adapter | str | None) -> Adapter | None:
    adapters = import_module("inpaint_distill.adapters")
    if choice is None:
        found: Adapter | None = adapters.find(host)
        return found
    if isinstance(choice, str):
        return cast("Adapter", adapters.get(choice))
    if not isinstance(choice, Adapter):
        found = f"an object of type {type(choice).__name__}"
        raise ConfigError("an adapter", found, "give the name of a family or an Adapter")
    return choice
