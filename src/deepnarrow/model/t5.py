"""The T5 network (Raffel et al. 2020, arXiv:1910.10683), every shape of it.

Shape key   B batch   L input length   T target length   D d_model   V vocabulary   H heads   M memory length

Blocks are pre-norm: x + dropout(layer(norm(x))). Dropout stands at the embeddings, the attention weights, the
feed-forward's hidden layer, every layer's output and behind the final norm. A tied model multiplies the decoder's
output by d_model**-0.5 before the embedding matrix; an untied one (T5 1.1) does not.
"""

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from deepnarrow.errors import UserError
from deepnarrow.model import flex, native, noise
from deepnarrow.model.cache import Cache
from deepnarrow.model.layers import Attention, FeedForward, KeysValues, Linear, Norm, compute_dtype, dropped, fused
from deepnarrow.model.native import Sight
from deepnarrow.model.position import MASKED, PositionBias
from deepnarrow.model.prompt import Prompts
from deepnarrow.shapes import Shape

PAD = 0  # also what the decoder reads first
NO_FLOAT16 = (
    "T5 does not run in float16: values behind its feed-forward layers exceed 65,504, the largest float16, and become "
    "infinite; use bfloat16 or float32"
)


class Block(nn.Module):
    """Self-attention, cross-attention when there is a memory, feed-forward."""

    def __init__(self, shape: Shape, dropout: float, *, cross: bool) -> None:
        super().__init__()
        self.dropout, self.dropout_shared = dropout, True
        self.self_norm, self.self_attention = Norm(shape.d_model), Attention(shape, dropout)
        if cross:
            self.cross_norm, self.cross_attention = Norm(shape.d_model), Attention(shape, dropout)
        self.feed_norm, self.feed_forward = Norm(shape.d_model), FeedForward(shape, dropout)

    def forward(
        self,
        x_BLD: Tensor,
        bias: Tensor | Sight | flex.View,
        memory: KeysValues | Tensor | None = None,
        memory_bias: Tensor | Sight | flex.View | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Tensor:
        normed_BLD = self.self_norm(x_BLD)
        own = self.self_attention.look_at(normed_BLD)
        if cache is not None:
            own = cache.extend(layer, own)
        x_BLD = x_BLD + self.drop(self.self_attention(normed_BLD, own, bias))
        if isinstance(memory, Tensor):  # looked at here, so that a block is used in its own forward pass only
            memory = self.cross_attention.look_at(memory)
        if memory is not None:
            x_BLD = x_BLD + self.drop(self.cross_attention(self.cross_norm(x_BLD), memory, memory_bias))
        return x_BLD + self.drop(self.feed_forward(self.feed_norm(x_BLD)))

    def drop(self, x_BLD: Tensor) -> Tensor:
        return dropped(x_BLD, self.dropout, training=self.training, shared=self.dropout_shared)


class Stack(nn.Module):
    """Blocks under one table of relative positions, then a norm."""

    def __init__(self, shape: Shape, layers: int, dropout: float, *, cross: bool) -> None:
        super().__init__()
        self.dropout, self.dropout_shared, self.recompute = dropout, True, False
        self.position = PositionBias(shape)
        self.blocks = nn.ModuleList(Block(shape, dropout, cross=cross) for _ in range(layers))
        self.norm = Norm(shape.d_model)

    def forward(
        self,
        x_BLD: Tensor,
        bias: Tensor | Sight | flex.View,
        memory: Sequence[KeysValues | Tensor | None],
        memory_bias: Tensor | Sight | flex.View | None = None,
        cache: Cache | None = None,
    ) -> Tensor:
        """`memory` has one entry for each block: keys and values, or what to look at for them [B, M, D].

        None leaves the cross-attention out, as in an encoder.
        """
        x_BLD = self.drop(x_BLD)
        again = self.recompute and self.training and torch.is_grad_enabled()
        for layer, (block, seen) in enumerate(zip(self.blocks, memory, strict=True)):
            if again:
                x_BLD = checkpoint(noise.as_now(block), x_BLD, bias, seen, memory_bias, use_reentrant=False)
            else:
                x_BLD = block(x_BLD, bias, seen, memory_bias, cache, layer)
        return self.drop(self.norm(x_BLD))

    def drop(self, x_BLD: Tensor) -> Tensor:
        return dropped(x_BLD, self.dropout, training=self.training, shared=self.dropout_shared)

    def look_at(self, memory_BMD: Tensor) -> list[KeysValues]:
        """Every block's keys and values of the encoder's output."""
        return [cast(Block, block).cross_attention.look_at(memory_BMD) for block in self.blocks]


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Nothing is drawn where there is no memory yet: torch would import its compiler for it, two seconds' work."""
        if not self.weight.is_meta:
            super().reset_parameters()


class T5(nn.Module):
    """A text-to-text transformer of the given shape, in float32, its weights not yet set (see `initialise`).

    dropout_shared   one draw for a whole sequence, as T5 was trained; False: one for each element, as `transformers`
    recompute        training keeps what goes between blocks and computes their insides again in the backward pass: the
                     same gradients to the bit, a third more arithmetic, a fraction of the memory (Chen et al. 2016,
                     arXiv:1604.06174)

    Token id 0 is padding and the decoder's first token. Without decoder layers only `encode` works. `prompt` [P, D] is
    None but where vectors were learned that stand in front of every input (prompt.py); then its memory is P longer.

    >>> from deepnarrow.shapes import parse
    >>> model = T5(parse("tiny-nl1-dm32-ff64-v96"))
    >>> model(torch.ones(2, 7, dtype=torch.long), torch.ones(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 96])
    """

    def __init__(
        self, shape: Shape, *, dropout: float = 0.0, dropout_shared: bool = True, recompute: bool = False
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise UserError(f"dropout must be at least 0 and below 1, not {dropout}")
        self.shape, self.dropout = shape, dropout
        self.embedding = Embedding(shape.vocab, shape.d_model)
        self.prompt: nn.Parameter | None
        self.register_parameter("prompt", None)
        # With shared stacks there is one, the decoder's, and the encoder walks it without its cross-attention.
        shared = shape.share_encoder_decoder
        self.encoder = None if shared else Stack(shape, shape.encoder_layers, dropout, cross=False)
        self.decoder = Stack(shape, shape.decoder_layers, dropout, cross=True) if shape.decoder_layers else None
        self.output = None if shape.tied or self.decoder is None else Linear(shape.d_model, shape.vocab, bias=False)
        for module in self.modules():
            if isinstance(module, Stack | Block | Attention | FeedForward):
                module.dropout_shared = dropout_shared
            if isinstance(module, Stack):
                module.recompute = recompute

    def forward(self, inputs_BL: Tensor, targets_BT: Tensor) -> Tensor:
        """Logits [B, T, V] for each target token, given the input and the targets before it.

        Both are token ids, 0 where padded; the decoder reads the targets shifted right by one, after a 0. Padding of
        the targets needs no mask: causal attention never looks at what follows.
        """
        return self.logits(self.hidden(inputs_BL, targets_BT))

    def hidden(
        self,
        inputs_BL: Tensor,
        targets_BT: Tensor,
        input_segments: Tensor | None = None,
        target_segments: Tensor | None = None,
    ) -> Tensor:
        """What `forward` computes short of the output matrix, [B, T, D]; `logits` does the rest, whole or in parts.

        Packed rows hold several examples one behind the other. `input_segments` [B, L] and `target_segments` [B, T] say
        which each token belongs to: 1, 2, ..., and 0 at padding. Then every example gives what it gives alone: it sees
        its own tokens only, target s the input s only, and its decoder begins with a 0.
        """
        if (input_segments is None) != (target_segments is None):
            raise ValueError("packed rows need the segments of both the inputs and the targets")
        if input_segments is None or target_segments is None:
            x_BLD, mask_BL, _ = self.front(inputs_BL)
            return self.decode_hidden(shift_right(targets_BT), self._encode(x_BLD, mask_BL, None), mask_BL)
        x_BLD, _, memory_segments = self.front(inputs_BL, None, input_segments)
        assert memory_segments is not None
        with noise.examples(memory_segments):
            memory_BLD = self._encode(x_BLD, None, memory_segments)
        read_BT = shift_right(targets_BT, target_segments)
        with noise.examples(target_segments):
            return self.decode_hidden(read_BT, memory_BLD, None, segments=(target_segments, memory_segments))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., D] -> [..., V]"""
        if self.output is not None:
            return self.output(hidden)
        return F.linear(hidden * self.shape.d_model**-0.5, self.embedding.weight)

    def output_matrix(self) -> tuple[Tensor, float]:
        """The matrix [V, D] behind the logits, and what the hidden states are multiplied by before it."""
        if self.output is not None:
            return self.output.weight, 1.0
        return self.embedding.weight, self.shape.d_model**-0.5

    def encode(
        self,
        input_BL: Tensor,
        mask_BL: Tensor | None = None,
        segments_BL: Tensor | None = None,
        prompts: Prompts | None = None,
    ) -> Tensor:
        """The encoder's output [B, L, D]. `mask_BL` is True at real tokens; without it, where the id is not 0.

        `segments_BL` instead of a mask: rows of several examples, see `hidden`. `prompts` stand in front of the inputs,
        in place of the model's own if it has one; then the output is longer, and `memory_mask` says what of it is real.
        """
        return self._encode(*self.front(input_BL, mask_BL, segments_BL, prompts))

    def memory_mask(self, mask_BL: Tensor, prompts: Prompts | None = None) -> Tensor:
        """The mask of what `encode` gives for inputs of this mask: the prompt's positions, if any, and the inputs'."""
        prompts = self._prompts(prompts)
        return mask_BL if prompts is None else prompts.seen(mask_BL)

    def _prompts(self, given: Prompts | None) -> Prompts | None:
        return Prompts(self.prompt[None]) if given is None and self.prompt is not None else given

    def front(
        self,
        input_BL: Tensor,
        mask_BL: Tensor | None = None,
        segments_BL: Tensor | None = None,
        prompts: Prompts | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Embeddings with the prompt in front, and either their mask or their segments."""
        x_BLD, prompts = self._embed(input_BL), self._prompts(prompts)
        if segments_BL is not None:
            if prompts is not None:
                x_BLD, segments_BL = prompts.before_each(x_BLD, segments_BL)
            return x_BLD, None, segments_BL
        mask_BL = input_BL != PAD if mask_BL is None else mask_BL.bool()
        if prompts is not None:
            x_BLD, mask_BL = prompts.before(x_BLD, mask_BL)
        return x_BLD, mask_BL, None

    def _encode(self, x_BLD: Tensor, mask_BL: Tensor | None, segments_BL: Tensor | None) -> Tensor:
        stack = self.encoder_stack()
        return stack(x_BLD, self.encoder_bias(x_BLD, mask_BL, segments_BL), [None] * len(stack.blocks))

    def encoder_stack(self) -> Stack:
        return self.encoder or self._decoder()

    def encoder_bias(
        self, x_BLD: Tensor, mask_BL: Tensor | None, segments_BL: Tensor | None = None
    ) -> Tensor | Sight | flex.View:
        """What every block of the encoder needs beside `x_BLD`: positions, and who sees whom."""
        stack, length = self.encoder_stack(), x_BLD.shape[1]
        if native.usable(x_BLD):
            ranges: Ranges | None
            if segments_BL is not None:
                known, ranges = True, segment_ranges(segments_BL, segments_BL)
            else:
                assert mask_BL is not None
                known, ranges = mask_ranges(mask_BL, length)
            if known:
                return Sight(stack.position.by_offset(length, length, causal=False), ranges)
        if self._in_kernel(stack, x_BLD):
            seen_BL = mask_BL if segments_BL is None else segments_BL
            assert seen_BL is not None
            own_BL = torch.ones_like(seen_BL) if segments_BL is None else segments_BL
            return flex.view(flex.bias_by_offset(stack.position, causal=False), own_BL, seen_BL)
        bias = stack.position(length, length, causal=False)
        if segments_BL is not None:
            bias = torch.where(same_segment(segments_BL, segments_BL), bias, MASKED)
        else:
            assert mask_BL is not None
            if has_padding(mask_BL):
                bias = torch.where(mask_BL[:, None, None, :], bias, MASKED)
        return ready(bias, x_BLD)

    def decode(
        self, target_BT: Tensor, memory_BLD: Tensor | None, mask_BL: Tensor | None, cache: Cache | None = None
    ) -> Tensor:
        """Logits [B, T, V] for the token after each decoder input (ids already shifted, a 0 first).

        With a cache the ids are the next T tokens only, and memory and mask are not read: the cache has them.
        """
        return self.logits(self.decode_hidden(target_BT, memory_BLD, mask_BL, cache))

    def decode_hidden(
        self,
        target_BT: Tensor,
        memory_BLD: Tensor | None,
        mask_BL: Tensor | None,
        cache: Cache | None = None,
        segments: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        """`decode` short of the output matrix: [B, T, D]. `segments` are those of the targets and of the memory."""
        stack, length = self._decoder(), target_BT.shape[1]
        if cache is not None:
            return self._decode_next(stack, target_BT, cache)
        if memory_BLD is None:
            raise ValueError("decoding without a cache needs the encoder's output")
        x_BTD = self._embed(target_BT)
        if native.usable(x_BTD):
            known, ranges, own_ranges = True, None, None
            if segments is not None:
                own_ranges, ranges = segment_ranges(segments[0], segments[0]), segment_ranges(*segments)
            elif mask_BL is not None:
                known, ranges = mask_ranges(mask_BL.bool(), length)
            if known:
                bias_HO = stack.position.by_offset(length, length, causal=True)
                memories = [memory_BLD] * len(stack.blocks)
                return stack(x_BTD, Sight(bias_HO, own_ranges, causal=True), memories, Sight(None, ranges))
        if self._in_kernel(stack, x_BTD):
            all_BT, all_BL = torch.ones_like(target_BT), memory_BLD.new_ones(memory_BLD.shape[:2])
            own_BT, seen_BL = segments or (all_BT, all_BL if mask_BL is None else mask_BL)
            own = flex.view(flex.bias_by_offset(stack.position, causal=True), own_BT, own_BT, causal=True)
            return stack(x_BTD, own, [memory_BLD] * len(stack.blocks), flex.view(None, own_BT, seen_BL))
        bias = stack.position(length, length, causal=True)
        memory_bias = self._memory_bias(mask_BL, x_BTD)
        if segments is not None:
            own_BT, memory_BL = segments
            bias = torch.where(same_segment(own_BT, own_BT), bias, MASKED)
            seen = torch.zeros((), device=bias.device)
            memory_bias = ready(torch.where(same_segment(own_BT, memory_BL), seen, MASKED), x_BTD)
        return stack(x_BTD, ready(bias, x_BTD), [memory_BLD] * len(stack.blocks), memory_bias)

    @torch.no_grad()
    def start_cache(self, memory_BLD: Tensor, mask_BL: Tensor | None, length: int) -> Cache:
        """A cache for up to `length` tokens a row, the keys and values of the encoder's output computed once."""
        stack = self._decoder()
        memory = stack.look_at(memory_BLD)
        batch, heads, _, width = memory[0].key_BGMK.shape
        past = [pair.each(lambda x: x.new_empty(batch, heads, length, width)) for pair in memory]
        bias_HO = stack.position.by_offset(length, length, causal=True).to(memory[0].key_BGMK.dtype)
        return Cache(memory, self._memory_bias(mask_BL, memory_BLD), past, bias_HO)

    @torch.no_grad()
    def _decode_next(self, stack: Stack, target_BT: Tensor, cache: Cache) -> Tensor:
        rows, length = target_BT.shape
        if rows != cache.rows or cache.position + length > cache.length:
            raise ValueError(
                f"a cache of {cache.rows} rows with {cache.position} of {cache.length} tokens filled "
                f"cannot take {length} more tokens in {rows} rows"
            )
        x_BTD = self._embed(target_BT)
        x_BTD = stack(x_BTD, cache.bias(length), cache.memory, cache.memory_bias, cache)
        cache.position += length
        return x_BTD

    def _decoder(self) -> Stack:
        if self.decoder is None:
            raise UserError(f"{self.shape} is an encoder alone: it can encode, but it has no decoder to answer with")
        return self.decoder

    def _embed(self, ids: Tensor) -> Tensor:
        weight_VD = self.embedding.weight
        hooked = self.embedding._forward_hooks or self.embedding._forward_pre_hooks
        x_BLD = native.embed(ids, weight_VD) if native.usable(weight_VD) and not hooked else self.embedding(ids)
        if compute_dtype(x_BLD) is torch.float16:
            raise UserError(NO_FLOAT16)
        return x_BLD

    def _in_kernel(self, stack: Stack, x_BLD: Tensor) -> bool:
        """Whether positions and masks can be left to a GPU's kernel, which knows no draws for each attention weight."""
        draws_each = self.training and self.dropout > 0 and not stack.dropout_shared
        return flex.usable(x_BLD, width=self.shape.d_kv) and not draws_each

    def _memory_bias(self, mask_BL: Tensor | None, like: Tensor) -> Tensor | None:
        """[B, 1, 1, L], `MASKED` at the memory's padding; None where there is none to hide."""
        if mask_BL is None or not has_padding(mask_BL):
            return None
        seen = torch.zeros((), device=mask_BL.device)
        return ready(torch.where(mask_BL.bool()[:, None, None, :], seen, MASKED), like)


def shift_right(targets_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
    """What the decoder reads to predict the targets: a 0, then all targets but the last; so for each segment of a row.

    >>> shift_right(torch.tensor([[7, 8, 1]])).tolist()
    [[0, 7, 8]]
    >>> shift_right(torch.tensor([[7, 8, 1, 9, 1]]), torch.tensor([[1, 1, 1, 2, 2]])).tolist()
    [[0, 7, 8, 0, 9]]
    """
    read_BT = F.pad(targets_BT[:, :-1], (1, 0), value=PAD)
    if segments_BT is None:
        return read_BT
    return read_BT.masked_fill(segments_BT != F.pad(segments_BT[:, :-1], (1, 0)), PAD)


Ranges = tuple[Tensor, Tensor]  # of every query [B, L]: the first key it sees, and one behind the last; int32


def mask_ranges(mask_BM: Tensor, queries: int) -> tuple[bool, Ranges | None]:
    """What a mask lets every query see; (False, None) where that is not one stretch, (True, None) where it is all.

    >>> mask_ranges(torch.tensor([[False, True, True]]), 1)
    (True, (tensor([[1]], dtype=torch.int32), tensor([[3]], dtype=torch.int32)))
    """
    if bool(mask_BM.all()):
        return True, None
    number_B = mask_BM.sum(-1)
    first_B = mask_BM.int().argmax(-1)
    at_M = torch.arange(mask_BM.shape[1])
    stretch_BM = (at_M >= first_B[:, None]) & (at_M < (first_B + number_B)[:, None])
    if not torch.equal(stretch_BM & (number_B > 0)[:, None], mask_BM):
        return False, None
    first, last = (x.int()[:, None].expand(-1, queries).contiguous() for x in (first_B, first_B + number_B))
    return True, (first, last)


def segment_ranges(query_BL: Tensor, key_BM: Tensor) -> Ranges:
    """Where in its row of keys each query's segment lies; nowhere for padding. Segments are stretches, in any order.

    >>> segment_ranges(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 2, 2]]))[1].tolist()
    [[2, 4, 0]]
    """
    most = int(max(query_BL.max(), key_BM.max())) + 1
    places = torch.arange(key_BM.shape[1]).expand_as(key_BM)
    first = torch.full((len(key_BM), most), key_BM.shape[1]).scatter_reduce_(1, key_BM, places, "amin")
    last = torch.zeros(len(key_BM), most, dtype=torch.long).scatter_reduce_(1, key_BM, places + 1, "amax")
    first[:, 0] = last[:, 0] = 0
    last = torch.maximum(first, last)
    return first.gather(1, query_BL).int().contiguous(), last.gather(1, query_BL).int().contiguous()


def same_segment(query_BL: Tensor, key_BM: Tensor) -> Tensor:
    """Whether query and key belong to one example of their row: bool [B, 1, L, M]."""
    return query_BL[:, None, :, None] == key_BM[:, None, None, :]


def has_padding(mask_BL: Tensor) -> bool:
    """Whether a mask hides anything. Where asking would stall a GPU or break a compiled graph, the answer is yes."""
    if mask_BL.device.type != "cpu" or torch.compiler.is_compiling():
        return True
    return not bool(mask_BL.all())


def ready(bias: Tensor, x: Tensor) -> Tensor:
    """A bias as every layer's attention will want it, so that it is cast and laid out once."""
    return bias.to(compute_dtype(x)).contiguous() if fused(x) else bias
