"""What discovery finds on public models, against the stages that their authors mean.

    python benchmarks/discovery.py [--records FILE ...] [--only NAME ...] [--out FILE]

``records.py`` says what a host is here, and what a file of records holds.

A stage counts as found where the tensor that discovery picked equals the author's. The lowest resolution is counted
apart: what comes after dilated or residual blocks is as good a bottleneck as what arrives there first.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from records import load_records, picture

from inpaint_distill.host.attention_discovery import find_attention
from inpaint_distill.host.call import HostCall
from inpaint_distill.host.discovery import choose_encoder, find_encoders
from inpaint_distill.host.dry_run import trace_call, without_training_only
from inpaint_distill.host.guard import untouched
from inpaint_distill.host.named_stages import named_stages
from inpaint_distill.host.stage import Stage
from inpaint_distill.host.taps import FeatureTaps
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from torch import Tensor, nn


def measure(record: dict[str, Any]) -> dict[str, Any]:
    """Build a host, run discovery on its own call, and compare what was picked with the record."""
    torch.manual_seed(0)
    host = record["build"]()
    host.train()
    size, batch = record["size"], record.get("batch", 1)
    image, hole = picture(record, batch)
    calls: list[HostCall] = []

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls.append(HostCall.of(args, kwargs))

    handle = host.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.no_grad(), untouched(host):
        record["call"](host, image, hole)
    handle.remove()
    started = time.perf_counter()
    trace = without_training_only(host, trace_call(host, calls[0]))
    encoders = find_encoders(trace)
    chosen, _ = choose_encoder(encoders)
    runs = [encoder.stages for encoder in encoders]
    candidates = find_attention(host, trace.run, trace.image_size)
    seconds = time.perf_counter() - started

    if "adapter" in record:
        stages = record["adapter"].stages(host)
        gold = {"named by its adapter": resolve(trace, stages)}
        wanted = ["named by its adapter"]
        # What an adapter names are a few of those that are right, and nothing where it leaves them to discovery.
        attention = [item if isinstance(item, str) else item.name for item in record["adapter"].attention(host) or ()]
    else:
        gold = {name: [to_stage(item) for item in items] for name, items in record["encoders"].items()}
        wanted, attention = record["wanted"], record["attention"]
    kept = outputs_of(host, calls[0], runs, [stage for name in wanted for stage in gold[name]])
    found = [compare(kept, run, gold[name]) | {"encoder": name} for name in wanted for run in runs]
    best = max(found, key=lambda each: (each["above"], each["lowest"]))
    own = max(
        (compare(kept, runs[chosen], gold[name]) | {"encoder": name} for name in wanted),
        key=lambda each: (each["above"], each["lowest"]),
    )
    usable = [each.site for each in candidates if each.usable]
    return {
        "source": record["source"],
        "group": record["group"],
        "image_size": size,
        "dry_run": list(trace.image_size),
        "seconds": round(seconds, 2),
        "chosen": own,
        "best": best,
        "encoders": [[f"{stage.label} (stride {stage.stride})" for stage in run] for run in runs],
        "encoder": chosen,
        "attention": {
            "named": attention,
            "tapped": [site.label for site in usable],
            "right": sorted({site.name for site in usable if inside(site.name, attention)}),
            "wrong": sorted({site.name for site in usable if not inside(site.name, attention)})
            if "adapter" not in record
            else [],
            "refused": {each.site.label: each.reason for each in candidates if not each.usable},
        },
    }


def inside(name: str, modules: list[str]) -> bool:
    """Tell whether a name is one of some modules, within one of them, or around one."""
    return any(f"{name}.".startswith(f"{each}.") or f"{each}.".startswith(f"{name}.") for each in modules)


def resolve(trace: Any, names: Any) -> list[Stage]:
    """Resolve an adapter's names as a plan does."""
    return list(named_stages(trace, names))


def to_stage(item: Any) -> Stage:
    """Read a stage of a record."""
    return Stage(name=item) if isinstance(item, str) else Stage(name=item[0], select=item[1])


def outputs_of(host: nn.Module, call: HostCall, encoders: list[tuple[Stage, ...]], gold: list[Stage]) -> Any:
    """Run the host once; return by stage what was picked, and for the record's stages what every call put out."""
    picked = [stage for encoder in encoders for stage in encoder]
    modules = dict(host.named_modules(remove_duplicate=False))
    seen: dict[Stage, list[Tensor]] = {stage: [] for stage in gold}
    taps = FeatureTaps(host, picked)
    handles = [
        modules[stage.name].register_forward_hook(
            lambda module, args, output, stage=stage: seen[stage].append(read(stage, output))
        )
        for stage in seen
    ]
    taps.begin()
    with torch.no_grad(), untouched(host):
        call.run(host)
    for handle in handles:
        handle.remove()
    found = {stage: [feature] for stage, feature in zip(picked, taps.take(), strict=True)}
    taps.remove()
    return found, seen


