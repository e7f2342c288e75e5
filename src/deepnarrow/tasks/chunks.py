"""Chunks: runs of words that tags mark, as of names and phrases, and how found ones compare with the true ones.

The counting is CoNLL-2000's (Tjong Kim Sang & Buchholz 2000, ACL:W00-0726, section 4): a chunk counts as found where
its first word, its last word and its kind are all right. Its borders are read as the shared task's own script reads
them, which forgives a chunk that opens with I-: tests compare with `seqeval`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepnarrow.tasks.metrics import Metric
from deepnarrow.tasks.pair import Pair
from deepnarrow.tasks.resampling import OfMeans

OUTSIDE = "O"
PREFIXES = ("B", "I", "E", "S")  # begin, inside, end, single: BIO needs the first two, BIOES all four


class Chunk(NamedTuple):
    kind: str
    first: int  # word
    last: int


def chunks(tags: Sequence[str]) -> list[Chunk]:
    """The chunks of a sentence. A tag without a prefix counts as inside, so that like neighbours are one chunk.

    >>> chunks(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"])
    [Chunk(kind='PER', first=0, last=1), Chunk(kind='LOC', first=3, last=3), Chunk(kind='LOC', first=4, last=4)]
    """
    found: list[Chunk] = []
    before, kind_before = OUTSIDE, ""
    for place, tag in enumerate(tags):
        prefix, kind = parts(tag)
        if prefix == OUTSIDE:
            pass
        elif before in (OUTSIDE, "E", "S") or prefix in ("B", "S") or kind != kind_before:
            found.append(Chunk(kind, place, place))
        else:
            found[-1] = found[-1]._replace(last=place)
        before, kind_before = prefix, kind
    return found


def parts(tag: str) -> tuple[str, str]:
    """
    >>> parts("B-PER"), parts("O"), parts("NOUN")
    (('B', 'PER'), ('O', ''), ('I', 'NOUN'))
    """
    prefix, dash, kind = tag.partition("-")
    if tag == OUTSIDE:
        return OUTSIDE, ""
    return (prefix, kind) if dash and prefix in PREFIXES else ("I", tag)


def fitted(prediction: str, wanted: int) -> list[str]:
    """A text of tags as one for each word: too many are cut, what is missing counts as outside."""
    tags = prediction.split()[:wanted]
    return tags + [OUTSIDE] * (wanted - len(tags))


def chunk_counts(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """Chunks found and right, found, and true, of each sentence: [n, 3]."""
    rows = []
    for text, pair in zip(predictions, pairs, strict=True):
        wanted = pair.accepted[0].split()
        true, found = set(chunks(wanted)), set(chunks(fitted(text, len(wanted))))
        rows.append((len(true & found), len(found), len(true)))
    return np.array(rows, dtype=float)


def word_counts(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """Words whose tag is right, and words, of each sentence: [n, 2]."""
    rows = []
    for text, pair in zip(predictions, pairs, strict=True):
        wanted = pair.accepted[0].split()
        found = fitted(text, len(wanted)) if text.split() else [""] * len(wanted)
        rows.append((sum(a == b for a, b in zip(found, wanted, strict=True)), len(wanted)))
    return np.array(rows, dtype=float)


def f1_percent(means: np.ndarray) -> np.ndarray:
    """Twice the right ones over found and true together; 0 where there is neither."""
    total = means[..., 1] + means[..., 2]
    return np.where(total > 0, 200 * means[..., 0] / np.where(total > 0, total, 1.0), 0.0)


def precision_percent(means: np.ndarray) -> np.ndarray:
    return np.where(means[..., 1] > 0, 100 * means[..., 0] / np.where(means[..., 1] > 0, means[..., 1], 1.0), 0.0)


def recall_percent(means: np.ndarray) -> np.ndarray:
    return np.where(means[..., 2] > 0, 100 * means[..., 0] / np.where(means[..., 2] > 0, means[..., 2], 1.0), 0.0)


def share_percent(means: np.ndarray) -> np.ndarray:
    return np.where(means[..., 1] > 0, 100 * means[..., 0] / np.where(means[..., 1] > 0, means[..., 1], 1.0), 0.0)


# Resampled by sentence: the words of one are not independent of each other.
entity_f1 = Metric("entity_f1", chunk_counts, OfMeans(f1_percent))
entity_precision = Metric("entity_precision", chunk_counts, OfMeans(precision_percent))
entity_recall = Metric("entity_recall", chunk_counts, OfMeans(recall_percent))
token_accuracy = Metric("token_accuracy", word_counts, OfMeans(share_percent))
