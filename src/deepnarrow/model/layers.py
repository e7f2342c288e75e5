"""The three things a T5 block is made of: norm, attention, feed-forward.

Shape key   B batch   L query length   M memory length   D d_model   F d_ff   K d_kv
            H heads   G key/value heads (= H unless grouped)   R = H / G heads that share one key/value head
            A tensor's name ends in its dimensions: `key_BGMK` is [B, G, M, K].

Two departures from the textbook, both Raffel et al. 2020 (arXiv:1910.10683): logits are not divided by sqrt(K), since
the initial scale of `query` absorbs it; and position enters only as a bias on the logits (position.py).
No linear layer has an additive bias.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.model import flex, native, noise
from deepnarrow.model.native import Sight
from deepnarrow.model.position import MASKED, along_diagonals
from deepnarrow.shapes import Shape

EPSILON = 1e-6


class KeysValues(NamedTuple):
    """What queries look at. With tied projections both are one tensor."""

    key_BGMK: Tensor
    value_BGMK: Tensor

    @property
    def tied(self) -> bool:
        return self.value_BGMK is self.key_BGMK

    def each(self, change: Callable[[Tensor], Tensor]) -> "KeysValues":
        """Both changed alike; what was one tensor stays one."""
        key_BGMK = change(self.key_BGMK)
        return KeysValues(key_BGMK, key_BGMK if self.tied else change(self.value_BGMK))


class Norm(nn.Module):
    """RMS norm: a scale, no shift, no mean subtracted (Zhang and Sennrich 2019, arXiv:1910.07467)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Computed in float32; the result has the dtype the next matrix product wants, so that it is cast once."""
        if x.dtype is torch.float32 and native.usable(x, self.weight):
            return native.norm(x, self.weight, EPSILON, compute_dtype(x))
        wide = x.float()
        normed = F.rms_norm(wide, self.weight.shape, self.weight.float(), EPSILON)
        return normed.to(compute_dtype(x))


class Linear(nn.Linear):
    """A matrix product without an additive bias."""

    def forward(self, x: Tensor) -> Tensor:
        if native.wanted() and native.multiplies():
            dtype = compute_dtype(x)
            if dtype is torch.bfloat16 and native.usable(x, self.weight):  # float32 is as well off with torch's own
                return native.linear(x, self.weight, dtype)
        return F.linear(x, self.weight)


def dropped(x: Tensor, rate: float, *, training: bool, shared: bool = True, split: int | None = None) -> Tensor:
    """Dropout as T5 was trained with it: one draw for each example and channel, shared along the sequence (dim -2).

    So do mesh_tensorflow/transformer/transformer_layers.py and t5x. A draw for each element (`shared=False`), as
    torch's own dropout and `transformers` make, is on a CPU a large part of a training step.
    """
    if not training or rate == 0.0:
        return x
    if not shared:
        return F.dropout(x, rate)
    kept = noise.shared(x.shape, rate, x.device, split=split)
    return (x * kept).to(x.dtype)


def compute_dtype(x: Tensor) -> torch.dtype:
    """What matrix products on `x` run in: autocast's dtype inside autocast, else its own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class Attention(nn.Module):
    """Multi-head attention; with `kv_heads` several heads share keys and values, with `tie_kv` these two are one."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.heads, self.kv_heads = shape.num_heads, shape.kv_heads or shape.num_heads
        self.dropout, self.dropout_shared = dropout, True
        self.query = Linear(shape.d_model, shape.inner, bias=False)
        self.key = Linear(shape.d_model, shape.kv_inner, bias=False)
        self.value = None if shape.tie_kv else Linear(shape.d_model, shape.kv_inner, bias=False)
        self.output = Linear(shape.inner, shape.d_model, bias=False)

    def look_at(self, memory_BMD: Tensor) -> KeysValues:
        """Keys and values [B, G, M, K] of what is attended to."""
        key_BGMK = split(self.key(memory_BMD), self.kv_heads)
        return KeysValues(key_BGMK, key_BGMK if self.value is None else split(self.value(memory_BMD), self.kv_heads))

    def forward(self, input_BLD: Tensor, memory: KeysValues, bias: Tensor | Sight | flex.View | None) -> Tensor:
        """Mix `memory` into each input position; `bias` broadcasts to [B, H, L, M], `MASKED` where nothing is seen."""
        query_BHLK = split(self.query(input_BLD), self.heads)
        if native.usable(query_BHLK, *memory) and (isinstance(bias, Sight) or bias is None) and not self.draws_each():
            return self.output(self.kernel(query_BHLK, memory, bias or Sight()))
        batch, heads, length, width = query_BHLK.shape
        if isinstance(bias, flex.View):
            if flex.usable(query_BHLK, *memory, width=width) and not self.draws_each():
                memory = self.forget(memory) if self.training and self.dropout else memory
                return self.output(flex.attention(query_BHLK, *memory, bias).transpose(1, 2).flatten(2))
            bias = flex.dense(bias, length, memory.key_BGMK.shape[2]).to(query_BHLK.dtype)
        if isinstance(bias, Sight):
            bias = dense(bias, length, memory.key_BGMK.shape[2])
        if self.kv_heads != heads:  # heads that share keys become more queries of one head: nothing is copied
            query_BHLK = query_BHLK.reshape(batch, self.kv_heads, -1, width)
            if bias is not None and bias.shape[1:3] != (1, 1):
                shared = bias.expand(-1, heads, length, -1)
                bias = shared.reshape(bias.shape[0], self.kv_heads, -1, bias.shape[-1])
        rate = self.dropout if self.training else 0.0
        if rate and self.dropout_shared:
            memory = self.forget(memory)
            rate = 0.0
        mixed = attend(query_BHLK, memory, bias, rate)
        return self.output(mixed.reshape(batch, heads, length, width).transpose(1, 2).flatten(2))

    def draws_each(self) -> bool:
        """Whether each attention weight has a draw of its own, which the kernel does not know."""
        return self.training and self.dropout > 0 and not self.dropout_shared

    def kernel(self, query_BHLK: Tensor, memory: KeysValues, sight: Sight) -> Tensor:
        """[B, L, H*K] by one call, forward and backward, that never lays out an L x M matrix."""
        keep_BGM = None
        if self.training and self.dropout:
            batch, groups, length, _ = memory.key_BGMK.shape
            keep_BGM = noise.kept([batch, groups, 1, length], self.dropout, query_BHLK.device, split=1).squeeze(2)
        query_BLHK, key_BMGK, value_BMGK = (x.transpose(1, 2) for x in (query_BHLK, *memory))
        return native.attention(query_BLHK, key_BMGK, value_BMGK, sight, keep_BGM).flatten(2)

    def forget(self, memory: KeysValues) -> KeysValues:
        """Dropout of attention weights. T5 shares its draws among the queries, so it is a dropout of whole values."""
        value_BGKM = memory.value_BGMK.transpose(-1, -2)
        return KeysValues(memory.key_BGMK, dropped(value_BGKM, self.dropout, training=True, split=1).transpose(-1, -2))


def split(x_BLI: Tensor, heads: int) -> Tensor:
    """[B, L, H*K] -> [B, H, L, K]"""
    return x_BLI.unflatten(-1, (heads, -1)).transpose(1, 2)


def dense(sight: Sight, queries: int, keys: int) -> Tensor | None:
    """What a `Sight` says, laid out as a bias that broadcasts to [B, H, L, M]."""
    bias = None if sight.bias_HO is None else along_diagonals(sight.bias_HO, queries, keys)
    if sight.ranges is None:
        return bias
    first_BL, last_BL = sight.ranges
    at_M = torch.arange(keys, device=first_BL.device)
    seen_BLM = (at_M >= first_BL[:, :, None]) & (at_M < last_BL[:, :, None])
    return torch.where(seen_BLM[:, None], torch.zeros(()) if bias is None else bias, MASKED)


def fused(x: Tensor) -> bool:
    """Whether attention runs as one call. On a CPU, a bias that needs a gradient would send that call down a slow path,
    so there training is spelt out.
    """
    return x.device.type != "cpu" or not torch.is_grad_enabled()


def attend(query: Tensor, memory: KeysValues, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """softmax(query key^T + bias) value, the softmax in float32. A fused call wants the bias in the query's dtype.

    `dropout` is element-wise, of the softmax.
    """
    if fused(query):
        return F.scaled_dot_product_attention(query, *memory, attn_mask=bias, dropout_p=dropout, scale=1.0)
    logits = query @ memory.key_BGMK.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    weights = F.dropout(logits.softmax(-1, dtype=torch.float32), dropout)
    return weights.to(query.dtype) @ memory.value_BGMK


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU by tanh (Hendrycks and Gimpel 2016, arXiv:1606.08415), T5 1.1's; published configs call it `gelu_new`."""
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "gated-relu": F.relu,
    "gated-gelu": gelu_tanh,
    "gated-silu": F.silu,
}


