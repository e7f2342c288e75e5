"""Examples of unequal length put together: padded, bucketed by length, or packed several to a row.

A batch counts examples, whichever way it is laid out, so that an update means the same in all three and the loss is
the same number; only the padding differs. T5 packs in training (`pack=True`), and counts rows instead.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError

SLACKS = (1.0, 1.03, 1.08, 1.16, 1.3, 1.6)  # how much wider than a fair share a row is tried
MULTIPLE = 8  # widths are rounded up to this, so that few distinct shapes occur

Pair = tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]  # inputs and targets, EOS included


class Batch(NamedTuple):
    """What a training step reads. The decoder's input (targets shifted right, start 0) is made by the model."""

    inputs: np.ndarray  # int64 [B, L], 0 = padding, EOS included
    targets: np.ndarray  # int64 [B, T], 0 = padding, EOS included
    # Packed rows hold several examples: the number of each token's example in its row, from 1; 0 = padding.
    input_segments: np.ndarray | None = None  # int64 [B, L]
    target_segments: np.ndarray | None = None  # int64 [B, T]

    @property
    def tokens(self) -> int:
        """Real tokens, padding not counted."""
        return int(np.count_nonzero(self.inputs) + np.count_nonzero(self.targets))

    @property
    def places(self) -> int:
        """Tokens and padding together: what the model computes on."""
        return self.inputs.size + self.targets.size


def pad(pairs: Sequence[Pair], exact: bool = False) -> Batch:
    """One example a row, both sides as long as their longest, rounded up to a multiple of 8.

    With `exact`, examples that are all equally long are not padded.

    >>> pad([([5, 6, 1], [7, 1]), ([1], [1])]).inputs.tolist()
    [[5, 6, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    """
    sides = [[pair[side] for pair in pairs] for side in (0, 1)]
    if exact and all(len({len(ids) for ids in side}) == 1 for side in sides):
        return Batch(*(np.array(side, np.int64) for side in sides))
    return Batch(*map(padded, sides))


def pack(pairs: Sequence[Pair], input_length: int, target_length: int) -> Batch:
    """Several examples to a row of at most `input_length` and `target_length` tokens, in as few rows as come out.

    First fit, the longest first: what is long gets a row of its own, what is short fills it up (Johnson 1973 shows that
    this needs at most 11/9 of the best number of rows, when one side counts). Then the rows are made as narrow as the
    same number of rows allows, so that the last one is not half empty.

    >>> batch = pack([([5, 1], [6, 1]), ([7, 8, 1], [9, 1]), ([3, 3, 3, 3, 1], [4, 1])], 8, 8)
    >>> batch.inputs.tolist()
    [[3, 3, 3, 3, 1, 0, 0, 0], [5, 1, 7, 8, 1, 0, 0, 0]]
    >>> batch.input_segments.tolist()
    [[1, 1, 1, 1, 1, 0, 0, 0], [1, 1, 2, 2, 2, 0, 0, 0]]
    """
    lengths = np.array([[len(side) for side in pair] for pair in pairs], np.int64)
    room = np.array([input_length, target_length], np.int64)
    if (lengths > room).any():
        longest = lengths.max(axis=0).tolist()
        raise UserError(
            f"an example of {longest[0]} and {longest[1]} tokens does not fit a row of {input_length} and "
            f"{target_length}; raise the input or target length"
        )
    rows = narrowed(lengths, room, first_fit(lengths, room))
    sides = [_lay_out([[pairs[example][side] for example in row] for row in rows]) for side in (0, 1)]
    return Batch(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def narrowed(lengths: np.ndarray, room: np.ndarray, rows: list[list[int]]) -> list[list[int]]:
    """As many rows, of less than `room` [2] where that is possible."""
    for slack in SLACKS:
        fair = np.ceil(lengths.sum(axis=0) / len(rows) * slack).astype(np.int64)
        tighter = first_fit(lengths, np.minimum(room, np.maximum(fair, lengths.max(axis=0))))
        if len(tighter) == len(rows):
            return tighter
    return rows


def first_fit(lengths: np.ndarray, room: np.ndarray) -> list[list[int]]:
    """Which examples share a row: `lengths` int [N, 2] into rows with `room` [2]."""
    order = np.argsort(-(lengths / room).max(axis=1), kind="stable")
    free = np.empty((len(lengths), 2), np.int64)
    rows: list[list[int]] = []
    for example in order.tolist():
        fits = np.flatnonzero((free[: len(rows)] >= lengths[example]).all(axis=1))
        if fits.size:
            row = int(fits[0])
        else:
            row = len(rows)
            rows.append([])
            free[row] = room
        rows[row].append(example)
        free[row] -= lengths[example]
    return rows


def _lay_out(rows: list[list[Sequence[int] | np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Ids and segment numbers of rows of examples, both int64 [B, longest row rounded up]."""
    width = -(-max(sum(map(len, row)) for row in rows) // MULTIPLE) * MULTIPLE
    ids, segments = np.zeros((2, len(rows), width), np.int64)
    for line, numbers, row in zip(ids, segments, rows, strict=True):
        end = 0
        for number, example in enumerate(row, 1):
            start, end = end, end + len(example)
            line[start:end] = example
            numbers[start:end] = number
    return ids, segments


def padded(rows: Sequence[Sequence[int] | np.ndarray]) -> np.ndarray:
    """Lists of ids as int64 [B, longest rounded up to a multiple of 8], 0 behind each.

    >>> padded([[5, 6, 1], [1]]).tolist()
    [[5, 6, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    """
    longest = max((len(row) for row in rows), default=0)
    out = np.zeros((len(rows), max(-(-longest // MULTIPLE), 1) * MULTIPLE), np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


def cut(ids: Sequence[int] | np.ndarray, length: int, eos: int) -> np.ndarray:
    """At most `length` ids, the last of which stays EOS.

    >>> cut([5, 6, 7, 1], 3, eos=1).tolist()
    [5, 6, 1]
    """
    whole = np.asarray(ids, np.int64)
    return whole if len(whole) <= length else np.append(whole[: length - 1], eos)
