"""Batches as a function of their number: batch n depends on (seed, n) and nothing else.

So a run resumes without replaying, several workers or ranks need not talk, and any batch can be looked at again.
There is no state to save but the step.

Each epoch cuts the corpus into the same rows and visits each once, in an order of its own (permutation.py). The noise
of example e (counted over all epochs) comes from a Philox generator whose counter starts at e: a keyed function of the
counter, so that neighbouring examples are independent (Salmon et al. 2011, "Parallel random numbers").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text import objectives
from deepnarrow.text.objectives import Objective, Sentinels
from deepnarrow.text.permutation import permute

if TYPE_CHECKING:
    from deepnarrow.text.corpus import Corpus
    from deepnarrow.text.tokenizer import Tokenizer

TRAINING, EVALUATION = 0, 1  # second word of the Philox key: the two uses of a seed never share noise
MULTIPLE = 8  # widths of padded batches are rounded up to this, so that few distinct shapes occur


class Batch(NamedTuple):
    """What a training step reads. The decoder's input (targets shifted right, start 0) is made by the model."""

    inputs: np.ndarray  # int64 [B, L], 0 = padding, EOS included
    targets: np.ndarray  # int64 [B, T], 0 = padding, EOS included
    # Packed rows hold several examples: the number of each token's example in its row, from 1; 0 = padding.
    input_segments: np.ndarray | None = None  # int64 [B, L]
    target_segments: np.ndarray | None = None  # int64 [B, T]


@dataclass(frozen=True, kw_only=True)
class CorpusBatches:
    """Rows of a corpus under an objective. No padding: each batch is [batch, input_length] and [batch, target_length].

    Raises UserError when the corpus holds no whole row, or the objective needs more sentinels than there are.
    """

    corpus: "Corpus"
    seed: int
    batch: int
    input_length: int
    objective: str = "span"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch is the number of examples per step; it must be at least 1, not {self.batch}")
        _require_rows(self.corpus, self._work.raw_length)

    def __call__(self, n: int) -> Batch:
        """Batch n (from 0), the same on every call."""
        noise = [generator(self.seed, TRAINING, n * self.batch + b) for b in range(self.batch)]
        return self._work.batch(self.corpus, self.rows_of(n), noise)

    def rows_of(self, n: int) -> np.ndarray:
        """Which rows of the corpus batch n reads: int64 [batch], each of `raw_length` tokens."""
        return shuffled(np.arange(n * self.batch, (n + 1) * self.batch, dtype=np.int64), self.rows, self.seed)

    @property
    def rows(self) -> int:
        """Rows in one epoch; the tokens after the last whole row are left out."""
        return self.corpus.rows(self.raw_length)

    @property
    def raw_length(self) -> int:
        """Tokens of text behind one example."""
        return self._work.raw_length

    @property
    def target_length(self) -> int:
        return self._work.target_length

    @cached_property
    def _work(self) -> "_Work":
        return _prepare(self.corpus, self.input_length, self.objective, self.options)


def fixed_batches(
    corpus: "Corpus",
    *,
    batch: int,
    input_length: int,
    objective: str = "span",
    options: Mapping[str, Any] | None = None,
    seed: int = 0,
    limit: int | None = None,
) -> list[Batch]:
    """The first `limit` rows of a corpus (all by default), in order, under noise that only (seed, row) decides.

    For a held-out loss that is the same question at every step. The last batch may be smaller.
    """
    work = _prepare(corpus, input_length, objective, options or {})
    _require_rows(corpus, work.raw_length)
    held = corpus.rows(work.raw_length)
    rows = np.arange(held if limit is None else min(held, limit), dtype=np.int64)
    pieces = [rows[start : start + batch] for start in range(0, len(rows), batch)]
    return [work.batch(corpus, piece, [generator(seed, EVALUATION, row) for row in piece.tolist()]) for piece in pieces]


