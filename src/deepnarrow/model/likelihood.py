"""How likely given targets are: a pair's log-likelihood, and choosing among fixed answers by it.

Shape key   B inputs   T target length   D d_model   V vocabulary   N inputs   C choices   n real target tokens

Choosing by likelihood suits tasks with a closed set of labels: the answer is always a label, and no search is run
(Brown et al. 2020, arXiv:2005.14165, section 2.4; T5 itself generated the label and counted anything else as wrong).
"""

from collections.abc import Sequence
from contextlib import nullcontext
from copy import copy

import numpy as np
import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.inference import batches_by_length, budget, check_batch, check_rows, encode_rows, inference, pad
from deepnarrow.model.t5 import T5, shift_right
from deepnarrow.progress import progress as show_progress

TOGETHER = 32  # rows of the decoder, inputs times choices, below which several choices are read at once
LOGITS = 2**25  # most logits at once, 128 MiB in float32: long targets of a large vocabulary would need gigabytes


def score(
    model: T5,
    inputs: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    batch: int | None = None,
    normalise: bool = False,
    progress: bool = False,
) -> list[float]:
    """log p(target | input) of each pair, in nats, summed over the target's tokens as given (so with its EOS).

    `batch` inputs at once, None: as many as is quick. `normalise` divides by the number of tokens. Logits of a model in
    any dtype are normalised in float32. Raises `UserError` for unequal numbers, for rows without tokens, for ids
    outside the vocabulary.
    """
    check_batch(batch)
    if len(inputs) != len(targets):
        raise UserError(f"each input needs one target, but there are {len(inputs)} inputs and {len(targets)} targets")
    check_rows(inputs, model.shape.vocab, "input")
    check_rows(targets, model.shape.vocab, "target")
    both = [[*source, *target] for source, target in zip(inputs, targets, strict=True)]
    found = np.zeros(len(inputs))
    tokens = budget(next(model.parameters()).device)
    with show_progress("score", len(inputs)) if progress else nullcontext() as bar:
        for rows in batches_by_length(both, batch, tokens):
            with inference(model) as device:
                memory_BLD, mask_BL = encode_rows(model, pad([inputs[row] for row in rows], device))
                chosen = [targets[row] for row in rows]
                target_BT = pad(chosen, device)
                hidden_BTD = model.decode_hidden(shift_right(target_BT), memory_BLD, mask_BL)
                found[rows] = summed(model, hidden_BTD, target_BT, [len(target) for target in chosen])
            if bar:
                bar.advance(len(rows))
    return (found / [len(target) for target in targets] if normalise else found).tolist()


def rank(
    model: T5,
    inputs: Sequence[Sequence[int]],
    choices: Sequence[Sequence[int]],
    *,
    batch: int | None = None,
    normalise: bool = False,
    progress: bool = False,
) -> np.ndarray:
    """log p(choice | input) of every choice for every input, float64 [N, C]; `score` of all pairs, but quicker.

    Each input is encoded once and its keys and values are computed once for all choices. `normalise` divides by the
    choice's number of tokens, which takes away most of the advantage of short choices.
    """
    check_batch(batch)
    if not choices:
        raise UserError("there is nothing to choose from: give at least one choice")
    check_rows(inputs, model.shape.vocab, "input")
    check_rows(choices, model.shape.vocab, "choice")
    found = np.zeros((len(inputs), len(choices)))
    tokens = budget(next(model.parameters()).device)
    with show_progress("rank", len(inputs)) if progress else nullcontext() as bar:
        for rows in batches_by_length(inputs, batch, tokens):
            with inference(model) as device:
                found[rows] = _rank(model, pad([inputs[row] for row in rows], device), choices, batch)
            if bar:
                bar.advance(len(rows))
    return found / [len(choice) for choice in choices] if normalise else found


def choose(scores_NC: np.ndarray) -> list[int]:
    """The index of each input's likeliest choice; of equally likely ones the first.

    >>> choose(np.array([[-3.0, -1.0], [-2.0, -2.0]]))
    [1, 0]
    """
    return scores_NC.argmax(-1).tolist()


def _rank(model: T5, input_BL: Tensor, choices: Sequence[Sequence[int]], batch: int | None) -> np.ndarray:
    """[B, C]. A full batch takes one choice at a time, so that nothing is copied; a small one takes several."""
    memory_BLD, mask_BL = encode_rows(model, input_BL)
    longest = max(len(choice) for choice in choices)
    cache = model.start_cache(memory_BLD, mask_BL, longest)
    inputs = len(input_BL)
    together = max(1, (batch or TOGETHER) // inputs)
    order = sorted(range(len(choices)), key=lambda index: len(choices[index]))  # alike in length, little padding
    found = np.zeros((inputs, len(choices)))
    for start in range(0, len(order), together):
        group = order[start : start + together]
        part = copy(cache)  # starts at position 0 each time; what it writes is never read again
        if len(group) > 1:
            part.reorder(torch.arange(inputs, device=input_BL.device).repeat_interleave(len(group)))
        chosen = [choices[index] for index in group]
        target_BT = pad(chosen, input_BL.device).repeat(inputs, 1)
        hidden_BTD = model.decode_hidden(shift_right(target_BT), None, None, part)
        lengths = [len(choice) for choice in chosen] * inputs
        found[:, group] = summed(model, hidden_BTD, target_BT, lengths).reshape(inputs, -1)
    return found


def summed(model: T5, hidden_BTD: Tensor, target_BT: Tensor, lengths: Sequence[int]) -> np.ndarray:
    """Each row's log-probability [B], summed over the first `lengths[b]` of its target tokens.

    Only real tokens meet the output matrix, `LOGITS` logits at a time.
    """
    length_B1 = torch.tensor(lengths, device=target_BT.device)[:, None]
    real_BT = torch.arange(target_BT.shape[1], device=target_BT.device) < length_B1
    row_n, hidden_nD, target_n1 = real_BT.nonzero()[:, 0], hidden_BTD[real_BT], target_BT[real_BT][:, None]
    total_B = torch.zeros(len(target_BT), dtype=torch.float64, device=target_BT.device)
    size = max(1, LOGITS // model.shape.vocab)
    for row, hidden, target in zip(row_n.split(size), hidden_nD.split(size), target_n1.split(size), strict=True):
        logits = model.logits(hidden).float()
        gain = logits.gather(1, target)[:, 0] - logits.logsumexp(-1)
        total_B.index_add_(0, row, gain.double())
    return total_B.cpu().numpy()
