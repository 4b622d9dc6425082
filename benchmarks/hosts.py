"""Attach, train three steps, detach, on public models: what trains, what is seen, and what is left behind.

    python benchmarks/hosts.py [--records FILE ...] [--only NAME ...] [--out FILE]

``records.py`` says what a host is here, and what a file of records holds. Each is trained twice from the same weights:
as if no adapter knew it, and with the adapter that does, if any. The loss is the mean absolute error of the restored
image; look-aheads come every second step, so that one is seen. Checked are: finite losses, a gradient at every tapped
stage, a look-ahead that is not given up, a copy after a step with gradients, and after ``detach`` the same class, keys,
attributes and number of hooks, and outputs equal bit for bit to those of a new host with the same weights.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from records import load_records, picture

import inpaint_distill
from inpaint_distill import Adapter, Config, LookaheadConfig, adapters
from inpaint_distill.errors import LookaheadWarning
from inpaint_distill.host.guard import copy_module
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

STEPS, LR = 3, 1e-4
HOOKS = [name for name in vars(torch.nn.Module()) if "hook" in name]


def footprint(host: nn.Module) -> dict[str, Any]:
    """Return what a distiller might leave on a host."""
    parts = dict(host.named_modules(remove_duplicate=False))
    hooks = [getattr(part, name, None) for part in parts.values() for name in HOOKS]
    return {
        "classes": {name: type(part) for name, part in parts.items()},
        "keys": list(host.state_dict()),
        "attributes": {name: sorted(vars(part)) for name, part in parts.items()},
        "hooks": sum(len(each) for each in hooks if hasattr(each, "__len__")),
    }


def outputs(record: dict[str, Any], host: nn.Module) -> list[Tensor]:
    """Run a host in evaluation, with the same random numbers every time."""
    torch.manual_seed(1)
    host.eval()
    with torch.no_grad():
        return [tensor.clone() for _, tensor in tensors(record["call"](host, *picture(record, 2, seed=9)))]


def train(record: dict[str, Any], adapter: Adapter) -> dict[str, Any]:
    """Train a host under an adapter and say what was seen."""
    build = record.get("build_small", record["build"])
    torch.manual_seed(0)
    host = build()
    host.train()
    first = {name: tensor.clone() for name, tensor in host.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in host.parameters() if p.requires_grad], LR)
    # A first forward fills what a host caches: it is no trace of ours.
    with torch.no_grad():
        record["call"](host, *picture(record, 2))
    host.load_state_dict(first)
    before = footprint(host)
    config = Config(warmup=0, lookahead=LookaheadConfig(every=2))
    distiller = inpaint_distill.attach(
        host, optimizer, adapter=adapter, config=config, inpainting_loss=record.get("loss")
    )
    found: dict[str, Any] = {"host": [], "distillation": [], "seconds": []}
    reached: dict[str, float] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(STEPS):
            started = time.perf_counter()
            taps = FeatureTaps(host, distiller.plan.stages) if distiller.plan else None
            if taps is not None:
                labels = [stage.label for stage in taps.stages]
                taps.begin(watch=lambda index, tensor, labels=labels: watch(reached, labels[index], tensor))
            image, hole = picture(record, 2, seed=step)
            loss = (record["select"](record["call"](host, image, hole)) - image).abs().mean()
            if taps is not None:
                taps.remove()
            added = distiller.loss(*record.get("given", lambda *both: both)(image, hole))
            optimizer.zero_grad()
            (loss + added).backward()
            optimizer.step()
            found["host"].append(float(loss.detach()))
            found["distillation"].append(float(added.detach()))
            found["seconds"].append(round(time.perf_counter() - started, 3))
    plan = distiller.plan
    found |= {
        "stages": [stage.label for stage in plan.stages],
        "reason": plan.reason,
        "dry_run": list(plan.dry_run_size),
        "attention": [site.label for site in plan.attention],
        "refused": sum(not each.usable for each in plan.candidates),
        "gradient": {label: reached.get(label, 0.0) for label in dict.fromkeys(s.label for s in plan.stages)},
        "look-ahead": not any(issubclass(each.category, LookaheadWarning) for each in caught),
        "finite": all(map(math.isfinite, found["host"] + found["distillation"])),
    }
    copy_module(host)
    found["detached"] = distiller.detach() is host and footprint(host) == before and is_clean(record, host, build)
    return found


def watch(reached: dict[str, float], label: str, tensor: Tensor) -> None:
    """Write down the norm of the gradient that arrives at a tensor of a stage."""
    tensor.register_hook(lambda gradient: reached.__setitem__(label, reached.get(label, 0.0) + float(gradient.norm())))


def is_clean(record: dict[str, Any], host: nn.Module, build: Any) -> bool:
    """Tell whether a detached host puts out what a new one with its weights does, bit for bit."""
    torch.manual_seed(0)
    fresh = build()
    fresh.load_state_dict(host.state_dict())
    pairs = zip(outputs(record, host), outputs(record, fresh), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def measure(record: dict[str, Any]) -> dict[str, Any]:
    """Train a host without and with an adapter."""
    adapter = adapters.find(record["build"]())
    found: dict[str, Any] = {"source": record["source"], "group": record["group"], "image_size": record["size"]}
    found["adapter"] = adapter.name if adapter else None
    for part, each in (("alone", Adapter()), ("adapted", adapter)):
        if each is not None:
            try:
                found[part] = train(record, each)
            except Exception as error:  # whatever happens on a foreign model belongs into the table
                found[part] = {"error": f"{type(error).__name__}: {error}"}
            gc.collect()
    return found


def is_right(part: dict[str, Any] | None) -> bool:
    """Tell whether nothing was wrong with one training."""
    if part is None or "error" in part:
        return False
    return part["finite"] and part["look-ahead"] and part["detached"] and all(part["gradient"].values())


def cell(part: dict[str, Any] | None) -> str:
    """Write one training as a cell of the table."""
    if part is None:
        return "-"
    if "error" in part:
        return part["error"].partition(":")[0]
    faults = [
        *(["not finite"] if not part["finite"] else []),
        *(["no look-ahead"] if not part["look-ahead"] else []),
        *([f"no gradient at {label}" for label, norm in part["gradient"].items() if not norm]),
        *(["not clean"] if not part["detached"] else []),
    ]
    return ", ".join(faults) or f"{part['host'][0]:.3f} -> {part['host'][-1]:.3f}, {part['distillation'][-1]:.1e}"


def main() -> None:
    """Train every record; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", nargs="*", type=Path, default=[], help="files that define RECORDS")
    parser.add_argument("--only", nargs="*", help="names of records")
    parser.add_argument("--out", type=Path, default=Path("runs/hosts.json"))
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, Any]] = {}
    if parsed.only and parsed.out.exists():  # the others' stay
        results = json.loads(parsed.out.read_text())["hosts"]
    for name, record in load_records(parsed.records).items():
        if parsed.only and name not in parsed.only:
            continue
        results[name] = measure(record)
        adapted, alone = results[name].get("adapted"), results[name]["alone"]
        print(f"{name:32} alone: {cell(alone):32} {results[name]['adapter'] or 'none'}: {cell(adapted)}", flush=True)
        versions = {"python": platform.python_version(), "torch": torch.__version__}
        parsed.out.parent.mkdir(parents=True, exist_ok=True)
        parsed.out.write_text(json.dumps({"versions": versions, "hosts": results}, indent=1))
    for part in ("alone", "adapted"):
        tried = [each[part] for each in results.values() if part in each]
        print(f"{part}: {sum(map(is_right, tried))} of {len(tried)} right")


if __name__ == "__main__":
    main()
