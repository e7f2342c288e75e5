"""Rows of token ids on their way in: what is refused, and which go together.

A batch has a budget of tokens, so that short rows go many at a time and long ones few.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import TypeVar

from deepnarrow.errors import UserError

Row = TypeVar("Row", bound=Hashable)

PAD = 0
LEAST = 32  # tokens that a row counts at least, which bounds the rows of a batch and so its logits
WINDOW = 64  # batches sorted by length together: enough to fill them evenly, few enough that answers come in time


def check_rows(rows: Sequence[Sequence[int]], vocab: int, what: str) -> None:
    """Refuse empty rows and ids outside the model's vocabulary; `what` names the rows in the error."""
    for number, row in enumerate(rows, start=1):
        if not any(id != PAD for id in row):
            raise UserError(f"{what} {number} has no tokens; end it with the EOS id so that there is at least one")
        if min(row) < 0 or max(row) >= vocab:
            wrong = min(row) if min(row) < 0 else max(row)
            raise UserError(
                f"{what} {number} holds token id {wrong}, but the model's vocabulary has the ids 0 to {vocab - 1}; "
                "use the tokenizer the model was trained with"
            )


def check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise UserError(f"the batch must be at least 1, not {batch}")


def batches_by_length(rows: Sequence[Sequence[int]], batch: int | None, tokens: int = 0) -> Iterator[list[int]]:
    """Indices of rows for each batch: rows of like length together, the longest first, so that little is padded.

    A batch has `batch` rows; with None as many as their padded length allows within `tokens`, at least one. Sorting
    goes by windows of `WINDOW` batches, so that the first rows are answered early.

    >>> list(batches_by_length([[5], [5, 6, 7], [5, 6]], 2))
    [[1, 2], [0]]
    >>> list(batches_by_length([[5] * 40, [5] * 90, [5] * 50], None, tokens=100))
    [[1], [2, 0]]
    """
    for window in windows(rows, batch, tokens):
        ordered = sorted(window, key=lambda index: -len(rows[index]))
        at = 0
        while at < len(ordered):
            size = batch or max(1, tokens // counted(rows[ordered[at]]))
            yield ordered[at : at + size]
            at += size


def windows(rows: Sequence[Sequence[int]], batch: int | None, tokens: int) -> Iterator[range]:
    """Runs of rows that hold about `WINDOW` batches."""
    if batch is not None:
        for start in range(0, len(rows), batch * WINDOW):
            yield range(start, min(start + batch * WINDOW, len(rows)))
        return
    start = held = 0
    for place, row in enumerate(rows):
        held += counted(row)
        if held >= tokens * WINDOW:
            yield range(start, place + 1)
            start, held = place + 1, 0
    if start < len(rows):
        yield range(start, len(rows))


def counted(row: Sequence[int]) -> int:
    return max(len(row), LEAST)


def distinct(rows: Sequence[Row]) -> tuple[list[Row], list[int]]:
    """Each different row once, and for every row its place among them.

    >>> distinct([(7, 1), (8, 1), (7, 1)])
    ([(7, 1), (8, 1)], [0, 1, 0])
    """
    places: dict[Row, int] = {}
    where = [places.setdefault(row, len(places)) for row in rows]
    return list(places), where
