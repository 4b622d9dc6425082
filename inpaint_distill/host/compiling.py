"""Where hooks and ``torch.compile`` meet (ours).

Dynamo follows a hook into its graph as long as that only keeps tensors, as a feature tap does. What else there is to do
(plan, copy random states, watch gradients, read attention) is done beside a graph: before and after the outermost call
where the hooks are around what was compiled, else between two graphs, which ``fullgraph=True`` does not allow.
"""

from __future__ import annotations

import sys
import weakref
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

__all__ = ["AroundCompiled", "EagerForward", "break_graph", "is_compiled_in_place", "is_exporting", "uncompiled"]


is_exporting = getattr(torch.compiler, "is_exporting", lambda: False)
"""Whether ``torch.export`` is at work; before torch 2.7 nothing tells."""

_BREAKS_SAY_WHY = hasattr(torch.compiler, "set_stance")  # both came with torch 2.6


def uncompiled() -> AbstractContextManager[Any]:
    """Run what was compiled as it was written: a compiled graph runs no hook that was put on later."""
    if "torch._dynamo" in sys.modules and hasattr(torch.compiler, "set_stance"):
        stance: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()


def break_graph(reason: str) -> None:
    """End the graph that is being traced, if there is one; under ``fullgraph=True`` dynamo stops with the reason."""
    if torch.compiler.is_dynamo_compiling():
        if _BREAKS_SAY_WHY:
            torch._dynamo.graph_break(msg=reason)
        else:
            torch._dynamo.graph_break()


class EagerForward:
    """One forward that is not compiled, though its module is."""

    def __init__(self) -> None:
        self._stance: AbstractContextManager[Any] | None = None

    def begin(self) -> None:
        """Compile nothing from here on."""
        self.end()  # of a forward that Ctrl-C interrupted
        self._stance = uncompiled()
        self._stance.__enter__()

    def end(self) -> None:
        """Compile again."""
        if self._stance is not None:
            self._stance.__exit__(None, None, None)
            self._stance = None


def is_compiled_in_place(module: nn.Module) -> bool:
    """Tell whether ``module.compile()`` was called: its hooks are then inside the graph, not around it."""
    return getattr(module, "_compiled_call_impl", None) is not None


class AroundCompiled:
    """Stands for the call of a module that was compiled in place, and runs what its hooks would, around the graph.

    Copies of the module do not have it: torch leaves a compiled call out of them.

    Args:
        module: The module; :meth:`remove` gives it its own call back.
        before: What a forward pre-hook with keywords would do.
        after: What a forward hook would do.
        finish: What a forward hook that is always called would do, last.
    """

    def __init__(
        self, module: nn.Module, before: Callable[..., Any], after: Callable[..., Any], finish: Callable[..., Any]
    ) -> None:
        self.module = weakref.ref(module)
        self.inner: Any = module._compiled_call_impl
        self.before, self.after, self.finish = before, after, finish
        module._compiled_call_impl = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the compiled module."""
        module = self.module()
        try:
            self.before(module, args, kwargs)
            output = self.inner(*args, **kwargs)
            self.after(module, args, output)
        finally:
            self.finish(module, args, None)
        return output

    def remove(self) -> None:
        """Give the module its call back."""
        module = self.module()
        if module is not None and module._compiled_call_impl is self:
            module._compiled_call_impl = self.inner
