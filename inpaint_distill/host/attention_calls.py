"""Read one call of a softmax, of ``F.scaled_dot_product_attention`` or of ``nn.MultiheadAttention`` (ours)."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from inpaint_distill.host.attention import AttentionMap
from inpaint_distill.host.tree import tensors

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from inpaint_distill.host.attention import AttentionKind

__all__ = [
    "AttentionCall",
    "AttentionMode",
    "apart",
    "entering_of",
    "is_mha",
    "join_samples",
    "read_function",
    "read_mha",
]

_SOFTMAX = (F.softmax, torch.softmax, Tensor.softmax, torch.special.softmax)


@dataclass(kw_only=True)
class AttentionCall:
    """One call, its tensors as (lead, heads, tokens, ...); lead is the batch, times whatever the host folds into it.

    Attributes:
        kind: What was called.
        map: Queries and keys, or rows; heads = 1 where the call has no dimension for them.
        shape: Lead, heads, queries and keys.
        own: The host's own tensors: query and key, or rows. On these its gradient can be observed.
        entering: What a call of a module takes for queries, (B, N, C); ``None`` for a function's.
        versions: The tensors of the map, each with its version counter when it was seen.
        folded: The call has no dimension for heads: they may be in the lead, innermost.
        refusal: Why this is nothing that the taps can keep; empty otherwise.
    """

    kind: AttentionKind
    map: AttentionMap = field(default_factory=AttentionMap)
    shape: tuple[int, ...] = (0, 1, 0, 0)
    own: tuple[Tensor, ...] = ()
    entering: Tensor | None = None
    versions: list[tuple[Tensor, int]] = field(default_factory=list)
    folded: bool = False
    refusal: str = ""

    def remember(self, *, logits: bool) -> None:
        """Note the versions of what is kept, and let go of the rest."""
        if not logits:
            self.map.logits = None
        found = (self.map.query, self.map.key, self.map.rows, self.map.logits)
        self.versions = [(tensor, tensor._version) for tensor in found if tensor is not None]


class _Apart(threading.local):
    depth = 0


_apart = _Apart()


@contextmanager
def apart() -> Iterator[None]:
    """Show what is computed inside only to modes that begin inside: it is not the host's own attention."""
    _apart.depth += 1
    try:
        yield
    finally:
        _apart.depth -= 1


class AttentionMode(TorchFunctionMode):
    """While pushed, write down every attention that is computed, in a module or in a plain function.

    Args:
        logits: Also keep the input of a softmax.

    Attributes:
        calls: What was seen, in order.
        over: Nothing more is to be seen, wherever the mode may still be.
    """

    def __init__(self, *, logits: bool) -> None:
        super().__init__()
        self.logits = logits
        self.calls: list[AttentionCall] = []
        self.over = False
        self._pushed_at = _apart.depth

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function and write it down if it is an attention."""
        output = func(*args, **(kwargs or {}))
        sees = self._pushed_at == _apart.depth and not self.over
        call = read_function(func, args, kwargs or {}, output) if sees else None
        if call is not None:
            call.remember(logits=self.logits)
            self.calls.append(call)
        return output


def read_function(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> AttentionCall | None:
    """Read the call of a function; ``None`` for all but softmax and ``scaled_dot_product_attention``."""
    if func is F.scaled_dot_product_attention:
        return _read_sdpa(*args, **kwargs)
    if func in _SOFTMAX:
        return _read_softmax(output, *args, **kwargs)
    return None


def is_mha(module: nn.Module) -> bool:
    """Tell whether a module is an ``nn.MultiheadAttention`` that computes what that class does."""
    return isinstance(module, nn.MultiheadAttention) and type(module).forward is nn.MultiheadAttention.forward


def entering_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """Return a module's first tensor argument."""
    return next((tensor for _, tensor in tensors((*args, *kwargs.values()))), None)


def _read_sdpa(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> AttentionCall:
    if query.is_nested or type(attn_mask) not in (type(None), Tensor, nn.Parameter):
        return AttentionCall(kind="sdpa", refusal="a nested tensor, or a mask that is no plain tensor")
    if query.ndim not in (3, 4) or query.shape[:-2] != key.shape[:-2]:
        found = "grouped queries" if enable_gqa else f"queries {tuple(query.shape)} and keys {tuple(key.shape)}"
        return AttentionCall(kind="sdpa", refusal=f"{found}: not (B, heads, N, d)")
    own, folded = (query, key), query.ndim == 3
    bias = None
    if attn_mask is not None:
        bias = _additive(attn_mask, query.dtype)
        bias = bias[(None,) * (query.ndim - bias.ndim)]
    if is_causal:
        ones = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device)
        causal = _additive(ones.tril(), query.dtype)[(None,) * (query.ndim - 2)]
        bias = causal if bias is None else bias + causal
    if folded:
        query, key = query.unsqueeze(1), key.unsqueeze(1)
        bias = None if bias is None else bias.unsqueeze(1)
    found_map = AttentionMap(query=query, key=key, scale=query.shape[-1] ** -0.5 if scale is None else scale, bias=bias)
    return AttentionCall(kind="sdpa", map=found_map, shape=_shape(query, key), own=own, folded=folded)


