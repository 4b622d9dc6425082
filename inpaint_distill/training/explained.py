"""How much of an image a host has learned to give back: brightness and colours, known and in the hole (ours)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from inpaint_distill.training.ablation import BARE
from inpaint_distill.training.evidence_table import arm_title

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from torch import Tensor

__all__ = [
    "PARTS",
    "SIDES",
    "explained",
    "explained_markdown",
    "explained_sentences",
    "paints_grey",
    "summarise_explained",
]

SIDES, PARTS = ("known", "hole"), ("luma", "chroma")

_GREY = 0.1  # of the chroma of known pixels
_CHUNK = 64  # images at a time

# Of RGB, BT.601. Chroma is Cb and Cr.
_WEIGHTS = {
    "luma": ((0.299, 0.587, 0.114),),
    "chroma": ((-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312)),
}

_HOW_TO_READ = """\
Share of the variance over all pixels of all images that the restored image explains before it is composited: 1 is all,
0 no more than one colour everywhere. Means over the seeds. Luma and chroma (Cb and Cr) are those of BT.601. A host
without skip connections has to learn to copy the known pixels too; what it explains of them says how far it has come.
"""


def explained(restored: Tensor, image: Tensor, hole: Tensor) -> dict[str, dict[str, float | None]]:
    """Return the share of the variance of luma and chroma that is explained, of known pixels and in the hole.

    Args:
        restored: (B, 3, H, W), what the host returned, not composited; it is clamped to [-1, 1].
        image: Complete image (B, 3, H, W) in [-1, 1].
        hole: (B, 1, H, W), 1 in the hole.

    Returns:
        By side and part: at most 1, below 0 where one colour would be nearer, ``None`` where nothing varies.

    >>> image = torch.rand(4, 3, 8, 8) * 2 - 1
    >>> hole = torch.zeros(4, 1, 8, 8); hole[..., :4] = 1
    >>> explained(image, image, hole)["known"]
    {'luma': 1.0, 'chroma': 1.0}
    """
    found: dict[str, dict[str, float | None]] = {}
    for side, inside in zip(SIDES, (hole < 0.5, hole > 0.5), strict=True):
        found[side] = {}
        for part, weights in _WEIGHTS.items():
            count, total, square, error = 0, torch.zeros(len(weights), dtype=torch.float64), 0.0, 0.0
            for chunk in zip(*(torch.split(each, _CHUNK) for each in (restored, image, inside)), strict=True):
                given, truth = (_pixels(each.clamp(-1, 1), chunk[2], weights) for each in chunk[:2])
                count += len(truth)
                total += truth.sum(0).cpu()
                square += truth.square().sum().item()
                error += (given - truth).square().sum().item()
            spread = square - (total.square().sum() / max(count, 1)).item()
            # Of grey images, what is left of the chroma is rounding.
            found[side][part] = None if spread <= 1e-9 * count else 1 - error / spread
    return found


def _pixels(image: Tensor, inside: Tensor, weights: Sequence[Sequence[float]]) -> Tensor:
    """Return the weighted sums of the channels at some pixels, (pixels, sums), in float64."""
    chosen = image.movedim(1, -1)[inside[:, 0]].double()
    return chosen @ torch.tensor(weights).to(chosen).T


def summarise_explained(seeds: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Put together what the networks of each seed explain: by side and part, ``mean`` and ``seeds`` by network.

    Args:
        seeds: For each seed, by network, what :func:`explained` found.
    """
    found: dict[str, Any] = {}
    for side in SIDES:
        found[side] = {}
        for part in PARTS:
            shares = {name: [each[name][side][part] for each in seeds] for name in seeds[0]}
            found[side][part] = {"mean": {name: _mean(own) for name, own in shares.items()}, "seeds": shares}
    return found


def _mean(values: Sequence[float | None]) -> float | None:
    shares = [value for value in values if value is not None]
    return sum(shares) / len(shares) if shares else None


def paints_grey(shares: Iterable[float | None]) -> str:
    """Say with how many seeds a host paints grey, given the share of the known pixels' chroma of each; or nothing.

    >>> paints_grey([0.01, 0.64])
    'paints grey with 1 of 2 seeds (it explains 0.01 of the chroma of known pixels): it has not learned colours yet'
    >>> paints_grey([0.58, 0.64])
    ''
    """
    told = [share for share in shares if share is not None]
    grey = ", ".join(f"{share:.2f}" for share in told if share < _GREY)
    count = sum(share < _GREY for share in told)
    return grey and (
        f"paints grey with {count} of {len(told)} seeds (it explains {grey} of the chroma of known pixels): it has not "
        "learned colours yet"
    )


def explained_sentences(found: Mapping[str, Any], arm: str) -> list[str]:
    """Say which of the hosts, alone and with distillation, paints grey."""
    shares = found["known"]["chroma"]["seeds"]
    said = {title: paints_grey(shares[name]) for name, title in ((BARE, "host alone"), (arm, arm_title(arm)))}
    return [f"The {title} {text}." for title, text in said.items() if text]


def explained_markdown(found: Mapping[str, Any], arm: str) -> str:
    """Return the table, and how to read it."""
    rows = []
    for side in SIDES:
        for part in PARTS:
            shares = (found[side][part]["mean"][name] for name in (BARE, arm))
            numbers = ("n/a" if share is None else f"{share:.3f}" for share in shares)
            rows.append(f"| {side} | {part} | {' | '.join(numbers)} |")
    head = f"| pixels | part | host alone | {arm_title(arm)} |"
    return "\n".join(["## What of the images is given back", "", head, "|---|---|--:|--:|", *rows, "", _HOW_TO_READ])
