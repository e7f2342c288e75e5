"""Are the answers the same however the items are batched?

The same items are answered one at a time, in the usual batches, and in batches of other company with padding behind
every input. Sums in floating point depend on their order, so the last digits may differ; an answer may then change
where two were tied. `margin` says how near a tie it was: the difference of the two answers' log-probabilities, which
for a tie is no larger than what the batch changes anyway.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.measure.answerer import Answerer, answerer
from deepnarrow.measure.evaluate import encode, search_of, tokenizer_of
from deepnarrow.measure.judging.judge import Wanted
from deepnarrow.model.decode import Beam, Sample, Search
from deepnarrow.model.folder import Opened
from deepnarrow.model.heads import OpenedHead
from deepnarrow.model.likelihood import choose
from deepnarrow.model.t5 import PAD

ALONE, USUAL, PADDED = "one at a time", "usual batches", "padded differently"
COMPANY = 7  # rows of a batch of other company
EXTRA = 13  # zeros behind an input, at most
TIE = 1e-3  # nats, beyond which two answers were no tie in float32
SHOWN = 5


class Answer(NamedTuple):
    ids: tuple[int, ...]
    nats: float


class Change(NamedTuple):
    """An item that is answered otherwise in another batch."""

    item: int
    way: str
    alone: str
    other: str
    margin: float  # nats between the two answers


@dataclass(frozen=True)
class Invariance:
    """What changed between the ways of batching; `largest` compares the items that are answered alike."""

    task: str
    n: int
    changes: list[Change]
    largest: float  # nats between log-likelihoods of the same answer

    @property
    def differing(self) -> int:
        return len({change.item for change in self.changes})

    def to_json(self) -> dict[str, Any]:
        changes = [change._asdict() for change in self.changes]
        return asdict(self) | {"differing": self.differing, "changes": changes, "ways": [ALONE, USUAL, PADDED]}

    def lines(self) -> list[str]:
        """The verdict in one line, then the first changes."""
        size = f"the same answer's log-likelihood differs by at most {self.largest:.1e} nats"
        if not self.changes:
            return [f"{self.task}: the {self.n:,} answers do not depend on the batch; {size}"]
        ties = sum(change.margin <= TIE for change in self.changes)
        every = len(self.changes)
        kind = "all of them ties" if ties == every else f"{ties} of {every} changes are ties"
        said = [
            f"{self.task}: {self.differing:,} of {self.n:,} answers depend on the batch ({kind}, within {TIE} nats); "
            f"{size}"
        ]
        for change in self.changes[:SHOWN]:
            said.append(
                f"  item {change.item}, {change.way}: {change.other!r} instead of {change.alone!r}, "
                f"{change.margin:.1e} nats apart"
            )
        return said


def check(opened: Opened | OpenedHead | Answerer, wanted: Wanted) -> Invariance:
    """Answer the items in three ways and compare."""
    if isinstance(opened, OpenedHead):
        raise UserError(f"{opened.origin} has a head; batches of models that write are checked here")
    model = answerer(opened)
    tokenizer, task = tokenizer_of(model), wanted.task
    rows, _ = encode([pair.inputs for pair in wanted.loaded.pairs], tokenizer, task.input_tokens)
    how = search_of(task, wanted.search, as_t5=wanted.as_t5)
    assert not isinstance(how, Sample), "answers drawn at random differ by themselves"
    choices = [[*tokenizer.encode(one), tokenizer.eos] for one in task.labels or ()]
    order = np.random.Generator(np.random.Philox(0)).permutation(len(rows)).tolist()
    company = [[*rows[at], *[PAD] * (1 + place % EXTRA)] for place, at in enumerate(order)]

    def asked(some: Sequence[Sequence[int]], batch: int | None) -> list[Answer]:
        if how is None:
            return labelled(model, some, choices, batch)
        return generated(model, some, how, task.target_tokens, batch)

    alone = asked(rows, 1)
    usual = asked(rows, wanted.batch)
    mixed = asked(company, COMPANY)
    padded: list[Answer] = [alone[0]] * len(rows)
    for at, answer in zip(order, mixed, strict=True):
        padded[at] = answer
    changes, largest = [], 0.0
    for way, others in ((USUAL, usual), (PADDED, padded)):
        for item, (one, other) in enumerate(zip(alone, others, strict=True)):
            if one.ids == other.ids:
                largest = max(largest, abs(one.nats - other.nats))
            else:
                margin = apart(model, rows[item], one, other, how)
                changes.append(Change(item, way, tokenizer.decode(one.ids), tokenizer.decode(other.ids), margin))
    return Invariance(task.name, len(rows), changes, largest)


def labelled(
    model: Answerer, rows: Sequence[Sequence[int]], choices: Sequence[Sequence[int]], batch: int | None
) -> list[Answer]:
    found = model.rank(rows, choices, batch=batch, progress=True)
    return [
        Answer(tuple(choices[place][:-1]), float(nats))
        for place, nats in zip(choose(found), found.max(axis=1), strict=True)
    ]


def generated(
    model: Answerer, rows: Sequence[Sequence[int]], how: Search, most: int, batch: int | None
) -> list[Answer]:
    outputs = model.generate(rows, how, max_tokens=most, batch=batch, progress=True)
    return [Answer(tuple(one[0].ids), one[0].score) for one in outputs]


def apart(model: Answerer, row: Sequence[int], one: Answer, other: Answer, how: Search | None) -> float:
    """Nats between two answers to one input.

    Of greedy ones at the first token in which they differ: what follows was never weighed against one another.
    """
    eos = tokenizer_of(model).eos
    a, b = [*one.ids, eos], [*other.ids, eos]
    if how is not None and not isinstance(how, Beam):
        first = next(place for place, pair in enumerate(zip(a, b, strict=False)) if pair[0] != pair[1])
        a, b = a[: first + 1], b[: first + 1]
    nats = model.score([row, row], [a, b], batch=2, progress=False)
    return abs(nats[0] - nats[1])
