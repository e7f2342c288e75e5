"""Draws of dropout that do not depend on how a batch is spread over devices.

Every process draws for all rows and all channels, from the same seed, and keeps what belongs to it. T5 shares its draws
along the sequence (layers.py `dropped`), so they are few: a row in 500 of the numbers they multiply.
"""

from collections.abc import Callable, Iterator, Sequence
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


DRAWS = 8  # for each packed row and channel: the examples of a row take turns with them

_examples: tuple[torch.Size, Tensor] | None = None  # [B, L], and which of all rows' draws each position takes
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


@contextmanager
def examples(segments_BL: Tensor | None) -> Iterator[None]:
    """Within the block, rows hold several examples each: every position's, from 1; None: a row is one example.

    A draw for a whole packed row would be one for many examples, whose noise then no longer averages out in a batch.
    """
    with _taking(None if segments_BL is None else _turns(segments_BL)):
        yield


def as_now(call: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same call, whenever it is made, with the examples of now: for a block that is computed again."""
    now = _examples

    def called(*inputs: Any) -> Tensor:
        with _taking(now):
            return call(*inputs)

    return called


@contextmanager
def _taking(found: tuple[torch.Size, Tensor] | None) -> Iterator[None]:
    global _examples
    before, _examples = _examples, found
    try:
        yield
    finally:
        _examples = before


def _turns(segments_BL: Tensor) -> tuple[torch.Size, Tensor]:
    rows = torch.arange(len(segments_BL), device=segments_BL.device)[:, None]
    return segments_BL.shape, (rows * DRAWS + segments_BL % DRAWS).flatten()


def shared(size: Sequence[int], rate: float, device: torch.device, *, split: int | None = None) -> Tensor:
    """What a tensor of this size [..., L, C] is multiplied by: one draw along an example, [..., 1, C] or [B, L, C]."""
    if _examples is None or tuple(size[:-1]) != tuple(_examples[0]):
        return kept([*size[:-2], 1, size[-1]], rate, device, split=split)
    drawn = kept([size[0], DRAWS, size[-1]], rate, device, split=split)
    return drawn.flatten(0, 1).index_select(0, _examples[1]).view(*size)


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
