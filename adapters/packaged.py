"""Families whose networks come from a package of the package index, which nobody has to have."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, cast

from torch import nn

from inpaint_distill.errors import ConfigError, near_names
from inpaint_distill.host.adapter import Adapter, Variant

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["PackageAdapter", "PackageVariant"]


@dataclass(frozen=True, kw_only=True)
class PackageVariant(Variant):
    """One class of a package (ours).

    Its name is a common one, such as ``UNet``, and how it is called follows from how it was made. So it is also told by
    the package that it was imported from, which is ``source``, and by the channels that it takes.

    Attributes:
        channels: Input channels of its first convolution.
    """

    channels: int = 4

    def matches(self, host: nn.Module) -> bool:
        """Tell whether a bare module is of this class, or derived from it, in two dimensions and of these channels."""
        bases = type(host).__mro__
        if not any((base.__module__.partition(".")[0], base.__name__) == (self.source, self.kind) for base in bases):
            return False
        first = next((module for module in host.modules() if isinstance(module, nn.Conv2d)), None)
        return first is not None and first.in_channels == self.channels and super().matches(host)


class PackageAdapter(Adapter):
    """Adapt networks of one package, which is imported to build one and for nothing else (ours).

    Attributes:
        module: Where the package keeps its networks.
        networks: What can be built, the default first, and the arguments of a small one.
    """

    module: ClassVar[str] = ""
    networks: ClassVar[Mapping[str, Mapping[str, Any]]] = {}

    def build(self, network: str | None = None, **kwargs: Any) -> nn.Module:
        """Build a network of the package, by default a small one.

        Args:
            network: Its class name; the first of ``networks`` by default.
            kwargs: Its arguments, in place of ours or beside them.

        Raises:
            ConfigError: The package is not installed, or there is no network of that name.
        """
        name = network or next(iter(self.networks))
        if name not in self.networks:
            fix = f"use one of {near_names(name, self.networks)}"
            raise ConfigError(f"network {name!r} of host family {self.name!r}", "no network of that name", fix)
        try:
            kind = getattr(import_module(self.module), name)
        except ModuleNotFoundError as error:
            asked, fix = f"to build a host of family {self.name!r}", 'pip install "inpaint-distill[hosts]"'
            raise ConfigError(asked, f"no package {error.name}", fix) from None
        return cast("nn.Module", kind(**{**self.networks[name], **kwargs}))
