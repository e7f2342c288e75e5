"""Token by token: the loop that greedy decoding and sampling share, and greedy decoding.

Shape key   A sequences still in the batch   T most tokens   V vocabulary
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from deepnarrow.model.cache import Cache
from deepnarrow.model.limits import Limits, Output, Tell, allow, ended
from deepnarrow.model.t5 import PAD, T5
from deepnarrow.runtime import options

Choose = Callable[[Tensor, Tensor, int], Tensor]  # logits [A, V], the sequences' numbers [A], the step -> ids [A]


class Greedy(options.Greedy):
    """The most likely token each time."""

    def answers(
        self, model: T5, cache: Cache, limits: Limits, rows: Sequence[int], tell: Tell | None
    ) -> list[list[Output]]:
        return [[output] for output in extend(model, cache, limits, most_likely, rows, tell)]


def most_likely(logits_AV: Tensor, number_A: Tensor, step: int) -> Tensor:
    """The id of the largest logit; of equal ones the first, so that it does not depend on the batch."""
    return logits_AV.argmax(-1)


def extend(
    model: T5, cache: Cache, limits: Limits, choose: Choose, rows: Sequence[int], tell: Tell | None = None
) -> list[Output]:
    """One sequence for each row of a fresh cache, each token chosen from its logits.

    `tell` hears each token at once, but those that end a sequence by themselves; `rows` are its names for the rows.
    """
    device = cache.bias_HO.device
    number_A = torch.arange(cache.rows, device=device)
    ids_AT = torch.full((cache.rows, limits.max_tokens), PAD, device=device)
    length_A = torch.zeros(cache.rows, dtype=torch.long, device=device)
    score_A = torch.zeros(cache.rows, dtype=torch.float64, device=device)
    open_A = torch.ones(cache.rows, dtype=torch.bool, device=device)
    outputs: dict[int, Output] = {}

    def close(which_A: Tensor) -> None:
        for number, ids, length, score in zip(
            number_A[which_A].tolist(),
            ids_AT[which_A].tolist(),
            length_A[which_A].tolist(),
            score_A[which_A].tolist(),
            strict=True,
        ):
            outputs[number] = Output(limits.without_end(ids[:length]), score)

    last_A = ids_AT[:, 0]  # the decoder's first input is PAD too
    for step in range(limits.max_tokens):
        logits_AV = model.decode(last_A[:, None], None, None, cache)[:, -1].float()
        total_A = logits_AV.logsumexp(-1)
        logits_AV = allow(limits, logits_AV, step)
        chosen_A = choose(logits_AV, number_A, step)
        gain_A = logits_AV.gather(1, chosen_A[:, None])[:, 0] - total_A
        score_A += gain_A.where(open_A, 0.0)
        length_A += open_A
        last_A = chosen_A.where(open_A, PAD)
        ids_AT[:, step] = last_A
        if tell:
            announce(tell, rows, number_A[open_A].tolist(), last_A[open_A].tolist(), limits)
        open_A &= ~ended(limits, ids_AT, step)
        left = int(open_A.sum())
        if not left:
            break
        if few(left, len(open_A)):
            close(~open_A)
            keep = open_A.nonzero()[:, 0]
            cache.reorder(keep)
            number_A, ids_AT, length_A, score_A, last_A, open_A = (
                x[keep] for x in (number_A, ids_AT, length_A, score_A, last_A, open_A)
            )
    close(torch.ones_like(open_A))
    return [outputs[number] for number in range(len(outputs))]


def few(left: int, rows: int) -> bool:
    """Whether enough rows are finished to take them out of the batch.

    Taking rows out copies the rows that stay. Waiting for a quarter keeps the copies of one batch, all together, below
    four of its first size, and what finished rows still cost below a third of the others' work.
    """
    return left <= 0.75 * rows


def announce(tell: Tell, rows: Sequence[int], numbers: list[int], ids: list[int], limits: Limits) -> None:
    for number, id in zip(numbers, ids, strict=True):
        if id not in limits.end_ids:
            tell(rows[number], id)
