"""All taps of one module tree, begun, ended and taken together (ours)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from torch._compile import _disable_dynamo
from torch.autograd.graph import GradientEdge, get_gradient_edge

from inpaint_distill.host.attention_taps import AttentionTaps
from inpaint_distill.host.taps import FeatureTaps, StopForward
from inpaint_distill.host.tree import rebuild

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.attention import AttentionMap, AttentionSite
    from inpaint_distill.host.stage import Stage

__all__ = ["Place", "Views", "Watch"]

Place: TypeAlias = tuple[str, int, int]
"""Where a gradient is observed: ``"features"`` or ``"attention"``, the stage or site, and the how many-th tensor."""


@dataclass
class Views:
    """What one forward showed.

    Attributes:
        features: (B, C_l, H_l, W_l) for each stage, shallow to deep.
        attention: One for each attention site.
    """

    features: list[Tensor] = field(default_factory=list)
    attention: list[AttentionMap] = field(default_factory=list)

    def float32(self) -> Views:
        """Return the same with features in float32."""
        return Views([feature.float() for feature in self.features], self.attention)

    def detached(self) -> Views:
        """Return the same without the graph."""
        return Views(
            [feature.detach() for feature in self.features],
            [rebuild(each, lambda _, tensor: tensor.detach()) for each in self.attention],
        )


class Watch:
    """Feature and attention taps of one module tree.

    Args:
        root: The module whose forward is watched.
        stages: Features to keep.
        sites: Attention to keep.
        logits: Also keep the input of a tapped softmax (for teachers, which hold no graph).
    """

    def __init__(
        self, root: nn.Module, stages: Sequence[Stage], sites: Sequence[AttentionSite] = (), *, logits: bool = False
    ) -> None:
        self.stages = tuple(stages)
        self.sites = tuple(sites)
        self._features = FeatureTaps(root, stages)
        self._attention = AttentionTaps(root, sites, logits=logits) if sites else None
        self._seen = 0
        self._told: Callable[[Place, Tensor], None] | None = None
        self._edges: dict[Place, GradientEdge] = {}

    def begin(self, watch: Callable[[Place, Tensor], None] | None = None, *, stop: bool = False) -> None:
        """Forget the last forward and keep the next one.

        Args:
            watch: Told of each tapped tensor that takes a gradient, as it appears.
            stop: Raise :class:`StopForward` as soon as everything has been seen.
        """
        self._seen = 0
        self._told = watch
        self._edges.clear()
        seen = self._count if stop else None
        self._features.begin(partial(self._tell, "features") if watch else None, seen)
        if self._attention is not None:
            self._attention.begin(partial(self._tell, "attention") if watch else None, seen)

    def enter(self, root: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """See attention in the root's own forward too, where it had begun before the taps were put on."""
        if self._attention is not None:
            self._attention.enter(root, args, kwargs)

    def run(
        self,
        forward: Callable[[], Any],
        image_size: tuple[int, int] | Callable[[], tuple[int, int]],
        *,
        stop: bool = True,
    ) -> Views:
        """Run a forward, up to its last tap or to its end, and return what it showed.

        Args:
            forward: Calls the root.
            image_size: Height and width of the image, which token sequences cover, or what tells them afterwards.
            stop: End it at the last tap: what the module would do with the features is not computed.
        """
        self.begin(stop=stop)
        try:
            forward()
        except StopForward:
            pass
        except BaseException:
            self.clear()
            raise
        return self.take(image_size() if callable(image_size) else image_size)

    def end(self) -> None:
        """Keep nothing that is run from now on."""
        self._features.active = False
        if self._attention is not None:
            self._attention.active = False

    def take(self, image_size: tuple[int, int]) -> Views:
        """Return what the watched forward showed, features as maps, and forget it.

        Raises:
            CaptureError: Something was not seen, or was overwritten in place afterwards.
        """
        kept = self._features.take()
        maps = [stage.as_map(feature, image_size) for stage, feature in zip(self.stages, kept, strict=True)]
        return Views(maps, self._attention.take() if self._attention is not None else [])

    def put_aside(self) -> Any:
        """Take what was kept out, for :meth:`put_back`."""
        kept = (self._features.swap({}), self._attention.swap({}) if self._attention is not None else {}, self._edges)
        self._edges = {}
        return kept

    def put_back(self, kept: Any) -> None:
        """Let :meth:`take` return what was put aside, in place of what was kept since."""
        features, attention, self._edges = kept
        self._features.swap(features)
        if self._attention is not None:
            self._attention.swap(attention)

    def clear(self) -> None:
        """Forget what was kept and stop watching."""
        self._edges.clear()
        self._features.clear()
        if self._attention is not None:
            self._attention.clear()

    def remove(self) -> None:
        """Take every hook off."""
        self._edges.clear()
        self._features.remove()
        if self._attention is not None:
            self._attention.remove()

    def take_edges(self) -> dict[Place, GradientEdge]:
        """Return where the watched tensors are in the graph, before any overwriting, and forget it."""
        edges, self._edges = self._edges, {}
        return edges

    @_disable_dynamo  # a graph holds neither hooks on what is inside it nor edges
    def _tell(self, kind: str, index: int, tensor: Tensor) -> None:
        if self._told is not None:
            if kind == "attention":
                index //= 2  # its taps count the query and the key of one site apart
            place = (kind, index, len(self._edges))  # one may show several: two halves, a loop over the samples
            self._told(place, tensor)
            self._edges[place] = get_gradient_edge(tensor)

    def _count(self) -> None:
        self._seen += 1
        if self._seen == len(self.stages) + len(self.sites):
            raise StopForward
