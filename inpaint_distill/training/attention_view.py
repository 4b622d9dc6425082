"""Where a pixel looks: one row of a host's attention, laid over the image (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from inpaint_distill.host.attention_choice import choose_attention, named_attention
from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.attention_taps import AttentionTaps
from inpaint_distill.host.stage import token_grid

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from inpaint_distill.host.attention import AttentionMap, AttentionSite
    from inpaint_distill.host.targets import Target

__all__ = ["attention_sites", "pixel_attention", "watch_attention"]


def attention_sites(
    host: nn.Module,
    run: Callable[[], object],
    image_size: tuple[int, int],
    wanted: Sequence[Target | AttentionSite] | None,
) -> tuple[AttentionSite, ...]:
    """Return the attention layers of a host: those named, those found where ``wanted`` is ``None``; maybe none.

    Raises:
        PlanError: A name matches nothing that ran, or nothing that can be used.
    """
    if wanted is not None and not wanted:
        return ()
    candidates = find_attention(host, run, image_size)
    if wanted is None:
        return choose_attention(candidates)
    return named_attention(candidates, wanted, dict(host.named_modules()))


@torch.no_grad()
def watch_attention(host: nn.Module, run: Callable[[], object], sites: Sequence[AttentionSite]) -> list[AttentionMap]:
    """Run a host and return what its attention layers showed; no hook stays on it."""
    taps = AttentionTaps(host, sites)
    try:
        taps.begin()
        run()
        return taps.take()
    finally:
        taps.remove()


def pixel_attention(
    seen: AttentionMap, site: AttentionSite, pixel: tuple[int, int], image_size: tuple[int, int]
) -> Tensor | None:
    """Return how much the token of a pixel attends to each place of one image.

    The mean over the heads. Where attention is windowed, places outside the pixel's window are 0. What goes to tokens
    that are no places (a class token) is left out.

    Args:
        seen: What a forward on one image showed of the layer.
        site: The layer.
        pixel: Row and column in the image.
        image_size: Height and width of the image.

    Returns:
        (rows, columns) of the keys' grid, each weight in [0, 1]; ``None`` where the keys are no places of the image.

    Raises:
        PlanError: The queries do not tile the image.

    >>> from inpaint_distill.host.attention import AttentionMap, AttentionSite
    >>> site = AttentionSite(name="attention", kind="softmax", queries=16, keys=16)
    >>> seen = AttentionMap(rows=torch.eye(16)[None, None])
    >>> pixel_attention(seen, site, (7, 0), (8, 8)).nonzero().tolist()
    [[3, 0]]
    """
    queries = seen.rows if seen.rows is not None else seen.query
    if queries is None:
        return None
    batch, count = queries.shape[0], queries.shape[2]
    rows, columns = site.grid(count, batch, 1, image_size)
    places = torch.arange(1, rows * columns + 1, dtype=torch.float64).view(1, 1, rows, columns)
    tokens = site.tokens(places, count, batch, image_size)[..., 0].long()  # (windows, count), 0 beyond the edge
    cell = pixel[0] * rows // image_size[0] * columns + pixel[1] * columns // image_size[1]
    window, token = (int(index) for index in (tokens == cell + 1).nonzero()[0])
    weights = _row(seen, window, token)[site.prefix :]
    if len(weights) == count:
        laid = torch.zeros(rows * columns + 1, dtype=weights.dtype)
        laid[tokens[window]] = weights
        return laid[1:].view(rows, columns)
    grid = token_grid(len(weights), image_size) if batch == 1 else None  # keys reduced to a coarser grid
    return weights.view(grid) if grid is not None else None


def _row(seen: AttentionMap, window: int, token: int) -> Tensor:
    """Return one row, (Nk,), float64, the mean over the heads."""
    if seen.rows is not None:
        return seen.rows[window, :, token].detach().cpu().double().mean(0)
    if seen.query is None or seen.key is None:
        raise ValueError("an attention map without rows has queries and keys")
    query, key = seen.query[window, :, token].double(), seen.key[window].double()
    logits = seen.scale * (key @ query[..., None])[..., 0]
    if seen.bias is not None:
        shape = (len(seen.query), seen.query.shape[1], seen.query.shape[2], key.shape[1])
        logits = logits + seen.bias.expand(shape)[window, :, token].double()
    return logits.softmax(-1).detach().cpu().mean(0)
