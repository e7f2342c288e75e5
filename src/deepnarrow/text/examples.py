"""Numbered examples, of a corpus under an objective or of given pairs: what a batch is put together from.

Example i of an epoch is always made from the same text; what is hidden in it comes from the generator passed in.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text import objectives
from deepnarrow.text.objectives import Objective, Sentinels
from deepnarrow.text.packing import Pair, cut

if TYPE_CHECKING:
    from deepnarrow.text.corpus import Corpus
    from deepnarrow.text.tokenizer import Tokenizer

GROUP = 1024  # documents whose pieces are counted together: the index of a large corpus stays small
AT_ONCE = 2**20  # documents looked at together when the index is made


class Origin(NamedTuple):
    """Where an example's text stands: in which corpus, from which token, how many, over which documents."""

    corpus: "Corpus"
    start: int
    tokens: int
    documents: range


class Examples(Protocol):
    """The examples of one epoch, numbered from 0."""

    @property
    def size(self) -> int: ...

    def make(self, numbers: np.ndarray, generators: Sequence[np.random.Generator]) -> list[Pair]:
        """Inputs and targets of the examples `numbers`, EOS included; example i draws from generators[i] only."""
        ...

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        """How long each example is, roughly: what bucketing sorts by."""
        ...


@dataclass(frozen=True, kw_only=True)
class RowExamples:
    """Rows of the joined text, all equally long (an objective of rows)."""

    corpus: "Corpus"
    objective: Objective
    options: Mapping[str, Any]
    sentinels: Sentinels
    raw_length: int
    prefix: np.ndarray  # ids before every input

    @cached_property
    def size(self) -> int:
        """The tokens after the last whole row are left out."""
        return self.corpus.rows(self.raw_length)

    def make(self, numbers: np.ndarray, generators: Sequence[np.random.Generator]) -> list[Pair]:
        assert self.objective.corrupt is not None
        raw = self.corpus.read(numbers, self.raw_length)
        inputs, targets = self.objective.corrupt(raw, generators, self.sentinels, **self.options)
        if inputs.all() and targets.all():
            return [(with_prefix(self.prefix, i), t) for i, t in zip(inputs, targets, strict=True)]
        return [(with_prefix(self.prefix, i[i != 0]), t[t != 0]) for i, t in zip(inputs, targets, strict=True)]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        return np.full(len(numbers), self.raw_length)

    def origin(self, number: int) -> Origin:
        start = number * self.raw_length
        first, last = (self.corpus.document_at(place) for place in (start, start + self.raw_length - 1))
        return Origin(self.corpus, start, self.raw_length, range(first, last + 1))


@dataclass(frozen=True, kw_only=True)
class PieceExamples:
    """Pieces of single documents (an objective of documents). A piece shorter than two tokens is left out."""

    corpus: "Corpus"
    objective: Objective
    options: Mapping[str, Any]
    sentinels: Sentinels
    piece_length: int | None  # None: whole documents
    input_length: int
    target_length: int
    prefix: np.ndarray

    @cached_property
    def size(self) -> int:
        return int(self._before[-1])

    @cached_property
    def _before(self) -> np.ndarray:
        """Pieces before each group of documents, and of all: int64 [groups + 1]."""
        documents = self.corpus.documents
        counts = [
            np.add.reduceat(pieces, np.arange(0, len(pieces), GROUP))
            for start in range(0, documents, AT_ONCE)
            if len(pieces := self._pieces(start, min(start + AT_ONCE, documents)))
        ]
        return np.concatenate([[0], np.cumsum(np.concatenate(counts))]).astype(np.int64)

    def _pieces(self, first: int, last: int) -> np.ndarray:
        """How many pieces each of the documents from `first` up to `last` has."""
        sizes = self._sizes(first, last)
        if self.piece_length is None:
            return (sizes >= 2).astype(np.int64)
        return sizes // self.piece_length + (sizes % self.piece_length >= 2)

    def _sizes(self, first: int, last: int) -> np.ndarray:
        starts = np.asarray(self.corpus.starts[first : last + 1], np.int64)
        return np.diff(starts, append=self.corpus.tokens) if last == self.corpus.documents else np.diff(starts)

    def place(self, number: int) -> tuple[int, int, int]:
        """Of piece `number`: its document, its first token in the stream, its length."""
        group = int(np.searchsorted(self._before, number, side="right")) - 1
        first = group * GROUP
        last = min(first + GROUP, self.corpus.documents)
        ends = np.cumsum(self._pieces(first, last))
        left = number - int(self._before[group])
        document = int(np.searchsorted(ends, left, side="right"))
        piece = left - (int(ends[document - 1]) if document else 0)
        size = int(self._sizes(first + document, first + document + 1)[0])
        offset = piece * (self.piece_length or 0)
        length = size - offset if self.piece_length is None else min(self.piece_length, size - offset)
        return first + document, int(self.corpus.starts[first + document]) + offset, length

    def make(self, numbers: np.ndarray, generators: Sequence[np.random.Generator]) -> list[Pair]:
        assert self.objective.example is not None
        found: list[Pair] = []
        for number, generator in zip(numbers.tolist(), generators, strict=True):
            _, start, length = self.place(number)
            ids = self.corpus.span(start, length)
            inputs, targets = self.objective.example(ids, generator, self.sentinels, **self.options)
            inputs = cut(with_prefix(self.prefix, inputs), self.input_length, self.sentinels.eos)
            found.append((inputs, cut(targets, self.target_length, self.sentinels.eos)))
        return found

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        return np.array([self.place(number)[2] for number in numbers.tolist()])

    def origin(self, number: int) -> Origin:
        document, start, length = self.place(number)
        return Origin(self.corpus, start, length, range(document, document + 1))


