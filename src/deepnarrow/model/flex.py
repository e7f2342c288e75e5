"""Attention of a training step on a GPU: positions and masks are computed inside the kernel, no L x M matrix exists.

Shape key   B batch   L queries   M keys   H heads   G key/value heads   K d_kv   O offsets
            X blocks of queries   Y blocks of keys

FlexAttention (Dong et al. 2024, arXiv:2412.05496) compiled once. Two things keep it at once when lengths change:

    the bias      one number for each head and each `key - query` up to `SPAN` either way, whatever the lengths; beyond
                  that the nearest, which is the right one, as T5's buckets end long before
    the masks     one number for each query and each key, equal where the one sees the other (an example of a packed
                  row, or 1 for all that is not padding), and a list of the blocks of 128 x 128 where anything is seen

Used by itself on CUDA only, where training in plain tensors; `DEEPNARROW_FLEX=0` leaves it to PyTorch's own attention,
which wants the bias laid out. The gradient of the bias is summed by atomic additions, whose order a GPU does not fix:
a run that must repeat to the bit needs that switch, or torch.use_deterministic_algorithms, which has its effect.
Unmeasured on a GPU.
"""

import os
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils._triton import has_triton

from deepnarrow.model.position import MASKED, PositionBias, along_diagonals

SWITCH = "DEEPNARROW_FLEX"
DEVICE = "cuda"
DTYPES = (torch.float32, torch.bfloat16)
BLOCK = 128
SPAN = 4096  # a longer vector costs little; what is beyond its end has one address for its gradient, which is slow
UNSEEN = torch.iinfo(torch.int32).max
VARIANTS = 256  # compiled at most: three a dtype and shape of heads, times what torch tells apart besides


class Lists(NamedTuple):
    """Which blocks to visit: for each row of blocks how many, and these first, in order; int32."""

    number_B1X: Tensor
    block_B1XY: Tensor
    whole_number_B1X: Tensor  # whole ones need no mask
    whole_block_B1XY: Tensor
    by_key_number_B1Y: Tensor  # the same for each column, as the backward pass walks them
    by_key_B1YX: Tensor
    by_key_whole_number_B1Y: Tensor
    by_key_whole_B1YX: Tensor


class View(NamedTuple):
    """What a stack's queries see, made once for all its layers.

    bias_HO    float32, by offset from -span to span; None: no bias
    query_BL   int32, what a key must be equal to; -1 sees nothing. At least a block of them
    key_BM     int32, 0 where hidden
    lists      the blocks that follow from both
    causal     a query sees no key behind its own position
    """

    bias_HO: Tensor | None
    query_BL: Tensor
    key_BM: Tensor
    lists: Lists
    causal: bool = False


