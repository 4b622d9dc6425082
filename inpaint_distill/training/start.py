"""Weights of a person's own that a study starts from: whatever file a training loop has left."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.modules.utils import consume_prefix_in_state_dict_if_present

from inpaint_distill.completed import load_host
from inpaint_distill.errors import StateError
from inpaint_distill.state import is_ours

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["load_weights"]

_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and of torch.compile
_SHOWN = 3  # names in a message


def load_weights(host: nn.Module, path: Path) -> None:
    """Load a trained host's weights: a file of ``save_host``, a safetensors file, or one of ``torch.save``.

    Such a file may hold the weights themselves or several entries, among them the weights (``{"generator": ...,
    "optimizer": ...}``): the entry that fits the host is taken. Nothing in the file is executed.

    Args:
        host: The model as its family builds it.
        path: The file.

    Raises:
        StateError: It cannot be read, or nothing in it fits the host.
    """
    if is_ours(path):
        load_host(host, path)
        return
    asked = f"a trained host in {path}"
    found = dict(_state_dicts(_read(path, asked)))
    own = host.state_dict()
    misfits = {name: _misfits(own, weights) for name, weights in found.items()}
    fitting = [name for name, wrong in misfits.items() if not wrong]
    if len(fitting) > 1:
        fix = "save the one that is meant by itself: torch.save(host.state_dict(), path)"
        raise StateError(asked, f"several that fit: {', '.join(fitting)}", fix)
    if fitting:
        host.load_state_dict(found[fitting[0]])
        return
    fix = "give the weights of this host, with the host_options that it was trained with"
    if not found:
        raise StateError(asked, "no weights: no dictionary of tensors, by name", fix)
    # Told of the entry that comes closest.
    name, wrong = min(misfits.items(), key=lambda entry: len(entry[1]))
    more = f", and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else ""
    raise StateError(asked, f"{name or 'weights'} of another host: {', '.join(wrong[:_SHOWN])}{more}", fix)


def _read(path: Path, asked: str) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise StateError(asked, f"{error}", "give the path of an existing file") from None
    except Exception as error:  # whatever the decoders raise for what is not theirs
        named = re.search(r"GLOBAL ([\w.]+)", str(error))  # torch names the class that it will not make
        found = f"{named[1]} in it, whose code would have to run" if named else f"no weights ({type(error).__name__})"
        fix = "save the weights by themselves: torch.save(host.state_dict(), path)"
        raise StateError(asked, found, fix) from None


def _state_dicts(content: Any, name: str = "") -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Find the dictionaries of tensors in a file, the file itself or entries of it, with the names of entries."""
    if not isinstance(content, dict):
        return
    tensors = {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)}
    if tensors:
        for prefix in _PREFIXES:
            consume_prefix_in_state_dict_if_present(tensors, prefix)
        yield name, tensors
    for key, value in content.items():
        yield from _state_dicts(value, f"{name}.{key}" if name else str(key))


def _misfits(own: dict[str, Tensor], weights: dict[str, Tensor]) -> list[str]:
    """Say what keeps weights from being a host's."""
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in weights and weights[name].shape != tensor.shape
    ]
    return [
        *(f"{name} is missing" for name in own if name not in weights),
        *shapes,
        *(f"{name} is unknown" for name in weights if name not in own),
    ]
