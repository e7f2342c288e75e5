"""Draws of dropout that do not depend on how a batch is spread over devices.

Every process draws for all rows and all channels, from the same seed, and keeps what belongs to it. T5 shares its draws
along the sequence (layers.py `dropped`), so they are few: a row in 500 of the numbers they multiply.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Part:
    """What belongs to this process. The usual value is everything."""

    first: int = 0  # its first row
    rows: int | None = None  # of all processes together; None: those of the tensor
    place: int = 0  # among the processes that split heads and the feed-forward's hidden layer
    places: int = 1


_part = Part()  # of the process, not of a thread: the backward pass may draw again, in a thread of its own


@contextmanager
def part(**changes: Any) -> Iterator[None]:
    """Within the block, draw for this part."""
    global _part
    before, _part = _part, replace(_part, **changes)
    try:
        yield
    finally:
        _part = before


def kept(size: Sequence[int], rate: float, device: torch.device, *, split: int | None = None) -> Tensor:
    """Float32 [*size], `1 / (1 - rate)` with probability `1 - rate`, else 0.

    `split` is the axis that tensor parallelism divides, if it divides any. Rows behind the last of all processes are
    empty ones; they get 1.

    >>> whole = (torch.manual_seed(0), kept((4, 6), 0.5, torch.device("cpu")))[1]
    >>> with part(first=2, rows=4, place=1, places=2):
    ...     mine = (torch.manual_seed(0), kept((2, 3), 0.5, torch.device("cpu"), split=1))[1]
    >>> torch.equal(mine, whole[2:, 3:])
    True
    """
    rows, wide = size[0], list(size)
    if _part.rows is not None:
        wide[0] = _part.rows
    if split is not None:
        wide[split] *= _part.places
    drawn = torch.empty(wide, device=device).bernoulli_(1 - rate).div_(1 - rate)
    if split is not None and _part.places > 1:
        drawn = drawn.narrow(split, _part.place * size[split], size[split])
    if _part.rows is None:
        return drawn
    mine = drawn[_part.first : _part.first + rows]
    return torch.cat([mine, mine.new_ones(rows - len(mine), *mine.shape[1:])]) if len(mine) < rows else mine