@dataclass(frozen=True, kw_only=True)
class PairBatches:
    """Pairs of (input ids, target ids), EOS included, shuffled anew each epoch.

    Both sides are padded with 0 to the longest of the batch, rounded up to a multiple of 8.

    >>> batches = PairBatches(pairs=[([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])], seed=0, batch=2)
    >>> batches(0).inputs.shape, sorted(batches(0).targets[:, 0].tolist())
    ((2, 8), [7, 9])
    """

    pairs: Sequence[tuple[Sequence[int], Sequence[int]]] = field(repr=False)
    seed: int
    batch: int

    def __post_init__(self) -> None:
        if not self.pairs:
            raise UserError("there are no examples to train on; check the task's data")
        if self.batch < 1:
            raise UserError(f"batch is the number of examples per step; it must be at least 1, not {self.batch}")

    def __call__(self, n: int) -> Batch:
        """Batch n (from 0), the same on every call."""
        examples = np.arange(n * self.batch, (n + 1) * self.batch, dtype=np.int64)
        chosen = [self.pairs[row] for row in shuffled(examples, len(self.pairs), self.seed).tolist()]
        return Batch(padded([inputs for inputs, _ in chosen]), padded([targets for _, targets in chosen]))


def encode_pairs(
    pairs: Iterable[tuple[str, str]], tokenizer: "Tokenizer", input_tokens: int, target_tokens: int
) -> list[tuple[list[int], list[int]]]:
    """Texts to ids with EOS, each side cut to its length with EOS kept; an empty text becomes EOS alone."""
    texts = [(inputs, target) for inputs, target in pairs]
    sides = [
        [[*ids[: length - 1], tokenizer.eos] for ids in tokenizer.encode_batch([pair[side] for pair in texts])]
        for side, length in ((0, input_tokens), (1, target_tokens))
    ]
    return list(zip(*sides, strict=True))


def shuffled(examples: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """The row each example (0, 1, 2, ... over all epochs) reads: an epoch holds every row once, in its own order."""
    epochs, places = np.divmod(examples, rows)
    chosen = np.empty_like(places)
    for epoch in np.unique(epochs).tolist():
        here = epochs == epoch
        key = blake2b(f"{seed} {epoch}".encode(), digest_size=8).digest()
        chosen[here] = permute(places[here], rows, int.from_bytes(key, "little"))
    return chosen


def generator(seed: int, use: int, example: int) -> np.random.Generator:
    """The noise of one example, made in some microseconds: no seed sequence is spun up."""
    key = np.array([seed % 2**64, use], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, example, 0], np.uint64)))


def padded(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Lists of ids as int64 [B, longest rounded up to a multiple of 8], 0 behind each.

    >>> padded([[5, 6, 1], [1]]).tolist()
    [[5, 6, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]
    """
    longest = max((len(row) for row in rows), default=0)
    out = np.zeros((len(rows), max(-(-longest // MULTIPLE), 1) * MULTIPLE), np.int64)
    for line, row in zip(out, rows, strict=True):
        line[: len(row)] = row
    return out


class _Work(NamedTuple):
    """An objective with everything settled but the rows."""

    objective: Objective
    options: Mapping[str, Any]
    sentinels: Sentinels
    raw_length: int
    target_length: int

    def batch(self, corpus: "Corpus", rows: np.ndarray, generators: list[np.random.Generator]) -> Batch:
        raw = corpus.read(rows, self.raw_length)
        inputs, targets = self.objective.corrupt(raw, generators, self.sentinels, **self.options)
        return Batch(inputs.astype(np.int64), targets.astype(np.int64))


def _prepare(corpus: "Corpus", input_length: int, name: str, options: Mapping[str, Any]) -> _Work:
    objective = objectives.get(name)
    raw_length, target_length = objective.lengths(input_length, **options)
    work = _Work(objective, dict(options), Sentinels.of(corpus.tokenizer()), raw_length, target_length)
    # One trial row, so that a vocabulary with too few sentinels is refused here and not in the first training step.
    objective.corrupt(np.zeros((1, raw_length), np.int32), [generator(0, TRAINING, 0)], work.sentinels, **options)
    return work


def _require_rows(corpus: "Corpus", raw_length: int) -> None:
    if corpus.rows(raw_length) < 1:
        raise UserError(
            f"{corpus.folder} holds {corpus.tokens:,} tokens, but one example needs {raw_length:,}; "
            "build it from more text (for held-out text: a larger --held-out), or lower the input length"
        )
