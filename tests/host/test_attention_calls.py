"""What one call of an attention function shows: its rows, computed here once more and densely, and its shape."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from inpaint_distill.host.attention_calls import (
    AttentionCall,
    AttentionMode,
    apart,
    entering_of,
    is_mha,
    join_samples,
    read_function,
    read_mha,
)


def rand(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def rows_of(call):
    logits = call.map.scale * call.map.query @ call.map.key.mT
    return (logits if call.map.bias is None else logits + call.map.bias).softmax(-1)


def read(function, *args, **kwargs):
    return read_function(function, args, kwargs, function(*args, **kwargs))


QUERY, KEY, VALUE = rand(2, 3, 4, 8), rand(2, 3, 5, 8), rand(2, 3, 5, 6)
SEEN = torch.tensor([[1, 1, 0, 1, 1], [1, 1, 1, 1, 0], [0, 1, 1, 1, 1], [1, 0, 0, 1, 0]]).bool()

SDPA = {
    "plain": {},
    "scale": {"scale": 0.25},
    "no scale": {"scale": 0.0},
    "causal": {"is_causal": True},
    "boolean mask of two dimensions": {"attn_mask": SEEN},
    "boolean mask of every head": {"attn_mask": SEEN.expand(2, 3, 4, 5)},
    "bias of every head": {"attn_mask": rand(3, 4, 5)},
    "bias of a sample": {"attn_mask": rand(2, 1, 4, 5)},
}


@pytest.mark.parametrize("name", SDPA)
@pytest.mark.parametrize("folded", [False, True], ids=["heads", "folded"])
def test_the_fused_function_is_read_as_the_rows_that_it_multiplies_the_values_with(name, folded):
    query, key, value = QUERY, KEY, VALUE
    options = dict(SDPA[name])
    if folded:
        query, key, value = (each[:, 0] for each in (QUERY, KEY, VALUE))
        mask = options.get("attn_mask")
        if mask is not None and mask.ndim > 2:
            options["attn_mask"] = mask[..., :1, :, :].expand(2, 1, 4, 5)[:, 0]
    expected = F.scaled_dot_product_attention(query, key, value, **options)
    call = read(F.scaled_dot_product_attention, query, key, value, **options)
    assert call.kind == "sdpa"
    assert not call.refusal
    assert call.folded is folded
    assert call.shape == ((2, 1, 4, 5) if folded else (2, 3, 4, 5))
    assert call.own[0] is query
    assert call.own[1] is key
    seen = rows_of(call) @ (value.unsqueeze(1) if folded else value)
    torch.testing.assert_close(seen, expected.unsqueeze(1) if folded else expected)


def test_a_mask_and_a_causal_order_hold_together():
    # torch refuses both at once, while its own modules hand on the flag beside the mask.
    call = read_function(F.scaled_dot_product_attention, (QUERY, KEY, VALUE, SEEN, 0.0, True), {}, None)
    visible = SEEN & torch.ones(4, 5).tril().bool()
    assert torch.equal(rows_of(call)[0, 0] > 0, visible)


def test_dropout_is_left_out_of_what_is_read():
    call = read(F.scaled_dot_product_attention, QUERY, KEY, VALUE, dropout_p=0.5)
    torch.testing.assert_close(rows_of(call), (QUERY @ KEY.mT / 8**0.5).softmax(-1))


def test_a_bias_in_half_precision_stays_so():
    call = read_function(F.scaled_dot_product_attention, (QUERY.half(), KEY.half(), VALUE.half(), SEEN), {}, None)
    assert call.map.bias.dtype == torch.float16
    assert call.map.bias.shape == (1, 1, 4, 5)


SOFTMAX = {
    "heads": (rand(2, 3, 4, 5), -1, lambda rows: rows, False),
    "heads, by position": (rand(2, 3, 4, 5), 3, lambda rows: rows, False),
    "keys before queries": (rand(2, 3, 5, 4), 2, lambda rows: rows.mT, False),
    "keys before queries, from the end": (rand(2, 3, 5, 4), -2, lambda rows: rows.mT, False),
    "folded": (rand(6, 4, 5), 2, lambda rows: rows.unsqueeze(1), True),
    "folded, keys first": (rand(6, 5, 4), 1, lambda rows: rows.mT.unsqueeze(1), True),
    "keys as channels of a map": (rand(2, 5, 2, 3), 1, lambda rows: rows.flatten(2).mT.unsqueeze(1), True),
    "keys as channels of a map, from the end": (rand(2, 5, 2, 3), -3, lambda rows: rows.flatten(2).mT[:, None], True),
}


@pytest.mark.parametrize("name", SOFTMAX)
def test_a_softmax_is_read_as_rows_of_queries_wherever_its_keys_are(name):
    logits, dim, arrange, folded = SOFTMAX[name]
    call = read(F.softmax, logits, dim)
    assert call.kind == "softmax"
    assert not call.refusal
    assert torch.equal(call.map.rows, arrange(logits.softmax(dim)))
    assert torch.equal(call.map.logits, arrange(logits))
    assert call.shape == tuple(call.map.rows.shape)
    assert call.folded is folded
    assert call.map.query is None
    assert (call.map.bias is not None) is (dim % logits.ndim == 1)


def test_keys_that_are_zero_at_every_query_are_hidden_and_those_that_are_so_at_some_are_not():
    logits = rand(2, 5, 2, 3)
    logits[0, 1] = 0
    logits[1, 2, 0] = 0
    call = read(torch.softmax, logits, 1)
    expected = torch.zeros(2, 1, 1, 5, dtype=torch.float64)
    expected[0, 0, 0, 1] = -torch.inf
    assert torch.equal(call.map.bias, expected)


def test_other_functions_are_no_attention():
    assert read(torch.sigmoid, rand(2, 3, 4, 5)) is None
    assert read(F.log_softmax, rand(2, 3, 4, 5), -1) is None


PADDED = torch.tensor([[False, False, True, False, True], [False, True, False, False, False]])


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"kdim": 6, "vdim": 6}, {"kdim": 6, "vdim": 6, "bias": False}],
    ids=["shared", "no bias", "keys of other widths", "keys of other widths, no bias"],
)
@pytest.mark.parametrize(
    "masks",
    [
        {},
        {"key_padding_mask": PADDED},
        {"attn_mask": ~SEEN},
        {"attn_mask": rand(4, 5), "key_padding_mask": torch.zeros(2, 5).double().masked_fill(PADDED, -torch.inf)},
        {"attn_mask": rand(4, 4, 5)},
        {"attn_mask": (~SEEN).expand(4, 4, 5), "key_padding_mask": PADDED},
    ],
    ids=["none", "padding", "boolean", "both", "every head", "every head and padding"],
)
def test_a_multihead_attention_is_read_as_the_weights_that_it_returns(batch_first, options, masks):
    module = nn.MultiheadAttention(8, 2, batch_first=batch_first, **options).double()
    if module.in_proj_bias is not None:
        nn.init.normal_(module.in_proj_bias)
    query, key = rand(2, 4, 8), rand(2, 5, options.get("kdim", 8))
    given = (query, key, key) if batch_first else tuple(each.transpose(0, 1) for each in (query, key, key))
    _, expected = module(*given, **masks, average_attn_weights=False)
    call = read_mha(module, *given, **masks)
    # A row without any visible key is NaN for both.
    torch.testing.assert_close(rows_of(call), expected, equal_nan=True)
    assert call.kind == "mha"
    assert call.shape == (2, 2, 4, 5)
    assert call.own[0] is given[0]
    assert call.own[1] is given[1]
    assert torch.equal(call.entering, query)
    assert not call.folded


def test_only_torch_s_own_multihead_attention_is_read_as_one():
    class Same(nn.MultiheadAttention):
        pass

    class Other(nn.MultiheadAttention):
        def forward(self, value):
            return value

    assert is_mha(nn.MultiheadAttention(4, 1))
    assert is_mha(Same(4, 1))
    assert not is_mha(Other(4, 1))
    assert not is_mha(nn.Linear(4, 4))


def test_what_enters_a_module_is_its_first_tensor():
    first, second = rand(1), rand(2)
    assert entering_of((3, [None, first]), {"other": second}) is first
    assert entering_of((), {"flag": True, "other": second}) is second
    assert entering_of((), {}) is None


@pytest.mark.parametrize("logits", [True, False])
def test_a_mode_remembers_versions_of_what_it_keeps_and_logits_where_asked(logits):
    value = rand(2, 3, 4, 4)
    with AttentionMode(logits=logits) as mode:
        rows = value.softmax(-1)
        F.scaled_dot_product_attention(value, value, value)
        value.relu()
    softmax, fused = mode.calls
    kept = [tensor for tensor, _ in softmax.versions]
    assert [tensor.data_ptr() for tensor in kept] == [each.data_ptr() for each in ([rows, value] if logits else [rows])]
    assert (softmax.map.logits is not None) is logits
    assert [tensor.shape for tensor, _ in fused.versions] == [value.shape] * 2
    assert all(tensor._version == version for call in mode.calls for tensor, version in call.versions)
    rows.add_(1)
    assert any(tensor._version != version for tensor, version in softmax.versions)


def test_what_is_computed_apart_is_seen_by_modes_that_begin_there_alone():
    value = rand(2, 4, 4)
    with AttentionMode(logits=False) as outer:
        with apart(), AttentionMode(logits=False) as inner:
            value.softmax(-1)
        with pytest.raises(ZeroDivisionError), apart():
            raise ZeroDivisionError
        value.softmax(1)
    assert [len(mode.calls) for mode in (outer, inner)] == [1, 1]


def calls_of(*shapes, kind="softmax", refused=()):
    return [
        AttentionCall(kind=kind, shape=shape, refusal="no" if index in refused else "")
        for index, shape in enumerate(shapes)
    ]


def groups(calls, images):
    numbers = {id(call): number for number, call in enumerate(calls)}
    return [[numbers[id(call)] for call in group] for group in join_samples(calls, images)]


ONE, OTHER = (1, 1, 4, 4), (1, 1, 9, 9)


@pytest.mark.parametrize(
    ("calls", "images", "expected"),
    [
        (calls_of(ONE, ONE, ONE), 3, [[0, 1, 2]]),
        (calls_of(ONE, OTHER, ONE, OTHER), 2, [[0, 2], [1, 3]]),
        (calls_of(ONE, OTHER, OTHER, ONE), 2, [[0], [1], [2], [3]]),
        (calls_of(ONE, ONE, ONE), 2, [[0], [1], [2]]),
        (calls_of((2, 1, 4, 4), ONE, ONE), 2, [[0], [1, 2]]),
        (calls_of(ONE, ONE, ONE, refused=(1,)), 2, [[0, 2], [1]]),
        (calls_of(ONE, ONE), None, [[0], [1]]),
        (calls_of(ONE, ONE), 1, [[0], [1]]),
        (calls_of(ONE), 2, [[0]]),
        ([*calls_of(ONE), *calls_of(ONE, kind="sdpa")], 2, [[0], [1]]),
        ([], 2, []),
    ],
    ids=[
        "one for each sample",
        "two for each sample",
        "of changing sizes",
        "too many",
        "beside one of a batch",
        "beside a refused one",
        "unknown batch",
        "one image",
        "too few",
        "of two kinds",
        "none",
    ],
)
def test_calls_are_joined_where_each_sample_has_the_same(calls, images, expected):
    assert groups(calls, images) == expected
