"""Between callers and a model in use: rows of token ids in, padded batches out, no gradient, no dropout."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.t5 import PAD, T5

WINDOW = 64  # batches sorted by length together: enough to fill them evenly, few enough that answers come in time


@contextmanager
def inference(model: T5) -> Iterator[torch.device]:
    """Run the block without gradient and dropout, then leave the model as it was. Yields the model's device."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield next(model.parameters()).device
    finally:
        model.train(training)


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


def check_batch(batch: int) -> None:
    if batch < 1:
        raise UserError(f"the batch must be at least 1, not {batch}")


def batches_by_length(rows: Sequence[Sequence[int]], batch: int) -> Iterator[list[int]]:
    """Indices of rows for each batch: rows of like length together, the longest first, so that little is padded.

    Sorting goes by windows of `WINDOW` batches, so that the first rows are answered early.

    >>> list(batches_by_length([[5], [5, 6, 7], [5, 6]], 2))
    [[1, 2], [0]]
    """
    for start in range(0, len(rows), batch * WINDOW):
        window = range(start, min(start + batch * WINDOW, len(rows)))
        ordered = sorted(window, key=lambda index: -len(rows[index]))
        yield from (ordered[at : at + batch] for at in range(0, len(ordered), batch))


def pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """Rows of unequal lengths as one tensor [B, longest] of int64, filled up with 0.

    >>> pad([[5, 6, 1], [7, 1]]).tolist()
    [[5, 6, 1], [7, 1, 0]]
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)
