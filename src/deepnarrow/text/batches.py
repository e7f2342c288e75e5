"""Batches as a function of their number: batch n depends on (seed, n, batch size) and nothing else.

So a run resumes without replaying, several workers or ranks need not talk, and any batch can be looked at again.
There is no state to save but the step.

Each epoch visits every example of a source once, in an order of its own (permutation.py); several sources are dealt in
fixed shares (mixture.py). The noise of example e (counted over all epochs) comes from a Philox generator whose counter
starts at e: a keyed function of the counter, so that neighbouring examples are independent (Salmon et al. 2011,
"Parallel random numbers").
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.text import objectives
from deepnarrow.text.examples import Examples, Origin, PairExamples, PieceExamples, RowExamples, of_corpus
from deepnarrow.text.mixture import Mixture, shares
from deepnarrow.text.objectives import Part
from deepnarrow.text.packing import Batch, Pair, pack, pad, padded
from deepnarrow.text.permutation import permute

if TYPE_CHECKING:
    from deepnarrow.text.corpus import Corpus
    from deepnarrow.text.tokenizer import Tokenizer

__all__ = [
    "BATCHINGS",
    "Batch",
    "CorpusBatches",
    "PairBatches",
    "encode_pairs",
    "fixed_batches",
    "generator",
    "padded",
    "shuffled",
]

TRAINING, EVALUATION = 0, 1  # second word of the Philox key: the two uses of a seed never share noise
BATCHINGS = ("padded", "bucketed", "packed")
ROW = 512  # tokens of a packed row of pairs, where inputs are shorter: what T5 was fine-tuned with
WINDOW = 64  # batches whose examples are sorted by length together, when bucketed


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How examples become batches: `batch` of them at a time, padded, bucketed or packed (packing.py).

    A bucketed batch takes its examples from a window of 64 batches, sorted by length; the batches of a window come in a
    seeded order. A packed row holds at most `input_length` tokens on either side, or one longer target.
    """

    seed: int
    batch: int
    batching: str = "padded"
    input_length: int = 0
    target_length: int = 0
    exact: bool = False  # examples of one length are not padded at all

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UserError(f"batch is the number of examples per step; it must be at least 1, not {self.batch}")
        if self.batching not in BATCHINGS:
            raise UserError(f"unknown batching {self.batching!r}; {nearest(self.batching, BATCHINGS)}")

    def examples(self, n: int, sources: "Sources") -> np.ndarray:
        """Which examples, counted over all epochs, batch n holds: int64 [batch]."""
        if self.batching != "bucketed":
            return np.arange(n * self.batch, (n + 1) * self.batch, dtype=np.int64)
        window, place = divmod(n, WINDOW)
        key = blake2b(f"buckets {self.seed} {window}".encode(), digest_size=8).digest()
        turn = int(permute(np.array([place]), WINDOW, int.from_bytes(key, "little"))[0])
        return sources.by_length(window * WINDOW * self.batch, WINDOW * self.batch)[turn * self.batch :][: self.batch]

    def lay_out(self, pairs: Sequence[Pair]) -> Batch:
        if self.batching == "packed":
            return pack(pairs, self.input_length, max(self.input_length, self.target_length))
        return pad(pairs, self.exact)


