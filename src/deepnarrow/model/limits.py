"""What a generated sequence may hold, when it ends, and what is left of it then.

Shape key   N sequences   T most tokens   V vocabulary
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.cache import Cache
from deepnarrow.model.t5 import T5

Stop = int | Sequence[int] | Callable[[list[int]], bool]
Tell = Callable[[int, int], None]  # called with an input's index and the id just chosen for it


class Output(NamedTuple):
    """One answer.

    `ids` holds neither the decoder's first 0 nor what ended the sequence. `score` is the summed natural log-probability
    of all tokens, the ending one included; beam search divides it by its length penalty.
    """

    ids: list[int]
    score: float


class Search(Protocol):
    """A way to choose tokens: one file with one frozen dataclass that has this method."""

    def answers(
        self, model: T5, cache: Cache, limits: "Limits", rows: Sequence[int], tell: Tell | None
    ) -> list[list[Output]]:
        """Answers for each row of a fresh `cache`, best first; `rows` are the inputs' indices in the whole call."""
        ...


@dataclass(frozen=True)
class Limits:
    """Bounds on generated sequences.

    A sequence has at most `max_tokens` tokens, its end included, and at least `min_tokens` before its end. It ends with
    `eos` or with any `stop`: an id, a run of ids, or a function of the ids so far. Ids from `vocab_limit` on are never
    generated: published vocabularies are padded to a multiple of 128, and no text belongs to the rows of padding.
    """

    max_tokens: int
    min_tokens: int = 0
    eos: int = 1
    stop: tuple[Stop, ...] = ()
    vocab_limit: int | None = None

    def __post_init__(self) -> None:
        if self.max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {self.max_tokens}")
        if not 0 <= self.min_tokens <= self.max_tokens:
            raise UserError(f"min_tokens must be from 0 to max_tokens = {self.max_tokens}, not {self.min_tokens}")
        if self.vocab_limit is not None and self.vocab_limit <= max(self.eos, 1):
            raise UserError(f"vocab_limit must be above the EOS id {self.eos}, not {self.vocab_limit}")
        for stop in self.stop:
            if isinstance(stop, str) or (isinstance(stop, Sequence) and not stop):
                raise UserError(f"a stop is an id, a run of ids or a function of ids (`until` makes one), not {stop!r}")

    @cached_property
    def end_ids(self) -> list[int]:
        """The ids that end a sequence by themselves."""
        return [self.eos, *(run[0] for run in self._runs if len(run) == 1)]

    @cached_property
    def end_runs(self) -> list[list[int]]:
        return [run for run in self._runs if len(run) > 1]

    @cached_property
    def end_tests(self) -> list[Callable[[list[int]], bool]]:
        return [stop for stop in self.stop if callable(stop)]

    @property
    def ways_to_end(self) -> int:
        """How many tokens can end one sequence at one step; a function is counted as one."""
        return len(self.end_ids) + len(self.end_runs) + len(self.end_tests)

    def allow(self, logits_NV: Tensor, step: int) -> Tensor:
        """The logits of the ids that may come at `step` (0 is the first), -inf where one may not come yet.

        Writes into `logits_NV`.
        """
        logits_NV = logits_NV[:, : self.vocab_limit]
        if step < self.min_tokens:
            logits_NV[:, [id for id in self.end_ids if id < logits_NV.shape[1]]] = -math.inf
        return logits_NV

    def ended(self, ids_NT: Tensor, step: int) -> Tensor:
        """Whether each sequence ends with its token of `step`, the newest. Later columns are not read."""
        newest_N = ids_NT[:, step]
        if step + 1 == self.max_tokens:
            return torch.ones_like(newest_N, dtype=torch.bool)
        if step < self.min_tokens:
            return torch.zeros_like(newest_N, dtype=torch.bool)
        ended_N = newest_N == self.eos
        for id in self.end_ids[1:]:
            ended_N |= newest_N == id
        for run in self.end_runs:
            if len(run) <= step + 1:
                tail_NR = ids_NT[:, step + 1 - len(run) : step + 1]
                ended_N |= (tail_NR == tail_NR.new_tensor(run)).all(-1)
        if self.end_tests:
            sequences = ids_NT[:, : step + 1].tolist()
            ended_N |= ended_N.new_tensor([any(test(ids) for test in self.end_tests) for ids in sequences])
        return ended_N

    def without_end(self, ids: list[int]) -> list[int]:
        """The sequence less the EOS or stop ids it ends with. What ended by a function is kept whole.

        >>> Limits(9, stop=([7, 8],)).without_end([5, 7, 8]), Limits(9).without_end([5, 1])
        ([5], [5])
        """
        if ids and ids[-1] in self.end_ids:
            return ids[:-1]
        for run in self.end_runs:
            if ids[-len(run) :] == run:
                return ids[: -len(run)]
        return ids

    @cached_property
    def _runs(self) -> list[list[int]]:
        runs = [stop if isinstance(stop, Sequence) else [stop] for stop in self.stop if not callable(stop)]
        return [[int(id) for id in run] for run in runs]


def until(texts: Sequence[str], decode: Callable[[Sequence[int]], str]) -> Callable[[list[int]], bool]:
    """A stop for `Limits`: ends a sequence once its text holds one of `texts`. Use `cut` on the text afterwards.

    Text is looked at, not ids, since the same words may be cut into tokens in several ways.

    >>> stop = until(["a b"], lambda ids: " ".join(map(chr, ids)))
    >>> stop([97]), stop([97, 98])
    (False, True)
    """

    def test(ids: list[int]) -> bool:
        text = decode(ids)
        return any(end in text for end in texts)

    return test


def cut(text: str, texts: Sequence[str]) -> str:
    """The text before the first place where one of `texts` stands.

    >>> cut("yes. And then", [".", "And"])
    'yes'
    """
    return text[: min((text.index(end) for end in texts if end in text), default=len(text))]