def read(stage: Stage, output: Any) -> Tensor:
    """Copy a record's feature; the only tensor of a nested output where no path is given."""
    if not stage.select and not isinstance(output, torch.Tensor):
        return next(tensor for _, tensor in tensors(output)).clone()
    return stage.read(output).clone()


def compare(kept: Any, run: tuple[Stage, ...], gold: list[Stage]) -> dict[str, Any]:
    """Count the record's stages that a run picked, above the lowest and at it."""
    found, seen = kept
    hit = [
        any(
            one.shape == other.shape and torch.equal(one, other)
            for stage in run
            for one in found[stage]
            for other in seen[wanted]
        )
        for wanted in gold
    ]
    return {
        "above": sum(hit[:-1]),
        "of": len(gold) - 1,
        "lowest": hit[-1],
        "picked": len(run),
        "missed": [stage.label for stage, right in zip(gold, hit, strict=True) if not right],
    }


def summary(results: dict[str, dict[str, Any]]) -> dict[str, int]:
    """Count over the hosts of one group that ran."""
    ran = [each for each in results.values() if "error" not in each]
    total = {"hosts": len(results), "ran": len(ran)}
    for which in ("chosen", "best"):
        total[f"{which}: right above the lowest"] = sum(each[which]["above"] == each[which]["of"] for each in ran)
        total[f"{which}: stages above the lowest"] = sum(each[which]["above"] for each in ran)
        total[f"{which}: lowest"] = sum(each[which]["lowest"] for each in ran)
    total["stages above the lowest"] = sum(each["chosen"]["of"] for each in ran)
    total["attention: hosts with some"] = sum(bool(each["attention"]["named"]) for each in ran)
    total["attention: found there"] = sum(
        bool(each["attention"]["right"]) for each in ran if each["attention"]["named"]
    )
    total["attention: hosts with a wrong one"] = sum(bool(each["attention"]["wrong"]) for each in ran)
    return total


def line(name: str, result: dict[str, Any]) -> str:
    """Write one host as a row of the table."""
    if "error" in result:
        return f"{name:32} {result['error'].splitlines()[0]}"
    chosen, best, attention = result["chosen"], result["best"], result["attention"]
    seen = f"{len(attention['right'])} of {len(attention['named'])}" if attention["named"] else "none"
    wrong = f", {len(attention['wrong'])} wrong" if attention["wrong"] else ""
    return (
        f"{name:32} {chosen['above']}/{chosen['of']} + {'yes' if chosen['lowest'] else 'no ':3} "
        f"best {best['above']}/{best['of']} + {'yes' if best['lowest'] else 'no ':3} "
        f"run {result['encoder'] + 1} of {len(result['encoders'])}  attention {seen + wrong:16} "
        f"{result['seconds']:6.1f} s  {', '.join(chosen['missed'])}"
    )


def main() -> None:
    """Measure every record; print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", nargs="*", type=Path, default=[], help="files that define RECORDS")
    parser.add_argument("--only", nargs="*", help="names of records")
    parser.add_argument("--out", type=Path, default=Path("runs/discovery.json"))
    parsed = parser.parse_args()
    torch.set_num_threads(1)
    records = load_records(parsed.records)
    results: dict[str, dict[str, Any]] = {}
    for name, record in records.items():
        if parsed.only and name not in parsed.only:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's
            try:
                results[name] = measure(record)
            except Exception as error:  # whatever a foreign model raises belongs into the table
                error_text = f"{type(error).__name__}: {error}"
                results[name] = {"source": record["source"], "group": record["group"], "error": error_text}
        print(line(name, results[name]), flush=True)
    groups = dict.fromkeys(each["group"] for each in results.values())
    total = {
        group: summary({name: each for name, each in results.items() if each["group"] == group}) for group in groups
    }
    for group, counts in total.items():
        print(f"\n{group}", *(f"  {key}: {value}" for key, value in counts.items()), sep="\n")
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    parsed.out.parent.mkdir(parents=True, exist_ok=True)
    parsed.out.write_text(json.dumps({"versions": versions, "summary": total, "hosts": results}, indent=1))


if __name__ == "__main__":
    main()
