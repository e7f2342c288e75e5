"""Examples of unequal length put together: padded, bucketed by length, or packed several to a row.

A batch counts examples, whichever way it is laid out, so that an update means the same in all three and the loss is
the same number; only the padding differs. T5 packs in training (`pack=True`), and counts rows instead.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError

SLACKS = (1.0, 1.03, 1.08, 1.16, 1.3, 1.6)  # how much wider than a fair share a row is tried
CAPS = (0.0, 0.2, 0.4, 0.6, 0.8)  # where between the longest example and the room a row may end, as another try
MORE_ROWS = 3  # numbers of rows that are tried, from the fewest on
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
    """Several examples to a row of at most `input_length` and `target_length` tokens, with little padding.

    The rows come out as wide as the fullest. Of several ways to fill them, the one with the fewest places is taken.

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
    rows = min(ways(lengths, room), key=lambda found: places(lengths, found))
    sides = [_lay_out([[pairs[example][side] for example in row] for row in rows]) for side in (0, 1)]
    return Batch(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def ways(lengths: np.ndarray, room: np.ndarray) -> Iterator[list[list[int]]]:
    """Rows of examples, in several ways: `lengths` int [N, 2] into rows with `room` [2].

    First fit is best where examples are long beside the room, levelling where they are short.
    """
    yield narrowed(lengths, room, first_fit(lengths, room))
    longest = lengths.max(axis=0)
    for share in CAPS:
        cap = longest[0] + int(share * (room[0] - longest[0]))
        yield first_fit(lengths, np.array([cap, room[1]]))
    fewest = max(1, int(np.ceil((lengths.sum(axis=0) / room).max())))
    for count in range(fewest, min(fewest + MORE_ROWS, len(lengths) + 1)):
        rows = levelled(lengths, count)
        if (_fullest(lengths, rows) <= room).all():
            yield rows


def places(lengths: np.ndarray, rows: list[list[int]]) -> int:
    """Tokens and padding of both sides, widths rounded up."""
    return len(rows) * int((-(-_fullest(lengths, rows) // MULTIPLE) * MULTIPLE).sum())


def _fullest(lengths: np.ndarray, rows: list[list[int]]) -> np.ndarray:
    """Tokens of the fullest row, of either side: [2]."""
    found: np.ndarray = np.max([lengths[row].sum(axis=0) for row in rows], axis=0)
    return found


def narrowed(lengths: np.ndarray, room: np.ndarray, rows: list[list[int]]) -> list[list[int]]:
    """As many rows, of less than `room` [2] where that is possible, so that the last one is not half empty."""
    for slack in SLACKS:
        fair = np.ceil(lengths.sum(axis=0) / len(rows) * slack).astype(np.int64)
        tighter = first_fit(lengths, np.minimum(room, np.maximum(fair, lengths.max(axis=0))))
        if len(tighter) == len(rows):
            return tighter
    return rows


def levelled(lengths: np.ndarray, count: int) -> list[list[int]]:
    """`count` rows, each example in the one that stays least full by it, the longest first (Graham 1969).

    >>> levelled(np.array([[5, 1], [3, 1], [3, 1], [2, 1]]), 2)
    [[0, 3], [1, 2]]
    """
    share = lengths / (lengths.sum(axis=0) / count)  # of a row that is as full as all others
    full = np.zeros((count, 2))
    rows: list[list[int]] = [[] for _ in range(count)]
    for example in np.argsort(-share.max(axis=1), kind="stable").tolist():
        after = full + share[example]
        row = int(np.argmin(after.max(axis=1) + 1e-3 * after.sum(axis=1)))  # where two are alike, the emptier one
        rows[row].append(example)
        full[row] = after[row]
    return [row for row in rows if row]


def first_fit(lengths: np.ndarray, room: np.ndarray) -> list[list[int]]:
    """The longest first, each into the first row that still holds it.

    At most 11/9 of the best number of rows come out, where one side counts (Johnson 1973).
    """
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
