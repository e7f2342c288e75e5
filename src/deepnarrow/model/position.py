"""T5's relative position bias: how far apart, in buckets, each bucket with one learned number per head.

Shape key   L query length   M key length   O offsets, L + M - 1 of them   H heads

Raffel et al. 2020 (arXiv:1910.10683), section 2.1. The bias depends on `key position - query position` alone, so
[H, L, M] numbers are L + M - 1 different ones per head: look those up, then lay them out along the diagonals.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.shapes import Shape

# A masked logit. Finite, since a row of nothing but -inf would turn into NaN; bfloat16's minimum, since float32's is
# -inf once it is rounded to bfloat16.
MASKED = torch.finfo(torch.bfloat16).min


def position_bucket(offset: Tensor, *, causal: bool, buckets: int = 32, far: int = 128) -> Tensor:
    """Bucket of `key position - query position`: exact when near, logarithmic up to `far`, then all one.

    An encoder splits the buckets between past and future; a causal decoder spends all of them on the past.

    >>> position_bucket(torch.tensor([-200, -20, -3, 0, 3, 20, 200]), causal=False).tolist()
    [15, 10, 3, 0, 19, 26, 31]
    >>> position_bucket(torch.tensor([-200, -20, -3, 0]), causal=True).tolist()
    [31, 17, 3, 0]
    """
    if causal:
        side, distance = torch.zeros_like(offset), (-offset).clamp(min=0)
    else:
        buckets //= 2
        side, distance = (offset > 0) * buckets, offset.abs()
    exact = buckets // 2
    ratio = (distance.clamp(min=1).float() / exact).log() / math.log(far / exact)
    logarithmic = (exact + (ratio * (buckets - exact)).long()).clamp(max=buckets - 1)
    return side + torch.where(distance < exact, distance, logarithmic)


class PositionBias(nn.Module):
    """One stack's table, shared by its layers. With shared stacks the encoder reads it both ways, the decoder back."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.buckets, self.far = shape.relative_buckets, shape.relative_distance
        self.table = nn.Parameter(torch.zeros(shape.relative_buckets, shape.num_heads))

    def forward(self, queries: int, keys: int, *, causal: bool) -> Tensor:
        """Bias [1, H, L, M] of the last `queries` positions of `keys`; for a causal stack the future is `MASKED`."""
        return along_diagonals(self.by_offset(queries, keys, causal=causal), queries, keys)

    def by_offset(self, queries: int, keys: int, *, causal: bool) -> Tensor:
        """[H, O]: one number per head for each offset, from the last query's first key to the first query's last."""
        offset_O = torch.arange(1 - keys, queries, device=self.table.device)
        bucket_O = position_bucket(offset_O, causal=causal, buckets=self.buckets, far=self.far)
        # Where heads are split over devices the table is a DTensor, and this process wants its own heads.
        table = self.table.to_local() if hasattr(self.table, "to_local") else self.table
        bias_HO = F.embedding(bucket_O, table).T
        return bias_HO.masked_fill(offset_O > 0, MASKED) if causal else bias_HO


def along_diagonals(bias_HO: Tensor, queries: int, keys: int) -> Tensor:
    """[H, O] -> [1, H, L, M] with `bias[h, l, m] = by_offset[h, m - l + L - 1]`.

    Rows of O equal copies, re-read as rows of O - 1, drift by one step a row, which is the diagonal layout. It is
    copies and views in both directions; gathering would make the gradient a serial scatter of L * M numbers.

    >>> along_diagonals(torch.tensor([[-2, -1, 0, 1]]), 2, 3).tolist()
    [[[[-1, 0, 1], [-2, -1, 0]]]]
    """
    if queries == 1:
        return bias_HO[None, :, None, :]
    heads, offsets = bias_HO.shape
    copies = bias_HO[:, None, :].expand(heads, queries, offsets).reshape(heads, queries * offsets)
    drifted = copies[:, queries - 1 : queries - 1 + queries * (offsets - 1)].view(heads, queries, offsets - 1)
    return drifted[None, :, :, :keys]
