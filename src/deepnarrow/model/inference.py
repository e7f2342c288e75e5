"""Between callers and a model in use: rows of token ids in, padded batches out, no gradient, no dropout.

Shape key   B rows of a batch   L input length   D d_model

A batch has a budget of tokens, so that short inputs go many at a time and long ones few. What is best was measured with
t5-efficient-tiny on two cores: an encoder is quickest where a batch's activations stay in the processor's cache, 2,048
tokens (16,384 took half as long again), a decoder where many rows share each pass over the output matrix. So on a CPU
the encoder takes a batch in pieces, the decoder takes it whole.
"""

from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deepnarrow.errors import UserError
from deepnarrow.model import native
from deepnarrow.model.prompt import Prompts
from deepnarrow.model.t5 import PAD, T5

Row = TypeVar("Row", bound=Hashable)

BUDGET = {"cpu": 8192, "cuda": 16384}  # input tokens of one batch
PIECE = 2048  # tokens that the encoder takes at once on a CPU
LEAST = 32  # tokens that a row counts at least, which bounds the rows of a batch and so its logits
WINDOW = 64  # batches sorted by length together: enough to fill them evenly, few enough that answers come in time


@contextmanager
def inference(model: nn.Module) -> Iterator[torch.device]:
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


def check_batch(batch: int | None) -> None:
    if batch is not None and batch < 1:
        raise UserError(f"the batch must be at least 1, not {batch}")


def budget(device: torch.device, width: int = 1) -> int:
    """Input tokens of one batch where each input has `width` rows of the model."""
    return max(LEAST, BUDGET.get(device.type, BUDGET["cpu"]) // width)


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


def encode_rows(model: T5, input_BL: Tensor, prompts: Prompts | None = None) -> tuple[Tensor, Tensor]:
    """The encoder's output [B, L, D] and its mask, for rows sorted by length, the longest first.

    On a CPU in pieces of `PIECE` tokens, each only as wide as its own rows, and by the kernels of training. With a
    learned prompt, the model's or the rows' own `prompts`, L is longer by it.
    """
    mask_BL = input_BL != PAD
    whole_BL = model.memory_mask(mask_BL, prompts)
    rows, length = input_BL.shape
    if input_BL.device.type != "cpu" or rows * length <= PIECE:
        return model.encode(input_BL, mask_BL, prompts=prompts), whole_BL
    at_L = torch.arange(1, length + 1)
    used_B = (mask_BL * at_L).amax(-1).tolist()  # up to each row's last token
    wide_weights = model.embedding.weight.dtype is torch.float32  # in bfloat16 the kernels round otherwise than torch
    parts = []
    at = 0
    while at < rows:
        size = max(1, PIECE // max(1, used_B[at]))
        wide = max(used_B[at : at + size])
        here = slice(at, at + size)
        part = None if prompts is None else prompts.of(here)
        with native.without_gradient() if wide_weights else nullcontext():
            part_BLD = model.encode(input_BL[here, :wide], mask_BL[here, :wide], prompts=part)
        parts.append(F.pad(part_BLD, (0, 0, 0, whole_BL.shape[1] - part_BLD.shape[1])))
        at += size
    return torch.cat(parts), whole_BL


def pad(rows: Sequence[Sequence[int]], device: torch.device | None = None) -> Tensor:
    """Rows of unequal lengths as one tensor [B, longest] of int64, filled up with 0.

    >>> pad([[5, 6, 1], [7, 1]]).tolist()
    [[5, 6, 1], [7, 1, 0]]
    """
    longest = max(len(row) for row in rows)
    return torch.tensor([[*row, *[PAD] * (longest - len(row))] for row in rows], dtype=torch.long, device=device)
