"""Beam search of one input over an engine: the best few sequences so far are extended together.

Which candidates are kept, when finished sequences replace others and when an input is done are those of model/beam.py,
and so those of `transformers` 5; tests hold it.

Shape key   O open sequences   T likeliest ids looked at for each
"""

import math
from typing import NamedTuple

import numpy as np

from deepnarrow.runtime.engine import START, Engine, Memory, Row
from deepnarrow.runtime.limits import Limits, Output
from deepnarrow.runtime.line import Ask, next_mask, over
from deepnarrow.runtime.masks import Constraint
from deepnarrow.runtime.options import Beam


class Open(NamedTuple):
    score: np.float32  # summed log-probability
    ids: list[int]
    row: Row
    constraint: Constraint | None


class Finished(NamedTuple):
    whole: bool
    score: float  # log-probability / penalty
    ids: list[int]


class Beams:
    """One input's open and finished sequences, each kind sorted, best first."""

    def __init__(
        self, engine: Engine, memory: Memory, search: Beam, limits: Limits, constraint: Constraint | None = None
    ) -> None:
        self.engine, self.search, self.limits = engine, search, limits
        self.done = False
        self._open = [Open(np.float32(0.0), [], engine.start(memory), constraint)]
        self._finished: list[Finished] = []
        self._top = (1 + limits.ways_to_end) * search.width  # so many that, whatever ends, `width` can stay open

    def asks(self) -> list[Ask]:
        vocab = self.engine.shape.vocab
        return [
            Ask(
                one.row,
                [one.ids[-1] if one.ids else START],
                [next_mask(self.limits, one.constraint, len(one.ids), vocab)],
                [None],
                min(self._top, self.engine.vocab_limit),
            )
            for one in self._open
        ]

    def take(self, ids_NT: np.ndarray, logs_NT: np.ndarray) -> None:
        ids_OT, logs_OT = ids_NT[:, : self._top], logs_NT[:, : self._top]
        scores_OT = logs_OT + np.array([one.score for one in self._open], np.float32)[:, None]
        order = np.argsort(-scores_OT, axis=None, kind="stable")[: self._top]
        stay: list[tuple[int, int, np.float32]] = []
        step = len(self._open[0].ids)
        for rank, place in enumerate(order.tolist()):
            number, column = divmod(place, scores_OT.shape[1])
            score, id = scores_OT[number, column], int(ids_OT[number, column])
            if id < 0 or score == -math.inf:
                break
            ids = [*self._open[number].ids, id]
            if not over(self.limits, ids):
                if len(stay) < self.search.width:
                    stay.append((number, id, score))
            elif rank < self.search.width:  # only the best may finish; the rest are there so that `width` stay open
                whole = self._whole(self._open[number], id)
                self._finished.append(Finished(whole, float(score) / self.search.penalty(step + 1), ids))
        self._finished = sorted(self._finished, key=lambda one: (not one.whole, -one.score))[: self.search.width]
        if not stay and not self._finished:  # only a constraint that the vocabulary cannot write comes to this
            one = self._open[0]
            self._finished = [Finished(False, float(one.score) / self.search.penalty(max(1, step)), one.ids)]
        best = stay[0][2] if stay else None
        self.done = step + 1 == self.limits.max_tokens or best is None or self._over(float(best), step)
        self._open = [] if self.done else self._continued(stay)

    def _whole(self, one: Open, id: int) -> bool:
        if one.constraint is None or id == self.limits.eos:
            return True
        return one.constraint.after(id).fulfilled

    def _continued(self, stay: list[tuple[int, int, np.float32]]) -> list[Open]:
        """The sequences that stay open. The first to continue a row has it, the others a fork of it."""
        taken: set[int] = set()
        found = []
        for number, id, score in stay:
            one = self._open[number]
            row = self.engine.fork(one.row) if number in taken else one.row
            taken.add(number)
            state = one.constraint.after(id) if one.constraint else None
            found.append(Open(score, [*one.ids, id], row, state))
        return found

    def _over(self, best: float, step: int) -> bool:
        """Whether nothing that is still open can change the answers."""
        search = self.search
        if len(self._finished) < search.width or not self._finished[-1].whole:
            return False
        if search.early_stopping is True:
            return True
        longest = search.early_stopping == "never" and search.length_penalty > 0
        hope = best / search.penalty(self.limits.max_tokens if longest else step + 1)
        return hope <= self._finished[-1].score

    def outputs(self) -> list[Output]:
        """At most `num_return`. Fewer only where fewer sequences are possible."""
        best = self._finished[: self.search.num_return]
        return [Output(self.limits.without_end(one.ids), one.score, one.whole) for one in best]
