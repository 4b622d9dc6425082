"""Any module as a teacher: another architecture, or a timm backbone with ``features_only``."""

from __future__ import annotations

import dataclasses
import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from inpaint_distill.errors import PlanError
from inpaint_distill.host.attention_choice import named_attention
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.discovery import choose_encoder, find_encoders
from inpaint_distill.host.guard import forked_rng, module_device, module_place
from inpaint_distill.host.named_stages import named_stages, output_stages
from inpaint_distill.host.taps import MethodHook
from inpaint_distill.host.trace import trace_forward
from inpaint_distill.host.watch import Views, Watch
from inpaint_distill.teachers.base import Teacher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.stage import Stage

__all__ = ["ModuleTeacher"]


class ModuleTeacher(Teacher):
    """A network of the user's, called on the complete image (ours).

    Each of the host's stages is paired with the teacher's stage of the nearest stride.

    Args:
        module: The network. A list of maps as output (timm's ``features_only``) is taken as its stages; otherwise
            its encoder is found as the host's is.
        call: How to run it on the image given to ``loss()``, e.g. with another normalisation; ``module(image)``
            by default.
        stages: Names, to settle what discovery cannot.
        attention: Names of the attention layers to compare with the host's, in their order; without them there is no
            attention transfer.
    """

    kind: ClassVar[str] = "module"

    def __init__(
        self,
        module: nn.Module,
        *,
        call: Callable[[nn.Module, Tensor], Any] | None = None,
        stages: Sequence[str | Stage] | None = None,
        attention: Sequence[str | AttentionSite] | None = None,
    ) -> None:
        self.module = module
        self.call = call or (lambda network, image: network(image))
        self.stages = stages
        self.attention = attention
        self.watch: Watch | None = None

    def bind(self, host: nn.Module) -> None:
        """Put the module on the host's device."""
        self.module.to(module_device(host))

    def plan(
        self, stages: Sequence[Stage], image_size: tuple[int, int], sites: Sequence[AttentionSite] = ()
    ) -> tuple[Stage, ...]:
        """Find the module's stages in a dry run and pair them by stride."""
        image = torch.zeros(2, 3, *image_size, dtype=torch.float32, device=module_device(self.module))
        try:
            with _in_eval_mode(self.module):
                trace = trace_forward(self.module, lambda: self.call(self.module, image), image_size)
        except Exception as error:
            raise PlanError(
                f"a dry run of the teacher {type(self.module).__name__} on images {tuple(image.shape)}",
                f"{type(error).__name__}: {error}",
                "say how to run it: ModuleTeacher(module, call=lambda module, image: ...)",
            ) from error
        # The call may show the module another size than the image's.
        first = next(event.inputs for event in sorted(trace.events, key=lambda event: event.start))
        self.shown = _largest(first) or image_size
        trace = dataclasses.replace(trace, image_size=self.shown, used_size=self.shown)
        own = named_stages(trace, self.stages) if self.stages else output_stages(trace)
        if not own:
            encoders = find_encoders(trace)
            own = encoders[choose_encoder(encoders)[0]].stages
        enlarged = self.shown[0] / image_size[0]
        self.paired = tuple(min(own, key=lambda each: abs(each.stride / enlarged - stage.stride)) for stage in stages)
        own_sites: tuple[AttentionSite, ...] = ()
        if sites and self.attention:
            with _in_eval_mode(self.module):
                candidates = find_attention(self.module, lambda: self.call(self.module, image), self.shown)
            own_sites = named_attention(candidates, self.attention)
            if len(own_sites) != len(sites):
                asked = f"{len(sites)} attention layers of the teacher, one for each of the host's"
                raise PlanError(asked, f"{len(own_sites)}", "name as many in ModuleTeacher(attention=[...])")
        self.sites = own_sites
        self.watch = Watch(self.module, tuple(dict.fromkeys(self.paired)), own_sites, logits=True)
        self.handle = self.module.register_forward_pre_hook(MethodHook(self, "_shown"), with_kwargs=True)
        return self.paired

    def views(self, call: HostCall, image: Tensor) -> Views:
        """Run the module on the complete image, up to its last tap."""
        if self.watch is None:
            raise RuntimeError("the teacher has not been planned")
        with torch.no_grad(), forked_rng(image.device), _in_eval_mode(self.module):
            own = module_place(self.module)[1]
            image = image.to(own) if own.is_floating_point else image
            seen = self.watch.run(lambda: self.call(self.module, image), lambda: self.shown)
        kept = dict(zip(self.watch.stages, seen.features, strict=True))
        return Views([kept[stage] for stage in self.paired], seen.attention)

    def release(self) -> None:
        """Take the taps off."""
        if self.watch is not None:
            self.watch.remove()
            self.handle.remove()

    def _shown(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the size that the module is shown, which token sequences cover."""
        self.shown = HostCall(args, kwargs).image_size() or self.shown

    def describe(self) -> str:
        """Say in one line what the teacher is."""
        return f"module: {type(self.module).__name__}"


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode for one forward: its user, or another distiller, may change the mode between two."""
    trained = [part for part in module.modules() if part.training]
    if trained:
        module.eval()
    try:
        yield
    finally:
        for part in trained:
            part.training = True


def _largest(shapes: Sequence[tuple[int, ...]]) -> tuple[int, int] | None:
    """Return the largest (height, width) of the maps (B, C, H, W)."""
    sizes = [(shape[2], shape[3]) for shape in shapes if len(shape) == 4]
    return max(sizes, key=math.prod, default=None)
