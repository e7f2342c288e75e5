"""How much of a test set stands in a corpus: runs of n words that both hold.

A model that has read an item while it was pretrained may know its answer rather than find it. Brown et al. 2020
(arXiv:2005.14165, appendix C) call an item dirty that shares a run of 13 words with the corpus; Chowdhery et al. 2022
(arXiv:2204.02311, on contamination) look for runs of 8, and call an item dirty of whose runs 70 % are found. Words here
are runs of letters and digits, in lower case, so that neither punctuation nor a tokenizer's spaces matter.

Memory is that of the test set: its runs are hashed to 64 bits and sorted, and the corpus streams by. That any of a
million runs agrees by accident with one of a billion in a corpus has odds of about one in 18,000.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.corpus import Corpus
from deepnarrow.text.sources import Document

RUN = 13  # words
WORD = re.compile(r"[^\W_]+")
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # odd, so that no word of a run is lost to overflow
REMEMBERED = 2**20  # words whose hashes are kept


class Item(NamedTuple):
    """A test item: what a model reads, and the answers that would be right."""

    inputs: str
    answers: Sequence[str]


@dataclass(frozen=True)
class Found:
    """What of one item stands in the corpus.

    `runs` counts the item's different runs in inputs and answers; with none it is too short to say. `document` is the
    one that holds most of those found, by where each was met first.
    """

    number: int
    runs: int
    shared: int
    in_inputs: bool
    in_answers: bool
    document: str | None

    @property
    def share(self) -> float:
        return self.shared / self.runs if self.runs else 0.0


@dataclass(frozen=True)
class Overlap:
    n: int  # words of a run
    documents: int  # of the corpus, read
    items: list[Found]

    @property
    def dirty(self) -> list[Found]:
        """Items that share a run, those with the largest share of theirs first."""
        found = [one for one in self.items if one.shared]
        return sorted(found, key=lambda one: (-one.share, -one.shared, one.number))

    @property
    def too_short(self) -> int:
        return sum(not one.runs for one in self.items)

    def to_json(self) -> dict[str, Any]:
        return {
            "n": self.n,
            "documents": self.documents,
            "items": len(self.items),
            "overlapping": len(self.dirty),
            "in_inputs": sum(one.in_inputs for one in self.items),
            "in_answers": sum(one.in_answers for one in self.items),
            "too_short": self.too_short,
            "found": [asdict(one) | {"share": one.share} for one in self.dirty],
        }


def words(text: str) -> list[str]:
    """
    >>> words("The T5's x_1, again!")
    ['the', 't5', 's', 'x', '1', 'again']
    """
    return WORD.findall(text.lower())


class Hashes:
    """64-bit hashes of runs of n words."""

    def __init__(self, n: int) -> None:
        if n < 1:
            raise UserError(f"a run has at least 1 word, not {n}; 13 and 8 are usual")
        self.n = n
        self._known: dict[str, int] = {}

    def __call__(self, text: str) -> np.ndarray:
        """Of every run in a text, in order, uint64; none where the text has fewer words."""
        found = words(text)
        size = len(found) - self.n + 1
        if size < 1:
            return np.empty(0, np.uint64)
        each = np.fromiter((self._word(word) for word in found), np.uint64, len(found))
        total = np.zeros(size, np.uint64)
        for place in range(self.n):  # a polynomial, modulo 2^64
            total = total * MULTIPLIER + each[place : place + size]
        return total

    def _word(self, word: str) -> int:
        if word not in self._known:
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[word] = int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little")
        return self._known[word]


def overlap(items: Sequence[Item], documents: Iterable[Document], *, n: int = RUN) -> Overlap:
    """Look for the items' runs of `n` words in documents.

    >>> text = "one two three four five six seven"
    >>> found = overlap([Item("q: " + text, ["yes"]), Item("nothing of it", ["no"])], [Document(text, "a.txt")], n=3)
    >>> [(one.number, one.shared, one.runs, one.document) for one in found.dirty], found.too_short
    ([(0, 5, 6, 'a.txt')], 0)
    """
    hashes = Hashes(n)
    sides = [(hashes(item.inputs), [hashes(answer) for answer in item.answers]) for item in items]
    own = [np.unique(np.concatenate([inputs, *answers])) for inputs, answers in sides]
    every = np.unique(np.concatenate([np.empty(0, np.uint64), *own]))
    where = np.full(len(every), -1, np.int64)  # the document in which each run was met first
    names: dict[int, str] = {}
    count = 0
    for count, document in enumerate(documents, start=1):
        runs = hashes(document.text)
        if not len(runs) or not len(every):
            continue
        place = np.searchsorted(every, runs)
        place[place == len(every)] = 0
        hit = np.unique(place[every[place] == runs])
        new = hit[where[hit] < 0]
        if len(new):
            where[new] = count
            names[count] = document.source

    def met(some: np.ndarray) -> np.ndarray:
        return where[np.searchsorted(every, some)]

    found = []
    for number, (mine, (inputs, answers)) in enumerate(zip(own, sides, strict=True)):
        first = met(mine)
        first = first[first >= 0]
        [(best, _)] = Counter(first.tolist()).most_common(1) or [(None, 0)]
        found.append(
            Found(
                number=number,
                runs=len(mine),
                shared=len(first),
                in_inputs=bool((met(inputs) >= 0).any()),
                in_answers=any(bool((met(answer) >= 0).any()) for answer in answers),
                document=None if best is None else names[best],
            )
        )
    return Overlap(n, count, found)


def corpus_documents(corpus: Corpus) -> Iterator[Document]:
    """A built corpus as text again, document by document. What its tokenizer did not know is lost."""
    if corpus.salient:
        raise UserError(
            f"{corpus.folder} holds examples with masked words, in which runs of words are torn; give the sources it "
            "was built from"
        )
    tokenizer = corpus.tokenizer()
    ends = np.cumsum([source.documents for source in corpus.sources])
    for number in range(corpus.documents):
        source = corpus.sources[int(np.searchsorted(ends, number, side="right"))]
        text = tokenizer.decode(corpus.document(number).tolist())
        yield Document(text, f"document {number} ({source.file or source.source})")
