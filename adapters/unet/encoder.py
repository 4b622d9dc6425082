"""A timm backbone as a sequence of stages."""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, Any

from torch import nn

from inpaint_distill.errors import ConfigError, near_names

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

__all__ = ["timm_stages"]

# The second form reaches backbones whose features end inside one big Sequential of blocks, such as EfficientNet.
FEATURE_MODES: tuple[dict[str, Any], ...] = (
    {},
    {"feature_cls": "list", "feature_cfg": {"flatten_sequential": True}},
)


def timm_stages(
    backbone: str, in_channels: int, levels: int, pretrained: bool | str | Path = False
) -> tuple[nn.Sequential, list[int]]:
    """Split a timm backbone so that the i-th child returns its i-th feature.

    What lies behind the last feature is left out.

    Args:
        backbone: Name of a timm model with (B, C, H, W) features.
        in_channels: Channels of the input.
        levels: Number of features, from the shallowest on.
        pretrained: ``True`` loads timm's weights, a path loads a file of them, ``False`` leaves them random. A first
            convolution for 3 channels is adapted to ``in_channels``, as timm does.

    Returns:
        The stages, and the channels of each.

    Raises:
        ConfigError: If timm has no such model, or it cannot be split.
    """
    import timm
    from timm.models import FeatureListNet

    asked = f"the first {levels} features of the timm backbone {backbone!r}"
    if not timm.is_model(backbone):
        raise ConfigError(asked, "no timm model of that name", f"use one of {near_names(backbone, timm.list_models())}")
    weights: dict[str, Any] = {"pretrained": bool(pretrained)}
    if not isinstance(pretrained, bool):
        weights["pretrained_cfg_overlay"] = {"file": str(pretrained)}
    refusals = []
    for mode in FEATURE_MODES:
        try:
            model = timm.create_model(
                backbone,
                features_only=True,
                in_chans=in_channels,
                **weights,
                out_indices=tuple(range(levels)),
                **mode,
            )
        except (AssertionError, AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            # timm has no exception of its own for a model that cannot be cut at the features asked for.
            refusals.append(str(error))
            continue
        if isinstance(model, FeatureListNet) and model.output_fmt == "NCHW":
            return _split(model, model.return_layers), model.feature_info.channels()
        refusals.append(f"{type(model).__name__} with {getattr(model, 'output_fmt', 'unknown')} features")
    found = "timm says: " + "; ".join(dict.fromkeys(refusals))
    raise ConfigError(asked, found, "use fewer levels, or another backbone such as resnet18")


def _split(modules: nn.ModuleDict, ends: Collection[str]) -> nn.Sequential:
    """Group modules that run one after the other; a group ends with each module named in ``ends``."""
    stages: list[nn.Sequential] = []
    group: OrderedDict[str, nn.Module] = OrderedDict()
    for name, module in modules.items():
        group[name] = module
        if name in ends:
            stages.append(nn.Sequential(group))
            group = OrderedDict()
    return nn.Sequential(*stages)
