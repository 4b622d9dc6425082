"""Write an adapter for a host down as code, from its plan, to be pasted and corrected (ours)."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import torch

from inpaint_distill.host.guard import untouched
from inpaint_distill.host.tree import Path, tensors

if TYPE_CHECKING:
    from torch import Tensor, nn

    from inpaint_distill.host.attention import AttentionSite
    from inpaint_distill.host.conventions import Convention
    from inpaint_distill.host.stage import Stage
    from inpaint_distill.plan import Plan

__all__ = ["adapter_skeleton", "output_paths"]

_MAX_NAMES = 4

_DECLARED = """\
from inpaint_distill import {imports}


class {title}Adapter(Adapter):
    name = "{name}"
    variants = (
        Variant(
            source="{source}",
            kind="{kind}",
            has={has},
            # It ran so; that it was meant so is for you to check: which argument is what, and `scale`, the range of
            # the pixels ("signed" is [-1, 1], "unit" [0, 1], "imagenet"). `outputs`: coarse first, the result last.
            convention=Convention({convention}),
            stages=({stages}),
            attention=({attention}),
        ),
    )
"""

_CODED = """\
from inpaint_distill import Adapter


class {title}Adapter(Adapter):
    name = "{name}"
    replayable = False  # delete this line where the arguments of the host's own call carry image and mask

    def matches(self, host):
        return type(host).__name__ == "{kind}"

    def outputs(self, host, image, hole):
        # image (B, 3, H, W) in [-1, 1], complete; hole (B, 1, H, W), 1 in the hole, which may be empty.
        # The host's own: forward{signature}
        restored = host(...)
        return (restored,)  # (B, 3, H, W) in [-1, 1]; coarse images before the result
"""

_USE = """
# distiller = inpaint_distill.attach(host, optimizer, adapter={title}Adapter())
# or, for all who install your package, in its pyproject.toml:
# [project.entry-points."inpaint_distill.adapters"]
# {name} = "your_package.your_module:{title}Adapter"
"""


def adapter_skeleton(
    host: nn.Module, plan: Plan | None = None, convention: Convention | None = None, outputs: tuple[Path, ...] = ((),)
) -> str:
    """Return the code of an adapter for a host; one whose calls are to be filled in where no convention is known.

    Args:
        host: The model.
        plan: What was found on it.
        convention: How it was called to find that.
        outputs: Where the restored images are in its output.
    """
    kind = type(host).__name__
    facts = {
        "title": kind,
        "kind": kind,
        "name": re.sub(r"(?<=[a-z0-9])(?=[A-Z])|_", "-", kind).lower(),
        "source": type(host).__module__.partition(".")[0],
    }
    if plan is None or convention is None:
        return (_CODED + _USE).format(**facts, signature=inspect.signature(host.forward))
    words = [_quoted("+".join(words)) for words in convention.arguments]
    if outputs != ((),):
        words.append(f"outputs={_quoted(outputs)}")
    stages = [_write_stage(stage) for stage in plan.stages]
    return (_DECLARED + _USE).format(
        **facts,
        has=_quoted(tuple(name for name, _ in host.named_children())[:_MAX_NAMES]),
        convention=", ".join(words),
        stages=_listed(stages),
        attention=_listed([_write_site(site) for site in plan.attention]),
        imports=", ".join(
            name
            for name, used in (
                ("Adapter", True),
                ("AttentionSite", any(site.call or site.index for site in plan.attention)),
                ("Convention", True),
                ("Stage", any(stage.startswith("Stage(") for stage in stages)),
                ("Variant", True),
            )
            if used
        ),
    )


def output_paths(host: nn.Module, convention: Convention, image: Tensor, mask: Tensor) -> tuple[Path, ...]:
    """Run a host and return where its output has images of the size of ``image``; masks of 0 and 1 are none."""
    with torch.no_grad(), untouched(host):
        output = convention.pack(image, mask).run(host)
    found = [(path, each) for path, each in tensors(output) if each.shape == image.shape]
    return tuple(path for path, each in found if not bool(((each == 0) | (each == 1)).all()))


def _quoted(value: object) -> str:
    return repr(value).replace("'", '"')


def _listed(items: list[str]) -> str:
    return "".join(f"\n                {item}," for item in items) + "\n            " if items else ""


def _write_stage(stage: Stage) -> str:
    values = {"call": (stage.call, 0), "select": (stage.select, ()), "clone": (stage.clone, False)}
    said = "".join(f", {key}={_quoted(value)}" for key, (value, default) in values.items() if value != default)
    return f"Stage(name={_quoted(stage.name)}{said})" if said else _quoted(stage.name)


def _write_site(site: AttentionSite) -> str:
    if not site.call and not site.index:
        return _quoted(site.name)
    return f'AttentionSite(name="{site.name}", call={site.call}, index={site.index}, kind="{site.kind}")'
