"""Where the encoders of diffusers end a level."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

__all__ = ["last_blocks", "last_self_attention"]


def last_blocks(host: nn.Module, name: str) -> list[str]:
    """Return the last module of each level before it goes down: an attention where the level has any.

    What a level itself puts out is already at the next resolution.

    Args:
        host: A network.
        name: Where its levels are.
    """
    ends = []
    for index, level in host.get_submodule(name).named_children():
        kind = "attentions" if level._modules.get("attentions") is not None else "resnets"
        ends.append(f"{name}.{index}.{kind}.{len(list(level.get_submodule(kind).children())) - 1}")
    return ends


def last_self_attention(host: nn.Module, name: str) -> list[str]:
    """Return the last self-attention of each level that has any; ``attn2`` looks at the text.

    Args:
        host: A network.
        name: Where its levels are.
    """
    depth = name.count(".") + 1
    names = [each for each, _ in host.named_modules() if each.startswith(f"{name}.") and each.endswith(".attn1")]
    return list({each.split(".")[depth]: each for each in names}.values())
