"""attach(): choose, check, and install a distiller."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from inpaint_distill.companion import check_optimizer
from inpaint_distill.config import Config, from_dict, to_dict
from inpaint_distill.distiller import Distiller
from inpaint_distill.errors import ConfigError
from inpaint_distill.host.wrappers import check_whole, unwrap
from inpaint_distill.injection import check_unlisted
from inpaint_distill.inputs import check_host
from inpaint_distill.plan import Wanted, choose_adapter
from inpaint_distill.teachers.choose import make_teacher

if TYPE_CHECKING:
    from collections.abc import Sequence

    from inpaint_distill.host.adapter import Adapter
    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.targets import Target
    from inpaint_distill.lookahead.host_problem import InpaintingLoss
    from inpaint_distill.teachers.base import Teacher

__all__ = ["attach"]


def attach(
    host: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    *,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    teacher: Literal["ema", "frozen", "online"] | Teacher | nn.Module | None = None,
    stages: Sequence[Target | Stage] | None = None,
    attention: Sequence[Target | AttentionSite] | None = None,
    completion: bool | None = None,
    decay: tuple[int, int] | None = None,
    lookahead: Literal["finite_difference", "unroll", "off"] | None = None,
    inpainting_loss: InpaintingLoss | None = None,
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
        stages: The encoder stages, shallow to deep: names, globs, regular expressions, classes of modules, functions
            of name and module, or :class:`~inpaint_distill.host.stage.Stage`; found by default.
        attention: The attention layers whose rows are compared, in the same ways; found by default, and none where the
            list is empty.
        completion: Inject a completion block, which stays in the host: at its input, if it reads what stands in its
            holes, else after its first stage; ``Config.completion_levels`` names others. It starts as nothing,
            unless ``Config.completion_start`` says otherwise.
        decay: Steps (first, last) between which distillation fades to zero: from the last on nothing but the block, if
            there is one, costs anything. By default it never fades.
        lookahead: How the meta-networks are trained: ``"finite_difference"`` (default), ``"unroll"`` or ``"off"``.
        inpainting_loss: ``loss(output, image, mask)``, by which they are trained: the host's output, and image and mask
            as given to ``loss()``. By default the L1 distance in the host's own range, the hole weighing 6 times.
        adapter: An adapter or the name of one; looked up for the host by default.
        config: Everything else.

    Raises:
        ConfigError: A choice that does not exist or does not fit.
        OptimizerError: ``optimizer`` holds none of the host's parameters.
        PlanError: No stages are found, a name does not fit, or FSDP has sharded the host, or DDP has wrapped it before
            there are blocks in it.
    """
    check_host(host)
    for name, value in (("stages", stages), ("attention", attention)):
        if isinstance(value, str):
            raise ConfigError(f"{name}={value!r}", "one name", f"give a list of names in order: [{value!r}, ...]")
    if (image is None) != (mask is None):
        raise ConfigError("an image and a mask to plan with", "only one of them", "give both, or neither")
    if not isinstance(config, Mapping):
        config = to_dict(config if isinstance(config, Config) else from_dict(Config, config or {}))
    values = dict(config)
    if isinstance(teacher, str):
        values["teacher"] = teacher
    if completion is not None:
        values["completion"] = completion
    if decay is not None:
        values["decay"] = decay
    if lookahead is not None:
        values["lookahead"] = {**values.get("lookahead", {}), "engine": lookahead}
    config = from_dict(Config, values)
    if not config.attention.weight:
        if attention:
            fix = "give AttentionConfig a weight > 0, or name none"
            raise ConfigError(f"attention={list(attention)}", "attention transfer of weight 0", fix)
        attention = ()
    if inpainting_loss is not None and not callable(inpainting_loss):
        found = f"a {type(inpainting_loss).__name__}"
        raise ConfigError("inpainting_loss", found, "give a function of the host's output, the image and the mask")
    if (config.completion or config.fusion) and optimizer is None and image is None:
        raise ConfigError(
            "blocks that stay in the host",
            "no optimizer to train them",
            "give attach() the optimizer, or image and mask now and make the optimizer afterwards",
        )
    check_whole(host)
    wrapped = any(isinstance(part, nn.parallel.DistributedDataParallel) for part in host.modules())
    if (config.completion or config.fusion) and wrapped:
        check_unlisted(unwrap(host))
    distiller = Distiller(
        host,
        check_optimizer(host, optimizer),
        config,
        make_teacher(None if isinstance(teacher, str) else teacher, config),
        Wanted.of(
            host,
            choose_adapter(host, adapter),
            stages,
            attention,
            image=config.completion and config.completion_levels == "input",
        ),
        inpainting_loss,
    )
    try:
        distiller.install(image, mask)
    except BaseException:
        distiller.undo()
        raise
    return distiller