@dataclass(frozen=True)
class PairExamples:
    """Given pairs of ids, EOS included: nothing is hidden, so no generator is drawn from."""

    pairs: Sequence[Pair] = field(repr=False)

    @property
    def size(self) -> int:
        return len(self.pairs)

    def make(self, numbers: np.ndarray, generators: Sequence[np.random.Generator]) -> list[Pair]:
        return [self.pairs[number] for number in numbers.tolist()]

    def lengths(self, numbers: np.ndarray) -> np.ndarray:
        return np.array([len(self.pairs[number][0]) + len(self.pairs[number][1]) for number in numbers.tolist()])


def of_corpus(
    corpus: "Corpus",
    tokenizer: "Tokenizer",
    *,
    input_length: int,
    target_length: int | None,
    objective: str,
    options: Mapping[str, Any],
    prefix: str = "",
) -> RowExamples | PieceExamples:
    """A corpus, built with `tokenizer`, under an objective that is no mixture.

    Raises UserError when the corpus holds no example, is of another kind, or the vocabulary has too few sentinels.
    """
    found = objectives.get(objective)
    sentinels = Sentinels.of(tokenizer)
    before = np.array(tokenizer.encode(prefix) if prefix else [], np.int64)
    room = input_length - len(before)
    if room < 2:
        raise UserError(f"inputs of {input_length} tokens have no room behind the prefix {prefix!r}; use longer ones")
    require_kind(corpus, objective)
    if found.kind == "documents":
        assert found.piece_length is not None
        pieces = PieceExamples(
            corpus=corpus, objective=found, options=dict(options), sentinels=sentinels,
            piece_length=found.piece_length(room, **options), input_length=input_length,
            target_length=target_length or input_length, prefix=before,
        )  # fmt: skip
        if not pieces.size:
            raise UserError(f"{corpus.folder} has no document of two tokens or more; build it from more text")
        return pieces
    assert found.lengths is not None
    assert found.corrupt is not None
    raw_length, _ = found.lengths(room, **options)
    # One trial row, so that a vocabulary with too few sentinels is refused here and not in the first training step.
    trial = np.random.Generator(np.random.Philox(key=np.zeros(2, np.uint64)))
    found.corrupt(np.zeros((1, raw_length), np.int32), [trial], sentinels, **options)
    if corpus.rows(raw_length) < 1:
        raise UserError(
            f"{corpus.folder} holds {corpus.tokens:,} tokens, but one example needs {raw_length:,}; "
            "build it from more text (for held-out text: a larger --held-out), or lower the input length"
        )
    return RowExamples(
        corpus=corpus, objective=found, options=dict(options), sentinels=sentinels, raw_length=raw_length, prefix=before
    )


def require_kind(corpus: "Corpus", objective: str) -> None:
    """A salient corpus holds questions and answers already, and only its own objective can read it."""
    kind = getattr(corpus, "kind", "text")
    if (kind == "salient") != (objective == "salient"):
        raise UserError(
            f"{corpus.folder} is a corpus of salient spans; train on it with --objective salient"
            if kind == "salient"
            else f"{corpus.folder} is a corpus of plain text; --objective salient needs one that was built with "
            "`deepnarrow corpus build --salient nem`"
        )


def with_prefix(prefix: np.ndarray, ids: np.ndarray) -> np.ndarray:
    return np.concatenate([prefix, ids]) if prefix.size else ids
