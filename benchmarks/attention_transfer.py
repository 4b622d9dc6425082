"""Memory, time and exactness of attention transfer beside the straightforward ways to write it.

    python benchmarks/attention_transfer.py [--out FILE] [--tokens 4096] [--chunk 262144]

One image, a quarter of the rows in the hole. ``dense`` computes all N x N rows of both networks, ``dense, hole rows``
only those in the hole; both are plain torch. Saved for backward: every storage once, the queries and keys included.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.losses.attention_distance import attention_distance

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

HEADS, DEPTH, HOLE = 4, 32, 0.25
DISTANCES = ("l2", "l1", "kl")


def scene(tokens: int) -> tuple[list[Tensor], Tensor]:
    """Return the student's query and key, the teacher's, and a square hole."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(1, HEADS, tokens, DEPTH, generator=generator) for _ in range(4)]
    side = math.isqrt(tokens)
    edge = round(side * math.sqrt(HOLE))
    hole = torch.zeros(1, side, side, dtype=torch.bool)
    start = (side - edge) // 2
    hole[:, start : start + edge, start : start + edge] = True
    return tensors, hole.flatten(1)


def dense(query: Tensor, key: Tensor, other_query: Tensor, other_key: Tensor, distance: str) -> Tensor:
    """Compute the distance of each row the straightforward way."""
    normalise = torch.log_softmax if distance == "kl" else torch.softmax
    own = normalise(query @ key.transpose(-1, -2) * DEPTH**-0.5, -1)
    with torch.no_grad():
        other = normalise(other_query @ other_key.transpose(-1, -2) * DEPTH**-0.5, -1)
    if distance == "kl":
        return torch.nn.functional.kl_div(own, other, reduction="none", log_target=True).sum(-1).mean(1)
    return ((own - other).square() if distance == "l2" else (own - other).abs()).sum(-1).mean(1)


def dense_all(tensors: list[Tensor], hole: Tensor, distance: str) -> Tensor:
    """Compute every row, then take the hole's."""
    return dense(*tensors, distance)[hole].mean()


def dense_hole(tensors: list[Tensor], hole: Tensor, distance: str) -> Tensor:
    """Compute the hole's rows."""
    query, key, other_query, other_key = tensors
    rows = hole[0].nonzero()[:, 0]
    return dense(query[:, :, rows], key, other_query[:, :, rows], other_key, distance).mean()


def ours(chunk: int | None) -> Callable[[list[Tensor], Tensor, str], Tensor]:
    """Return the package's own."""

    def run(tensors: list[Tensor], hole: Tensor, distance: str) -> Tensor:
        student, teacher = (
            AttentionMap(query=query, key=key, scale=DEPTH**-0.5) for query, key in (tensors[:2], tensors[2:])
        )
        return attention_distance(student, teacher, hole, distance=distance, chunk=chunk)

    return run


def leaves(tensors: list[Tensor]) -> list[Tensor]:
    """Let the student's query and key require gradients."""
    return [each.detach().clone().requires_grad_() for each in tensors[:2]] + tensors[2:]


def saved_bytes(run: Callable[..., Tensor], tensors: list[Tensor], hole: Tensor, distance: str) -> int:
    """Count what the graph keeps, each storage once."""
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        value = run(leaves(tensors), hole, distance)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    del value
    return total


def times(runs: dict[str, Callable[..., Tensor]], tensors: list[Tensor], hole: Tensor, repeats: int, distance: str):
    """Time forward and backward of each, in turn and in both orders; return the medians in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(repeats + 1):
        for name in list(runs)[:: 1 if repeat % 2 else -1]:
            given = leaves(tensors)
            start = time.perf_counter()
            runs[name](given, hole, distance).backward()
            if repeat:  # the first round warms up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(each) for name, each in seconds.items()}


def errors(run: Callable[..., Tensor], tensors: list[Tensor], hole: Tensor, distance: str) -> dict[str, float]:
    """Compare value and gradients with the float64 reference, relative to their norm."""
    found, wanted = [], []
    for function, cast, into in ((run, torch.float32, found), (dense_hole, torch.float64, wanted)):
        given = leaves([each.to(cast) for each in tensors])
        value = function(given, hole, distance)
        into.extend([value.detach(), *torch.autograd.grad(value, given[:2])])
    names = ("value", "query", "key")
    return {name: float((a.double() - b).norm() / b.norm()) for name, a, b in zip(names, found, wanted, strict=True)}


def main() -> None:
    """Print the table; write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--chunk", type=int)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--distances", nargs="+", default=DISTANCES, choices=DISTANCES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tensors, hole = scene(args.tokens)
    runs = {"dense": dense_all, "dense, hole rows": dense_hole, "ours": ours(args.chunk)}
    rows = []
    print(f"N = {args.tokens}, {HEADS} heads, d = {DEPTH}, {int(hole.sum())} hole rows, 1 thread, float32")
    print(f"{'':4} {'':17} {'saved MiB':>10} {'seconds':>8} {'value':>9} {'dquery':>9} {'dkey':>9}   (relative error)")
    for distance in args.distances:
        timed = {name: runs[name] for name in ("dense, hole rows", "ours")}
        seconds = times(timed, tensors, hole, args.repeats, distance)
        seconds |= times({"dense": dense_all}, tensors, hole, 1, distance)
        for name, run in runs.items():
            row = {"distance": distance, "what": name, "saved_bytes": saved_bytes(run, tensors, hole, distance)}
            row |= {"seconds": seconds[name], "error": errors(run, tensors, hole, distance)}
            rows.append(row)
            error = " ".join(f"{each:9.1e}" for each in row["error"].values())
            print(f"{distance:4} {name:17} {row['saved_bytes'] / 2**20:10.1f} {row['seconds']:8.3f} {error}")
    if args.out:
        settings = {"tokens": args.tokens, "heads": HEADS, "depth": DEPTH, "hole": HOLE, "torch": torch.__version__}
        args.out.write_text(json.dumps({"settings": settings, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
