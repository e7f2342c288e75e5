"""What a generated sequence may hold, when it ends, and what is left of it then."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from deepnarrow.errors import UserError

Stop = int | Sequence[int] | Callable[[list[int]], bool]
Tell = Callable[[int, int], None]  # called with an input's index and the id just chosen for it


class Output(NamedTuple):
    """One answer.

    `ids` holds neither the decoder's first 0 nor what ended the sequence. `score` is the summed natural log-probability
    of all tokens, the ending one included, perhaps NaN where it was not asked for; beam search divides it by its length
    penalty. `whole` is False only where `max_tokens` came before a constraint (constrain.py) was fulfilled.
    """

    ids: list[int]
    score: float
    whole: bool = True


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

    def ended(self, ids: list[int]) -> bool:
        """Whether a sequence ends with its newest token.

        >>> limits = Limits(4, min_tokens=1, stop=([7, 8],))
        >>> [limits.ended(ids) for ids in ([1], [5, 1], [7, 8], [7, 9], [5, 5, 5, 5])]
        [False, True, True, False, True]
        """
        if len(ids) >= self.max_tokens:
            return True
        if len(ids) <= self.min_tokens:
            return False
        if ids[-1] in self.end_ids or any(ids[-len(run) :] == run for run in self.end_runs):
            return True
        return any(test(ids) for test in self.end_tests)

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
