"""The command line: ``inpaint-distill boost``, ``inpaint-distill inspect`` and ``inpaint-distill plan``."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inpaint_distill.config import from_dict, load_yaml
from inpaint_distill.errors import ConfigError, InpaintDistillError, PlanError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

__all__ = ["main"]

_DESCRIPTION = {
    "boost": "Train a host alone and with distillation, paired, and report whether it gained.",
    "inspect": "Look into the trained hosts of a study: does the hole show, have they learned colours?",
    "plan": "Show what would be tapped on a host, without touching it, and write an adapter for it.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; those of the process by default.

    Returns:
        Exit status: 0, 2 after an error that the user can mend, 130 after Ctrl-C.
    """
    parsed = _parser().parse_args(arguments)
    try:
        return int(parsed.run(parsed))
    except InpaintDistillError as error:
        print(f"inpaint-distill {parsed.command}: {type(error).__name__}\n{error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="inpaint-distill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    _add_boost(commands.add_parser("boost", help=_DESCRIPTION["boost"], description=_DESCRIPTION["boost"]))
    _add_inspect(commands.add_parser("inspect", help=_DESCRIPTION["inspect"], description=_DESCRIPTION["inspect"]))
    _add_plan(commands.add_parser("plan", help=_DESCRIPTION["plan"], description=_DESCRIPTION["plan"]))
    return parser


def _add_boost(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_boost)
    parser.add_argument("--out", type=Path, default=Path("boost"), help="folder of the results (default: boost)")
    parser.add_argument("--resume", action="store_true", help="go on with the study in that folder")
    parser.add_argument("--config", type=Path, help="settings as YAML, or the result.json of another study")
    settings = parser.add_argument_group("settings", "they override --config; every other setting is set there")
    unset = argparse.SUPPRESS
    settings.add_argument("--data", default=unset, help="folder of images (default: synthetic scenes)")
    settings.add_argument("--masks", default=unset, help="folder of masks, white = hole (default: free-form masks)")
    settings.add_argument("--host", default=unset, help="family of the host (default: partial-conv, the quickest)")
    settings.add_argument("--start", default=unset, metavar="FILE", help="weights of a trained host to go on from")
    settings.add_argument("--size", type=int, default=unset, help="side of the training crops in pixels")
    settings.add_argument("--steps", type=int, default=unset, help="optimizer steps of a run")
    settings.add_argument("--batch", type=int, default=unset, help="images per step")
    settings.add_argument("--seeds", type=int, default=unset, metavar="N", help="number of paired runs: seeds 0 to N-1")
    settings.add_argument("--train-images", type=int, default=unset, metavar="N", help="train on at most N images")
    settings.add_argument("--jobs", type=int, default=unset, help="runs at a time (default: the number of cores)")
    settings.add_argument("--device", choices=("cpu", "cuda"), default=unset)
    settings.add_argument(
        "--ablate",
        nargs="*",
        dest="variants",
        default=unset,
        metavar="NAME",
        help="train the parts of the method one by one and together, or those named (docs/method.md lists them)",
    )
    settings.add_argument(
        "--val-only",
        action="store_false",
        dest="score_test",
        default=unset,
        help="keep off the test images: while settings are being chosen, score the validation images alone",
    )


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_inspect)
    parser.add_argument("study", type=Path, help="folder of a study made by inpaint-distill boost")
    parser.add_argument("--out", type=Path, help="folder of the figures and the table (default: STUDY/inspect)")
    parser.add_argument("--arm", default="distilled", help="what is compared with the host alone (default: distilled)")
    parser.add_argument("--image", type=int, metavar="N", help="validation image to draw (default: the thickest hole)")
    parser.add_argument(
        "--pixel",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="hole pixel whose attention is drawn (default: the one deepest in the hole)",
    )
    parser.add_argument("--images", type=int, default=64, metavar="N", help="images to measure (default: 64)")