def _shape(query: Tensor, key: Tensor) -> tuple[int, ...]:
    return (*query.shape[:3], key.shape[2])


def _read_softmax(output: Tensor, input: Tensor, dim: int | None = None, *_: Any, **__: Any) -> AttentionCall:
    axis = dim % input.ndim if isinstance(dim, int) and input.ndim in (3, 4) else 0
    if axis == 0:
        refusal = f"a softmax over dimension {dim} of {tuple(input.shape)}: not a map of queries and keys"
        return AttentionCall(kind="softmax", refusal=refusal)
    rows, logits = _rows(output, axis), _rows(input, axis)
    return AttentionCall(
        kind="softmax",
        map=AttentionMap(rows=rows, logits=logits, bias=_zeroed(logits) if axis == 1 else None),
        shape=tuple(rows.shape),
        own=(output,),
        folded=input.ndim == 3 or axis == 1,
    )


def _zeroed(logits: Tensor) -> Tensor:
    """Return -inf for the keys whose logits are exactly 0 at every query, (lead, heads, 1, Nk), and 0 for the others.

    DeepFill's patch attention takes hole keys out by a factor of 0, before the softmax and once more after it. What the
    softmax itself gives them never reaches the host.
    """
    hidden = (logits.detach() == 0).all(2, keepdim=True)
    return torch.zeros_like(hidden, dtype=logits.dtype).masked_fill(hidden, -torch.inf)


def _rows(tensor: Tensor, axis: int) -> Tensor:
    """Arrange (lead, heads, Nq, Nk), (lead, Nq, Nk) or (lead, Nk, h, w) as (lead, heads, Nq, Nk)."""
    if tensor.ndim == 4 and axis == 1:
        return tensor.flatten(2).transpose(1, 2).unsqueeze(1)
    tensor = tensor.movedim(axis, -1)
    return tensor.unsqueeze(1) if tensor.ndim == 3 else tensor


def read_mha(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> AttentionCall:
    """Project an ``nn.MultiheadAttention``'s arguments once more, as it does itself; gradients reach its weights.

    The host's own projections cannot be reached. Its gradient is observed on the arguments instead.
    """
    if query.is_nested or query.ndim != 3:
        return AttentionCall(kind="mha", refusal="an nn.MultiheadAttention without a batch dimension")
    if module.bias_k is not None or module.add_zero_attn:
        return AttentionCall(kind="mha", refusal="an nn.MultiheadAttention with add_bias_kv or add_zero_attn")
    if module.in_proj_weight is None:
        weights: Sequence[Any] = (module.q_proj_weight, module.k_proj_weight)
    else:
        weights = module.in_proj_weight.chunk(3)
    biases = (None, None) if module.in_proj_bias is None else module.in_proj_bias.chunk(3)

    def batch_first(tensor: Tensor) -> Tensor:
        return tensor if module.batch_first else tensor.transpose(0, 1)

    def project(tensor: Tensor, which: int) -> Tensor:
        return F.linear(tensor, weights[which], biases[which]).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)

    queries, keys = project(batch_first(query), 0), project(batch_first(key), 1)
    bias = None if key_padding_mask is None else _additive(key_padding_mask, queries.dtype, keep=False)[:, None, None]
    if attn_mask is not None:
        mask = _additive(attn_mask, queries.dtype, keep=False)
        mask = mask.unflatten(0, (-1, module.num_heads)) if mask.ndim == 3 else mask[None, None]
        bias = mask if bias is None else bias + mask
    found = AttentionMap(query=queries, key=keys, scale=queries.shape[-1] ** -0.5, bias=bias)
    return AttentionCall(
        kind="mha", map=found, shape=_shape(queries, keys), own=(query, key), entering=batch_first(query)
    )


def _additive(mask: Tensor, dtype: torch.dtype, *, keep: bool = True) -> Tensor:
    """Turn a boolean mask, True where a key counts (or, without ``keep``, where it does not), into 0 and -inf."""
    if mask.dtype != torch.bool:
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask if keep else mask, -torch.inf)


def join_samples(calls: list[AttentionCall], images: int | None) -> list[list[AttentionCall]]:
    """Group the calls of a module that computes its attention in a loop over the samples, as DeepFill's does.

    Args:
        calls: Every attention within one call of a module.
        images: Batch size of the feature that entered the module.

    Returns:
        One group for each attention, with a call for each sample, or a single call.
    """
    single = [call for call in calls if not call.refusal and call.shape[0] == 1]
    period, rest = divmod(len(single), images or 1)
    samples = [single[first::period] for first in range(period)] if period and not rest else []
    if any((call.shape, call.kind) != (group[0].shape, group[0].kind) for group in samples for call in group):
        samples = []
    first_of = {id(group[0]): group for group in samples}
    later = {id(call) for group in samples for call in group[1:]}
    return [first_of.get(id(call), [call]) for call in calls if id(call) not in later]