def usable(*tensors: Tensor, width: int) -> bool:
    """Whether to use it now, on these, with heads `width` wide: a power of two from 16, as Triton multiplies."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() or not torch.is_grad_enabled():
        return False
    if width < 16 or width & (width - 1) or torch.are_deterministic_algorithms_enabled():
        return False
    plain = all(type(x) in (Tensor, nn.Parameter) and x.device.type == DEVICE and x.dtype in DTYPES for x in tensors)
    return plain and os.environ.get(SWITCH, "1") != "0" and compiles()


@cache
def compiles() -> bool:
    """Whether torch can write kernels for this GPU: it needs Triton, and one not too old for that."""
    return bool(has_triton())


def bias_by_offset(position: PositionBias, *, causal: bool) -> Tensor:
    """[H, O]: the same for all lengths, so that nothing inside the kernel depends on them."""
    from torch import _dynamo as dynamo  # seconds to import, so where it is needed only

    span = max(SPAN, position.far)
    bias_HO = position.by_offset(span + 1, span + 1, causal=causal).float().contiguous()
    dynamo.mark_static(bias_HO)
    return bias_HO


def view(bias_HO: Tensor | None, query_BL: Tensor, key_BM: Tensor, *, causal: bool = False) -> View:
    """`query_BL` and `key_BM` say which example each belongs to, 0 for none: a mask, or the segments of packed rows."""
    query_BL, key_BM = query_BL.int(), key_BM.int()
    query_BL = query_BL.masked_fill(query_BL == 0, -1)
    query_BL = F.pad(query_BL, (0, max(0, BLOCK - query_BL.shape[1])), value=-1)
    return View(bias_HO, query_BL, key_BM, lists(query_BL, key_BM, causal=causal), causal)


def lists(query_BL: Tensor, key_BM: Tensor, *, causal: bool) -> Lists:
    """From the lowest and highest number in each block: never a number for a pair of query and key.

    Numbers that rise along a row, as a packer's do, give the fewest blocks; any others a few too many, which the mask
    inside the kernel makes up for.
    """
    low_BX, high_BX, one_BX = extent(query_BL)
    low_BY, high_BY, one_BY = extent(key_BM)
    some_BXY = (low_BX[:, :, None] <= high_BY[:, None]) & (low_BY[:, None] <= high_BX[:, :, None])
    whole_BXY = one_BX[:, :, None] & one_BY[:, None] & (high_BX[:, :, None] == high_BY[:, None])
    if causal:
        some_BXY, whole_BXY = some_BXY.tril(), whole_BXY.tril(-1)
    parts = some_BXY & ~whole_BXY, whole_BXY
    rows, columns = [x for part in parts for x in first(part)], [x for part in parts for x in first(part.mT)]
    return Lists(*rows, *columns)


def extent(number_BN: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, blocks] each: the lowest and the highest number above 0, and whether the block is all one such number.

    At least two blocks, since torch would compile a size of 1 by itself.
    """
    length = number_BN.shape[1]
    blocks = max(2, -(-length // BLOCK))
    number_BXN = F.pad(number_BN, (0, blocks * BLOCK - length)).unflatten(1, (blocks, BLOCK))
    low_BX = number_BXN.masked_fill(number_BXN <= 0, UNSEEN).amin(-1)
    high_BX = number_BXN.clamp(min=0).amax(-1)
    return low_BX, high_BX, (number_BXN.amin(-1) == high_BX) & (high_BX > 0)


def first(seen_BXY: Tensor) -> tuple[Tensor, Tensor]:
    """[B, 1, X] how many are true in each row, and [B, 1, X, Y] their places, these first.

    >>> [x.tolist() for x in first(torch.tensor([[[False, True, True]]]))]
    [[[[2]]], [[[[1, 2, 0]]]]]
    """
    place_BXY = seen_BXY.int().argsort(dim=-1, descending=True, stable=True)
    return seen_BXY.sum(-1).int()[:, None], place_BXY.int()[:, None].contiguous()


def attention(query_BHLK: Tensor, key_BGMK: Tensor, value_BGMK: Tensor, seen: View) -> Tensor:
    """softmax(query key^T + bias) value, [B, H, L, K]. A query that sees nothing gets zeros."""
    from torch import _dynamo as dynamo
    from torch.fx.experimental import _config

    sizes: Any = _config
    _, heads, length, width = query_BHLK.shape
    missing = seen.query_BL.shape[1] - length
    if missing:
        # Below a block torch considers another kernel, and compiles again. The copy looks like any other projection.
        filled_BLI = F.pad(query_BHLK.transpose(1, 2).flatten(2), (0, 0, 0, missing))
        query_BHLK = filled_BLI.unflatten(-1, (heads, width)).transpose(1, 2)
    # Equal sizes are not to be taken for one size: torch would compile again when they part.
    with dynamo.config.patch(recompile_limit=VARIANTS), sizes.patch(use_duck_shape=False):
        mixed_BHLK = compiled()(query_BHLK, key_BGMK, value_BGMK, *seen[:3], *seen.lists, seen.causal)
    return mixed_BHLK[:, :, :length]


@cache
def compiled() -> Callable[..., Tensor]:
    """`attend`, compiled for all lengths and batch sizes at once."""
    return torch.compile(attend, dynamic=True, fullgraph=True)


def attend(
    query_BHLK: Tensor,
    key_BGMK: Tensor,
    value_BGMK: Tensor,
    bias_HO: Tensor | None,
    query_BL: Tensor,
    key_BM: Tensor,
    number_B1X: Tensor,
    block_B1XY: Tensor,
    whole_number_B1X: Tensor,
    whole_block_B1XY: Tensor,
    by_key_number_B1Y: Tensor,
    by_key_B1YX: Tensor,
    by_key_whole_number_B1Y: Tensor,
    by_key_whole_B1YX: Tensor,
    causal: bool,
) -> Tensor:
    """Tensors alone, and a flag, so that torch has nothing else to watch for changes."""

    def sees(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        equal = query_BL[batch, query] == key_BM[batch, key]
        return equal & (key <= query) if causal else equal

    def biased(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        assert bias_HO is not None
        span = bias_HO.shape[1] // 2
        return score + bias_HO[head, (key - query).clamp(-span, span) + span]

    mask = BlockMask(
        seq_lengths=(query_BHLK.shape[2], key_BGMK.shape[2]),
        kv_num_blocks=number_B1X,
        kv_indices=block_B1XY,
        full_kv_num_blocks=whole_number_B1X,
        full_kv_indices=whole_block_B1XY,
        q_num_blocks=by_key_number_B1Y,
        q_indices=by_key_B1YX,
        full_q_num_blocks=by_key_whole_number_B1Y,
        full_q_indices=by_key_whole_B1YX,
        BLOCK_SIZE=(BLOCK, BLOCK),
        mask_mod=sees,
    )
    mixed: Tensor = flex_attention(
        query_BHLK,
        key_BGMK,
        value_BGMK,
        score_mod=None if bias_HO is None else biased,
        block_mask=mask,
        scale=1.0,
        enable_gqa=query_BHLK.shape[1] != key_BGMK.shape[1],
    )
    return mixed


def dense(seen: View, queries: int, keys: int) -> Tensor:
    """What a `View` says, laid out as a bias that broadcasts to [B, H, L, M]: for who cannot use the kernel."""
    bias = torch.zeros((), device=seen.key_BM.device)
    if seen.bias_HO is not None:
        offset_O = torch.arange(1 - queries, keys, device=bias.device)
        span = seen.bias_HO.shape[1] // 2
        bias = along_diagonals(seen.bias_HO[:, offset_O.clamp(-span, span) + span], queries, keys)
    equal_BLM = seen.query_BL[:, :queries, None] == seen.key_BM[:, None]
    return torch.where((equal_BLM.tril() if seen.causal else equal_BLM)[:, None], bias, MASKED)
