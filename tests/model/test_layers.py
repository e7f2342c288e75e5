"""Each layer against its definition, and position buckets against transformers'."""

import pytest
import torch
from torch.nn import functional as F

from deepnarrow.model.layers import ACTIVATIONS, Attention, FeedForward, KeysValues, Norm, attend, dropped
from deepnarrow.model.position import MASKED, PositionBias, along_diagonals, position_bucket
from deepnarrow.shapes import parse

SMALL = "tiny-dm32-ff64-kv8-nh4-v96"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("buckets", "far"), [(32, 128), (32, 512), (16, 64), (4, 8), (64, 200)])
def test_buckets_equal_the_reference(causal: bool, buckets: int, far: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    offset = torch.arange(-400, 401)
    expected = T5Attention._relative_position_bucket(offset, not causal, buckets, far)
    assert torch.equal(position_bucket(offset, causal=causal, buckets=buckets, far=far), expected)


@pytest.mark.parametrize(("queries", "keys"), [(1, 1), (1, 6), (4, 4), (3, 7), (7, 7)])
@pytest.mark.parametrize("causal", [False, True])
def test_bias_looks_up_each_offset(queries: int, keys: int, causal: bool) -> None:
    position = PositionBias(parse(SMALL))
    torch.nn.init.normal_(position.table)
    bias = position(keys, keys, causal=causal)
    for query in range(keys):
        for key in range(keys):
            expected = position.table[position_bucket(torch.tensor(key - query), causal=causal)]
            hidden = causal and key > query
            assert torch.equal(bias[0, :, query, key], torch.full((4,), MASKED) if hidden else expected)
    diagonals = along_diagonals(torch.arange(queries + keys - 1.0)[None], queries, keys)
    assert diagonals[0, 0].tolist() == [[m - q + queries - 1 for m in range(keys)] for q in range(queries)]


def test_bias_gradient_counts_each_use() -> None:
    position = PositionBias(parse(SMALL))
    position(5, 5, causal=False).sum().backward()
    assert position.table.grad is not None
    assert position.table.grad.sum() == 4 * 5 * 5
    assert position.table.grad[0].tolist() == [5.0] * 4  # offset 0: the diagonal


def test_norm_is_root_mean_square_in_float32() -> None:
    norm, x = Norm(32), torch.randn(3, 5, 32) * 100
    torch.nn.init.uniform_(norm.weight, 0.5, 1.5)
    wide = x.double()
    expected = wide / (wide.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight.double()
    torch.testing.assert_close(norm(x), expected.float(), rtol=1e-6, atol=1e-6)
    low = norm.bfloat16()(x.bfloat16())
    assert low.dtype is torch.bfloat16
    torch.testing.assert_close(low.float(), expected.float(), rtol=2e-2, atol=2e-2)


def test_norm_of_huge_bfloat16_does_not_overflow() -> None:
    x = torch.full((1, 1, 32), 1e18, dtype=torch.bfloat16)  # squares of 1e36, where float32 ends at 3e38
    assert torch.allclose(Norm(32).bfloat16()(x), torch.ones(()).bfloat16())


@pytest.mark.parametrize("shape", [SMALL, f"{SMALL}-kh2", f"{SMALL}-kh1", f"{SMALL}-skv", f"{SMALL}-kh2-skv"])
def test_attention_is_its_formula_spelt_out_and_fused(shape: str) -> None:
    parsed = parse(shape)
    attention = Attention(parsed, dropout=0.0)
    torch.manual_seed(0)
    x_BLD, memory_BMD, bias = torch.randn(2, 5, 32), torch.randn(2, 7, 32), torch.randn(1, 4, 5, 7)
    value = attention.key if attention.value is None else attention.value
    shared = 4 // (parsed.kv_heads or 4)
    rows = []
    for head in range(4):
        own, group = slice(8 * head, 8 * head + 8), slice(8 * (head // shared), 8 * (head // shared) + 8)
        query_BLK = (x_BLD @ attention.query.weight.T)[..., own]
        key_BMK = (memory_BMD @ attention.key.weight.T)[..., group]
        value_BMK = (memory_BMD @ value.weight.T)[..., group]
        rows.append((query_BLK @ key_BMK.transpose(1, 2) + bias[0, head]).softmax(-1) @ value_BMK)
    expected = torch.cat(rows, -1) @ attention.output.weight.T
    torch.testing.assert_close(attention(x_BLD, attention.look_at(memory_BMD), bias), expected, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        fused = attention(x_BLD, attention.look_at(memory_BMD), bias)
    torch.testing.assert_close(fused, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("gradient", [False, True])
def test_a_row_with_everything_masked_is_not_nan(dtype: torch.dtype, gradient: bool) -> None:
    query, key, value = (torch.randn(1, 2, 3, 4, dtype=dtype) for _ in range(3))
    bias = torch.full((1, 2, 3, 3), MASKED, dtype=dtype)
    with torch.set_grad_enabled(gradient):
        mixed = attend(query, KeysValues(key, value), bias)
    assert mixed.isfinite().all()


@pytest.mark.parametrize("word", ACTIVATIONS)
def test_feed_forward_of_every_kind(word: str) -> None:
    from dataclasses import replace

    layer = FeedForward(replace(parse(SMALL), feed_forward=word), dropout=0.0)
    x = torch.randn(2, 3, 32)
    activation = {
        "relu": F.relu,
        "silu": F.silu,
        "gelu": lambda y: F.gelu(y, approximate="tanh" if word.startswith("gated") else "none"),
    }[word.removeprefix("gated-")]
    if word.startswith("gated-"):
        hidden = activation(x @ layer.wi_0.weight.T) * (x @ layer.wi_1.weight.T)
    else:
        hidden = activation(x @ layer.wi.weight.T)
    torch.testing.assert_close(layer(x), hidden @ layer.wo.weight.T)


def test_dropout_is_shared_along_the_sequence_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 5, 256)
    kept = dropped(x, 0.1, training=True)
    assert torch.equal(kept, kept[:, :1].expand_as(kept))
    assert set(kept.unique().tolist()) == {0.0, (torch.ones(()) / 0.9).item()}
    assert kept.mean() == pytest.approx(1.0, abs=0.01)
    assert dropped(x, 0.1, training=False) is x
    assert dropped(x, 0.0, training=True) is x


def test_attention_dropout_drops_whole_keys_in_training_only() -> None:
    torch.manual_seed(0)
    attention = Attention(parse(SMALL), dropout=0.5)
    memory = attention.look_at(torch.randn(2, 7, 32))
    forgotten = attention.forget(memory)
    assert torch.equal(forgotten.key_BGMK, memory.key_BGMK)
    ratio = forgotten.value_BGMK / memory.value_BGMK
    assert torch.allclose(ratio, ratio[..., :1].expand_as(ratio))  # a key is dropped with its whole value
    assert 0 < (ratio == 0).float().mean() < 1
    x = torch.randn(2, 3, 32)
    attention.eval()
    assert torch.equal(attention(x, memory, None), attention(x, memory, None))
    attention.train()
    assert not torch.equal(attention(x, memory, None), attention(x, memory, None))