class FeedForward(nn.Module):
    """Widen, activate, narrow. Gated: activate(x wi_0) * (x wi_1) (Shazeer 2020, arXiv:2002.05202)."""

    def __init__(self, shape: Shape, dropout: float) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[shape.feed_forward]
        self.gated, self.dropout, self.dropout_shared = shape.gated, dropout, True
        if shape.gated:
            self.wi_0 = Linear(shape.d_model, shape.d_ff, bias=False)
            self.wi_1 = Linear(shape.d_model, shape.d_ff, bias=False)
        else:
            self.wi = Linear(shape.d_model, shape.d_ff, bias=False)
        self.wo = Linear(shape.d_ff, shape.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.fusible(x):
            keep_BF, dtype = None, compute_dtype(x)
            if self.training and self.dropout:
                keep_BF = noise.shared([*x.shape[:-1], len(self.wi.weight)], self.dropout, x.device, split=-1)
                keep_BF = keep_BF.flatten(0, -2).contiguous()
            return native.feed_forward(x, self.wi.weight, self.wo.weight, keep_BF, dtype)
        hidden = self.activation(self.wi_0(x)) * self.wi_1(x) if self.gated else self.activation(self.wi(x))
        return self.wo(dropped(hidden, self.dropout, training=self.training, shared=self.dropout_shared, split=-1))

    def fusible(self, x: Tensor) -> bool:
        """Whether one call may do it all: relu, plain matrices, no draws for each element, nobody who waits inside."""
        if not native.wanted() or self.gated or self.activation is not F.relu:
            return False
        if self.training and self.dropout and not self.dropout_shared:
            return False
        if type(self.wi) is not Linear or type(self.wo) is not Linear:  # one that does more than multiply (lora.py)
            return False
        hooked = any(m._forward_hooks or m._forward_pre_hooks for m in (self.wi, self.wo))
        return not hooked and native.usable(x, self.wi.weight, self.wo.weight)
