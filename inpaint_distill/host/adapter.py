"""What an adapter states about a family of hosts; the families themselves live in ``adapters/``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Adapter"]


class Adapter:
    """Facts about one family of hosts that cannot be read off the module itself (ours).

    A host needs no adapter when discovery and replay succeed. Subclasses override what they know.

    Attributes:
        name: Short name of the family, as used on the command line (``"gated-conv"``).
        stages: Module names or globs of the encoder stages, shallow to deep; ``None`` leaves it to discovery.
        replayable: Whether the host's own call carries image and mask, so that it can be repeated for the teacher. Set
            it to ``False`` where it does not (the mask is set by a method, made inside, or given as edges or latents):
            the teacher is then run by :meth:`outputs`, on the image given to ``loss()`` in [-1, 1].
        attention: Module names or globs of the attention layers; ``None`` leaves it to discovery.
    """

    name: ClassVar[str] = ""
    stages: ClassVar[tuple[str, ...] | None] = None
    replayable: ClassVar[bool] = True
    attention: ClassVar[tuple[str, ...] | None] = None

    def matches(self, host: nn.Module) -> bool:
        """Tell, by class name and attributes and without importing its package, whether ``host`` is of this family."""
        raise NotImplementedError

    def build(self, **kwargs: Any) -> nn.Module | None:
        """Construct a host of this family, or return ``None`` where the user has to clone the code."""
        return None

    def outputs(self, host: nn.Module, image: Tensor, hole: Tensor) -> tuple[Tensor, ...]:
        """Run the host and return every image that its own training supervises, coarse first, the result last.

        Args:
            host: The model.
            image: Complete image (B, 3, H, W) in [-1, 1]; the adapter empties the hole itself.
            hole: Mask (B, 1, H, W), 1 in the hole, 0 elsewhere; it may be empty.

        Returns:
            Images (B, 3, H, W) in [-1, 1], not composited with the known pixels.
        """
        raise NotImplementedError

    def call(self, host: nn.Module, image: Tensor, hole: Tensor) -> Tensor:
        """Run the host and return the restored image (B, 3, H, W) in [-1, 1]."""
        return self.outputs(host, image, hole)[-1]