@dataclass(frozen=True)
class Sources:
    """One or several sources of examples, dealt in shares and shuffled anew each epoch."""

    sources: tuple[Examples, ...]
    mixture: Mixture
    _sorted: dict[int, np.ndarray] = field(default_factory=dict, repr=False, compare=False)  # the last window

    def places(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of each example: its source, and its number there."""
        source, number = self.mixture.deal(examples)
        for index, one in enumerate(self.sources):
            here = source == index
            if here.any():
                number[here] = shuffled(number[here], one.size, self._key(index))
        return source, number

    def make(self, examples: np.ndarray) -> list[Pair]:
        source, number = self.places(examples)
        found: list[Pair] = [([], [])] * len(examples)
        for index, one in enumerate(self.sources):
            here = np.flatnonzero(source == index)
            if here.size:
                noise = [generator(self.mixture.seed, TRAINING, e) for e in examples[here].tolist()]
                for place, pair in zip(here.tolist(), one.make(number[here], noise), strict=True):
                    found[place] = pair
        return found

    def by_length(self, first: int, count: int) -> np.ndarray:
        """The examples from `first` on, `count` of them, the short ones first; equal ones in their own order."""
        if first not in self._sorted:
            examples = np.arange(first, first + count, dtype=np.int64)
            source, number = self.places(examples)
            lengths = np.empty(count, np.int64)
            for index, one in enumerate(self.sources):
                here = source == index
                lengths[here] = one.lengths(number[here])
            self._sorted.clear()
            self._sorted[first] = examples[np.argsort(lengths, kind="stable")]
        return self._sorted[first]

    def _key(self, index: int) -> str:
        return str(self.mixture.seed) if index == 0 else f"{self.mixture.seed}/{index}"


@dataclass(frozen=True, kw_only=True)
class CorpusBatches:
    """Examples of a corpus, or of several, under an objective.

    `mixture` shares the examples out among several corpora: "size" (in tokens), "equal", "temperature=2", or rates such
    as "0.7,0.3". An objective of rows fills its batches; those of documents are padded, bucketed or packed.

    Raises UserError when a corpus holds no example, or the objective needs more sentinels than there are.
    """

    corpus: "Corpus | Sequence[Corpus]"
    seed: int
    batch: int
    input_length: int
    target_length: int | None = None  # longest target; None: the objective's own, or for documents the input length
    objective: str = "span"
    options: Mapping[str, Any] = field(default_factory=dict)
    mixture: str = "size"
    batching: str = "padded"

    def __post_init__(self) -> None:
        _ = self._layout, self._sources  # what does not fit is refused here

    def __call__(self, n: int) -> Batch:
        """Batch n (from 0), the same on every call."""
        return self._layout.lay_out(self._sources.make(self._layout.examples(n, self._sources)))

    def origins(self, n: int) -> list[Origin]:
        """Where the text of each example of batch n stands; of a packed batch, before packing."""
        source, number = self._sources.places(self._layout.examples(n, self._sources))
        return [self.sources[s].origin(i) for s, i in zip(source.tolist(), number.tolist(), strict=True)]

    @property
    def sources(self) -> tuple[RowExamples | PieceExamples, ...]:
        return self._sources.sources  # type: ignore[return-value]

    @property
    def size(self) -> int:
        """Examples in one epoch of every source."""
        return sum(source.size for source in self.sources)

    @cached_property
    def _layout(self) -> Layout:
        return Layout(
            seed=self.seed, batch=self.batch, batching=self.batching, input_length=self.input_length,
            target_length=self.longest_target, exact=True,
        )  # fmt: skip

    @cached_property
    def longest_target(self) -> int:
        """What a target holds at most, EOS included."""
        return self.target_length or max(
            longest_target(part, self.input_length) for part in parts_of(self.objective, self.options)
        )

    @cached_property
    def _sources(self) -> Sources:
        return sources_of(self)


def parts_of(objective: str, options: Mapping[str, Any]) -> tuple[Part, ...]:
    """The objectives behind a name: one, or those of a mixture."""
    found = objectives.get(objective)
    objectives.check_options(found, options)
    return found.parts(**options) if found.parts is not None else (Part(objective, options),)


def longest_target(part: Part, input_length: int) -> int:
    lengths = objectives.get(part.objective).lengths
    return input_length if lengths is None else lengths(input_length, **part.options)[1]


def corpora_of(batches: CorpusBatches) -> tuple["Corpus", ...]:
    corpora = batches.corpus
    return tuple(corpora) if isinstance(corpora, Sequence) else (corpora,)


def sources_of(batches: CorpusBatches) -> Sources:
    """Every corpus under every part of the objective; a share is the corpus' times the part's."""
    corpora = corpora_of(batches)
    if not corpora:
        raise UserError("name at least one corpus to train on")
    if len({corpus.fingerprint for corpus in corpora}) > 1:
        raise UserError(
            "these corpora were built with different tokenizers, so their ids mean different things: "
            + ", ".join(f"{corpus.folder} ({corpus.fingerprint[:12]})" for corpus in corpora)
        )
    tokenizer = corpora[0].tokenizer()  # the same for all
    parts = parts_of(batches.objective, batches.options)
    rates = shares(batches.mixture, [corpus.tokens for corpus in corpora])
    found = [
        (
            rate * part.weight,
            of_corpus(
                corpus, tokenizer, input_length=batches.input_length, target_length=batches.target_length,
                objective=part.objective, options=part.options, prefix=part.prefix,
            ),
        )
        for corpus, rate in zip(corpora, rates, strict=True)
        for part in parts
    ]  # fmt: skip
    return Sources(tuple(one for _, one in found), Mixture(tuple(rate for rate, _ in found), batches.seed))


def fixed_batches(
    corpus: "Corpus | Sequence[Corpus]",
    *,
    batch: int,
    input_length: int,
    target_length: int | None = None,
    objective: str = "span",
    options: Mapping[str, Any] | None = None,
    mixture: str = "size",
    seed: int = 0,
    limit: int | None = None,
) -> list[Batch]:
    """The first `limit` examples (all by default), in order, under noise that only (seed, example) decides.

    For a held-out loss that is the same question at every step. The last batch may be smaller.
    """
    made = CorpusBatches(
        corpus=corpus, seed=seed, batch=batch, input_length=input_length, target_length=target_length,
        objective=objective, options=options or {}, mixture=mixture,
    )  # fmt: skip
    count = made.size if limit is None else min(made.size, limit)
    source, number = made._sources.mixture.deal(np.arange(count, dtype=np.int64))
    found = []
    for start in range(0, count, batch):
        pairs: list[Pair] = []
        for example in range(start, min(start + batch, count)):
            one = made.sources[int(source[example])]
            here = number[example : example + 1] % one.size
            pairs += one.make(here, [generator(seed, EVALUATION, example)])
        found.append(pad(pairs, exact=True))
    return found


@dataclass(frozen=True, kw_only=True)
class PairBatches:
    """Pairs of (input ids, target ids), EOS included, of one source or several, each shuffled anew in its own epochs.

    `mixture` shares the examples out among several: "size", "size,limit=65536" (T5's, which lets no source count for
    more), "equal", "temperature=2", or rates such as "0.7,0.3". Padded, both sides are as long as the longest of the
    batch, rounded up to a multiple of 8.

    >>> batches = PairBatches(sources=[[([5, 6, 1], [7, 1]), ([8, 1], [9, 9, 1])]], seed=0, batch=2)
    >>> batches(0).inputs.shape, sorted(batches(0).targets[:, 0].tolist())
    ((2, 8), [7, 9])
    """

    sources: Sequence[Sequence[Pair]] = field(repr=False)
    seed: int
    batch: int
    mixture: str = "size"
    batching: str = "padded"
    input_length: int | None = None  # a packed row holds as much, or 512 tokens; None: the longest of all pairs
    target_length: int | None = None

    def __post_init__(self) -> None:
        if not self.sources or not all(self.sources):
            raise UserError("there are no examples to train on; check the task's data")
        _ = self._layout, self._sources

    def __call__(self, n: int) -> Batch:
        """Batch n (from 0), the same on every call."""
        return self._layout.lay_out(self._sources.make(self._layout.examples(n, self._sources)))

    @cached_property
    def _layout(self) -> Layout:
        pairs = [pair for source in self.sources for pair in source]
        longest = [max(len(pair[side]) for pair in pairs) for side in (0, 1)]
        return Layout(
            seed=self.seed, batch=self.batch, batching=self.batching,
            input_length=max(self.input_length or longest[0], ROW), target_length=self.target_length or longest[1],
        )  # fmt: skip

    @cached_property
    def _sources(self) -> Sources:
        rates = shares(self.mixture, [len(source) for source in self.sources])
        return Sources(tuple(map(PairExamples, self.sources)), Mixture(rates, self.seed))


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


def shuffled(examples: np.ndarray, rows: int, seed: int | str) -> np.ndarray:
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