def _add_plan(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(run=_plan)
    parser.add_argument("host", help="a family of hosts (gated-conv), or package.module:Class")
    parser.add_argument("--kwargs", default="{}", metavar="JSON", help="arguments of the class or the family")
    parser.add_argument("--size", type=int, default=64, help="side of the image of the dry run (default: 64)")
    parser.add_argument("--stages", nargs="+", metavar="NAME", help="names or globs, shallow to deep")
    parser.add_argument("--attention", nargs="+", metavar="NAME", help="names or globs of attention layers")


def _boost(parsed: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from inpaint_distill.training.ablation import VARIANTS
        from inpaint_distill.training.boost import boost
        from inpaint_distill.training.settings import BoostSettings
        from inpaint_distill.training.tables import print_table
    except ModuleNotFoundError as error:
        raise ConfigError("boost", f"no package {error.name}", 'pip install "inpaint-distill[train]"') from None

    values = _file_settings(parsed.config) if parsed.config else {}
    own = ("run", "command", "out", "resume", "config")
    values |= {key: value for key, value in vars(parsed).items() if key not in own}
    if isinstance(values.get("seeds"), int):
        values["seeds"] = list(range(values["seeds"]))
    if values.get("variants") == []:
        values["variants"] = list(VARIANTS)
    settings = from_dict(BoostSettings, values)
    console = Console()
    try:
        result = boost(settings, parsed.out, console, resume=parsed.resume)
    except KeyboardInterrupt:
        words = [word for word in sys.argv[1:] if word != "--resume"]
        console.print(
            f"\nStopped; nothing is lost. Go on with: inpaint-distill {' '.join(words)} --resume", markup=False
        )
        return 130
    print_table(result, console=console)
    for warning in result["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False)
    console.print(f"report: {parsed.out / 'report.html'}", markup=False)
    return 0


def _inspect(parsed: argparse.Namespace) -> int:
    try:
        from rich.console import Console

        from inpaint_distill.training.inspect import inspect_study
    except ModuleNotFoundError as error:
        raise ConfigError("inspect", f"no package {error.name}", 'pip install "inpaint-distill[train]"') from None

    inspect_study(
        parsed.study,
        parsed.out or parsed.study / "inspect",
        arm=parsed.arm,
        images=parsed.images,
        image=parsed.image,
        pixel=tuple(parsed.pixel) if parsed.pixel else None,
        console=Console(),
    )
    return 0


def _file_settings(path: Path) -> dict[str, Any]:
    """Read settings; of a ``result.json``, those it was made with."""
    values = load_yaml(path)
    return values["settings"] if "schema" in values and "settings" in values else values


def _plan(parsed: argparse.Namespace) -> int:
    import torch

    from inpaint_distill import adapters
    from inpaint_distill.host.conventions import find_convention
    from inpaint_distill.plan import plan
    from inpaint_distill.skeleton import adapter_skeleton, output_paths

    host = _build(parsed.host, parsed.kwargs)
    generator = torch.Generator().manual_seed(0)
    adapter = adapters.find(host)
    channels = 4 if adapter is not None and adapter.takes_latents(host) else 3
    image = torch.rand(2, channels, parsed.size, parsed.size, generator=generator) * 2 - 1
    mask = torch.zeros(2, 1, parsed.size, parsed.size)
    quarter = parsed.size // 4
    mask[:, :, quarter : 3 * quarter, quarter : 3 * quarter] = 1
    if adapter is not None:
        print(plan(host, image, mask, stages=parsed.stages, attention=parsed.attention))
        return 0
    try:
        convention = find_convention(host, image, mask)
    except PlanError as error:
        print(f"{error}\n\nAn adapter to be filled in:\n\n{adapter_skeleton(host)}")
        return 2
    found = plan(host, image, mask, stages=parsed.stages, attention=parsed.attention)
    paths = output_paths(host, convention, image, mask)
    print(f"{found}\n\nAn adapter that says the same:\n\n{adapter_skeleton(host, found, convention, paths)}")
    return 0


def _build(name: str, kwargs: str) -> nn.Module:
    """Build a host from a family's name or from ``package.module:Class``."""
    from inpaint_distill import adapters

    try:
        arguments = json.loads(kwargs)
    except json.JSONDecodeError as error:
        raise ConfigError(f"--kwargs {kwargs}", f"{error}", "give a JSON object, such as '{\"width\": 16}'") from None
    module, colon, attribute = name.partition(":")
    if not colon:
        host: nn.Module | None = adapters.get(name).build(**arguments)
        if host is None:
            raise ConfigError(f"to build {name!r}", "its code has to be cloned", "give package.module:Class")
        return host
    sys.path.insert(0, "")  # a class in a file beside the user
    try:
        built: nn.Module = getattr(importlib.import_module(module), attribute)(**arguments)
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"to build {name}", f"{type(error).__name__}: {error}", "check the name and --kwargs"
        ) from None
    finally:
        sys.path.remove("")
    return built


if __name__ == "__main__":
    sys.exit(main())
