"""Host families: how to build, recognise and call them, and where their encoder stages are.

>>> from inpaint_distill import adapters
>>> list(adapters.families())[:4]
['gated-conv', 'contextual-attention', 'partial-conv', 'unet']
>>> adapters.find(adapters.get("unet").build(width=4)).name
'unet'

A package adds its own family with an entry point in the group ``inpaint_distill.adapters`` that names a subclass of
:class:`inpaint_distill.host.adapter.Adapter`. Nothing is loaded before the first call.
"""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING

from inpaint_distill.errors import ConfigError, near_names
from inpaint_distill.host.adapter import Adapter

if TYPE_CHECKING:
    from torch import nn

__all__ = ["ENTRY_POINT_GROUP", "families", "find", "get"]

ENTRY_POINT_GROUP = "inpaint_distill.adapters"


def families() -> dict[str, Adapter]:
    """Return one adapter per known family by name, the built-in ones first and in a fixed order.

    Raises:
        ConfigError: If an entry point cannot be loaded, is no adapter class, or takes a name that is taken.
    """
    from inpaint_distill.adapters.aot_gan import AOTGANAdapter
    from inpaint_distill.adapters.contextual_attention import ContextualAttentionAdapter
    from inpaint_distill.adapters.ctsdg import CTSDGAdapter
    from inpaint_distill.adapters.diffusers import DiffusersLatentAdapter, DiffusersPixelAdapter
    from inpaint_distill.adapters.edge_connect import EdgeConnectAdapter
    from inpaint_distill.adapters.gated_conv import GatedConvAdapter
    from inpaint_distill.adapters.lama import LaMaAdapter
    from inpaint_distill.adapters.mat import MATAdapter
    from inpaint_distill.adapters.mi_gan import MIGANAdapter
    from inpaint_distill.adapters.monai import MonaiAdapter
    from inpaint_distill.adapters.partial_conv import PartialConvAdapter
    from inpaint_distill.adapters.rfr import RFRAdapter
    from inpaint_distill.adapters.segmentation_models import SegmentationModelsAdapter
    from inpaint_distill.adapters.unet import UNetAdapter

    built_in = (
        GatedConvAdapter(),
        ContextualAttentionAdapter(),
        PartialConvAdapter(),
        UNetAdapter(),
        EdgeConnectAdapter(),
        AOTGANAdapter(),
        LaMaAdapter(),
        RFRAdapter(),
        CTSDGAdapter(),
        MIGANAdapter(),
        MATAdapter(),
        SegmentationModelsAdapter(),
        MonaiAdapter(),
        DiffusersPixelAdapter(),
        DiffusersLatentAdapter(),
    )
    found: dict[str, Adapter] = {adapter.name: adapter for adapter in built_in}
    for entry in sorted(importlib.metadata.entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        adapter = _load(entry)
        if adapter.name in found:
            raise ConfigError(
                f"adapter {adapter.name!r} of entry point '{entry.name} = {entry.value}'",
                "another adapter of that name",
                "give it a name of its own, or uninstall one of the two packages",
            )
        found[adapter.name] = adapter
    return found


def get(name: str) -> Adapter:
    """Return the adapter of the family called ``name``.

    Raises:
        ConfigError: If there is no such family.
    """
    known = families()
    if name not in known:
        raise ConfigError(f"host family {name!r}", "no adapter of that name", f"use one of {near_names(name, known)}")
    return known[name]


def find(host: nn.Module) -> Adapter | None:
    """Return the first adapter that knows ``host``, whatever wraps it, or ``None``."""
    return next((adapter for adapter in families().values() if adapter.matches(host)), None)


def _load(entry: importlib.metadata.EntryPoint) -> Adapter:
    """Load the adapter class that an entry point names."""
    asked = f"entry point '{entry.name} = {entry.value}' of group {ENTRY_POINT_GROUP}"
    try:
        loaded = entry.load()
    except Exception as error:
        # Whatever a foreign package raises on import, the user needs to know which package it was.
        raise ConfigError(asked, f"{type(error).__name__}: {error}", "repair or uninstall that package") from error
    if not (isinstance(loaded, type) and issubclass(loaded, Adapter) and loaded.name):
        raise ConfigError(asked, repr(loaded), "point it at a subclass of Adapter that has a name")
    return loaded()
