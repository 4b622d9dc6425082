"""Do training steps on a device, replayed as a CUDA graph where each does the same as the last (ours)."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["Stepper"]


class Stepper:
    """Run one training's steps.

    On a CUDA device a small host waits for Python, which takes several times as long to launch the few hundred kernels
    of a step as the device to run them. A recorded step is launched at once. Random numbers are drawn anew by each
    replay. A step that reads a value back, or copies one to the device, cannot be recorded; it goes on being launched
    kernel by kernel, with a warning.

    Args:
        update: The step, from image (B, 3, H, W) and hole (B, 1, H, W) on the device to the host's loss.
        device: Where it runs.
        record: Whether each step does what the last one did, with other numbers, and may be recorded.
    """

    def __init__(
        self, update: Callable[[Tensor, Tensor], Tensor], device: torch.device, *, record: bool = True
    ) -> None:
        self.update = update
        self.device = device
        # Nothing is recorded on the default stream, and gradients have to be added up on that of the record.
        recorded = record and device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if recorded else None  # type: ignore[no-untyped-call]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._batch: tuple[Tensor, ...] = ()
        self._loss = torch.empty(0)
        self._refused = False

    def __call__(self, image: Tensor, hole: Tensor, *, replay: bool = False) -> Tensor:
        """Do a step with a batch of any device and return its loss, which the next step may overwrite.

        Args:
            image: (B, 3, H, W).
            hole: (B, 1, H, W).
            replay: Record this step if none is, and replay it; the first steps load what a record has to find loaded.
        """
        if self._stream is None:
            return self.update(image.to(self.device), hole.to(self.device))
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            batch = tuple(tensor.to(self.device, non_blocking=True) for tensor in (image, hole))
            if self._graph is not None:
                for held, new in zip(self._batch, batch, strict=True):
                    held.copy_(new)
            elif replay and not self._refused:
                self._graph = self._record(batch)
            if self._graph is None:
                return self.update(*batch)
            self._graph.replay()
            return self._loss

    def wait(self) -> None:
        """Wait until the steps are done, before their results are read."""
        if self._stream is not None:
            self._stream.synchronize()

    def _record(self, batch: tuple[Tensor, ...]) -> torch.cuda.CUDAGraph | None:
        """Record the step, which runs its Python, and no kernel; return ``None`` where that cannot be done."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self._stream):
                self._loss = self.update(*batch)
        except RuntimeError as error:
            self._refused = True
            reason = str(error).partition("\n")[0]
            warnings.warn(f"a step cannot be recorded, and is launched kernel by kernel: {reason}", stacklevel=4)
            return None
        self._batch = batch
        return graph
