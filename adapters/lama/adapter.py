"""What is known about the LaMa family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from inpaint_distill.adapters.lama.network import LaMaGenerator
from inpaint_distill.host.adapter import Adapter, Variant
from inpaint_distill.host.conventions import Convention
from inpaint_distill.host.stage import Stage

if TYPE_CHECKING:
    from torch import nn

__all__ = ["LaMaAdapter"]

_CALL = Convention("image+hole", scale="unit")
# Every block puts out (local, global). Down to the last down-sampling the global part is the number 0; there the
# feature is both parts.
_STAGES = (
    *(Stage(name=f"model.{index}", select=(0,)) for index in (1, 2, 3)),
    Stage(name="model.4", select=((0,), (1,))),
)

_ADVIMMAN = Variant(
    source="advimman/lama",
    kind="FFCResNetGenerator",
    # The first residual block stands at 5 after three down-samplings; only with a global branch it has a spectrum.
    has=("model.4.ffc.convl2g", "model.5.conv1.ffc.convg2g.fu"),
    convention=_CALL,
    stages=_STAGES,
    attention=(),
)
_OURS = Variant(
    source="inpaint_distill",
    kind="LaMaGenerator",
    has=("model.4", "model.5.conv1.spectrum"),
    convention=_CALL,
    stages=_STAGES,
    attention=(),
)


class LaMaAdapter(Adapter):
    """Adapt LaMa, fast Fourier convolutions (Suvorov et al., WACV 2022).

    A block puts out (local, global), whose concatenation is the feature; images are in [0, 1].
    """

    name: ClassVar[str] = "lama"
    variants: ClassVar[tuple[Variant, ...]] = (_OURS, _ADVIMMAN)

    def build(self, **kwargs: Any) -> nn.Module:
        """Build a :class:`LaMaGenerator`, by default one that trains on a CPU at 64 px."""
        return LaMaGenerator(**{"width": 8, "blocks": 2, **kwargs})
