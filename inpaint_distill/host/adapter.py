"""What an adapter states about a family of hosts; the families themselves live in ``adapters/``."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.errors import ConfigError, PlanError
from inpaint_distill.host.wrappers import unwrap

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn
    from typing_extensions import Self

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.conventions import Convention, Fill
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.host.targets import Target

__all__ = ["Adapter", "Variant"]


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One implementation of a family: how it is known, and how it is called (ours).

    Attributes:
        source: Where it is from, as ``owner/repository`` or ``package``.
        kind: Its class name.
        has: Names of sub-modules that tell it from other classes of that name.
        convention: How it takes image and hole and gives the restored image back.
        stages: Encoder stages, shallow to deep: targets or stages; ``None`` leaves them to discovery.
        attention: Attention layers: targets or sites; ``None`` leaves them to discovery.
    """

    source: str
    kind: str
    has: tuple[str, ...]
    convention: Convention
    stages: tuple[Target | Stage, ...] | None = None
    attention: tuple[Target | AttentionSite, ...] | None = None

    def matches(self, host: nn.Module) -> bool:
        """Tell whether a bare module is this implementation, or derived from it, without importing its package."""
        # By the names of all its bases: FSDP2 puts a class of its own in front of the host's.
        if self.kind not in {base.__name__ for base in type(host).__mro__}:
            return False
        return all(_holds(host, name) for name in self.has)


def _holds(host: nn.Module, name: str) -> bool:
    # By its path alone: adapters are asked in every call that they make.
    try:
        host.get_submodule(name)
    except AttributeError:
        return False
    return True


class Adapter:
    """Facts about one family of hosts that cannot be read off the module itself (ours).

    A host needs no adapter when discovery and replay succeed. Most families say all there is to say in ``variants``;
    what does not fit there goes into the methods.

    Attributes:
        name: Short name of the family, as used on the command line (``"gated-conv"``).
        variants: The implementations that it knows.
        replayable: Whether the host's own call carries image and mask, so that it can be repeated for the teacher. Set
            it to ``False`` where it does not (the mask is set by a method, or made inside): the teacher is then run by
            :meth:`outputs`, on the image given to ``loss()`` in [-1, 1].
        restores: Whether :meth:`outputs` are restored images, as opposed to noise to be taken away.
        fill: What stands in the hole, where that is not the convention's own; see :meth:`interpolated`.
    """

    name: ClassVar[str] = ""
    variants: ClassVar[tuple[Variant, ...]] = ()
    replayable: ClassVar[bool] = True
    restores: ClassVar[bool] = True
    fill: Fill | None = None

    def variant(self, host: nn.Module) -> Variant | None:
        """Return the implementation that ``host`` is, whatever wraps it, or ``None``."""
        host = unwrap(host)
        return next((each for each in self.variants if each.matches(host)), None)

    def matches(self, host: nn.Module) -> bool:
        """Tell, by class name and attributes and without importing its package, whether ``host`` is of this family."""
        return self.variant(host) is not None

    def build(self, **kwargs: Any) -> nn.Module | None:
        """Construct a host of this family, or return ``None`` where the user has to clone the code."""
        return None

    def stages(self, host: nn.Module) -> Sequence[Target | Stage] | None:
        """Return the encoder stages of ``host``, shallow to deep; ``None`` leaves them to discovery."""
        found = self.variant(host)
        return found.stages if found else None

    def attention(self, host: nn.Module) -> Sequence[Target | AttentionSite] | None:
        """Return the attention layers of ``host``; ``None`` leaves them to discovery, nothing taps none."""
        found = self.variant(host)
        return found.attention if found else None

    def convention(self, host: nn.Module) -> Convention:
        """Return how ``host`` is called.

        Raises:
            PlanError: It is none of the variants.
            ConfigError: Another fill is asked for than the convention's own, and it has no emptied image.
        """
        found = self.variant(host)
        if found is None:
            known = ", ".join(f"{each.kind} of {each.source}" for each in self.variants) or "none"
            raise PlanError(
                f"how adapter {self.name or type(self).__name__!r} calls a {type(unwrap(host)).__name__}",
                f"it knows {known}",
                "give another adapter, or one of your own with this class in `variants`, or with `outputs`",
            )
        return found.convention if self.fill is None else found.convention.filled(self.fill)

    def interpolated(self) -> Self:
        """Return this adapter with holes that are interpolated instead of emptied: the control of completion (ours).

        Raises:
            ConfigError: It says in methods of its own how hosts are called, and so what stands in the hole.
        """
        for name in ("convention", "outputs"):
            if getattr(type(self), name) is not getattr(Adapter, name):
                raise ConfigError(
                    f"holes interpolated for adapter {self.name or type(self).__name__!r}",
                    f"a method {name!r} of its own, which fills them as it likes",
                    f"interpolate them in {name!r}, or state it as `variants` instead",
                )
        other = copy.copy(self)
        other.fill = "interpolated"
        return other

    def takes_latents(self, host: nn.Module) -> bool:
        """Tell whether ``host`` works on latents of another network, to be given to ``loss()`` in place of images."""
        found = self.variant(host)
        return found is not None and found.convention.scale == "latent"

    def outputs(self, host: nn.Module, image: Tensor, hole: Tensor) -> tuple[Tensor, ...]:
        """Run the host and return every image that its own training supervises, coarse first, the result last.

        Args:
            host: The model.
            image: Complete image (B, 3, H, W) in [-1, 1]; the adapter empties the hole itself.
            hole: Mask (B, 1, H, W), 1 in the hole, 0 elsewhere; it may be empty.

        Returns:
            Images (B, 3, H, W) in [-1, 1], not composited with the known pixels.

        Raises:
            PlanError: The host is none of the variants.
        """
        convention = self.convention(host)
        return convention.unpack(convention.pack(image, hole).run(host))

    def call(self, host: nn.Module, image: Tensor, hole: Tensor) -> Tensor:
        """Run the host and return the restored image (B, 3, H, W) in [-1, 1]."""
        return self.outputs(host, image, hole)[-1]
