"""Limits (runtime/limits.py) on whole batches of sequences, as tensors.

Shape key   N sequences   T most tokens   V vocabulary
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from deepnarrow.model.cache import Cache
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.limits import Limits, Output, Stop, Tell, cut, until

__all__ = ["Limits", "Output", "Search", "Stop", "Tell", "allow", "cut", "ended", "until"]


class Search(Protocol):
    """A way to choose tokens: one file with one frozen dataclass that has this method."""

    def answers(
        self, model: T5, cache: Cache, limits: Limits, rows: Sequence[int], tell: Tell | None
    ) -> list[list[Output]]:
        """Answers for each row of a fresh `cache`, best first; `rows` are the inputs' indices in the whole call."""
        ...


def allow(limits: Limits, logits_NV: Tensor, step: int) -> Tensor:
    """The logits of the ids that may come at `step` (0 is the first), -inf where one may not come yet.

    Writes into `logits_NV`.
    """
    logits_NV = logits_NV[:, : limits.vocab_limit]
    if step < limits.min_tokens:
        logits_NV[:, [id for id in limits.end_ids if id < logits_NV.shape[1]]] = -math.inf
    return logits_NV


def ended(limits: Limits, ids_NT: Tensor, step: int) -> Tensor:
    """Whether each sequence ends with its token of `step`, the newest. Later columns are not read."""
    newest_N = ids_NT[:, step]
    if step + 1 == limits.max_tokens:
        return torch.ones_like(newest_N, dtype=torch.bool)
    if step < limits.min_tokens:
        return torch.zeros_like(newest_N, dtype=torch.bool)
    ended_N = newest_N == limits.eos
    for id in limits.end_ids[1:]:
        ended_N |= newest_N == id
    for run in limits.end_runs:
        if len(run) <= step + 1:
            tail_NR = ids_NT[:, step + 1 - len(run) : step + 1]
            ended_N |= (tail_NR == tail_NR.new_tensor(run)).all(-1)
    if limits.end_tests:
        sequences = ids_NT[:, : step + 1].tolist()
        ended_N |= ended_N.new_tensor([any(test(ids) for test in limits.end_tests) for ids in sequences])
    return ended_N
