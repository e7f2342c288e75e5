"""Deduplication as datatrove's steps: signatures of every part, one search over all of them, a filter of every part.

sentences   all but the first of any span of three sentences (Raffel et al. 2020, section 2.2)
lines       all but the first of any line, as C4's published code did it (c4_utils.remove_duplicate_text)
exact       all but the first of equal documents
minhash     all but one of documents that are nearly equal: 14 buckets of 8 hashes over 5-grams, datatrove's default
none
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from datatrove.data import Document
from datatrove.pipeline.dedup import (
    ExactDedupFilter,
    ExactDedupSignature,
    ExactFindDedups,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
    SentenceDedupFilter,
    SentenceDedupSignature,
    SentenceFindDedups,
)
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.dedup.sentence_dedup import SentDedupConfig
from datatrove.utils.hashing import HashConfig
from datatrove.utils.text import TextNormConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from deepnarrow.text.cleaning import sentences

HASH = HashConfig(precision=64, hash_fc="sha1")
AS_C4 = TextNormConfig(  # small letters and single spaces; nothing else makes two spans equal
    lowercase=True,
    norm_whitespace=True,
    remove_punctuation=False,
    norm_unicode_diacritics=False,
    norm_numbers=False,
)
SPANS = 2**16  # datatrove numbers a document's spans in two bytes


class PlainText(WordTokenizer):
    """Words between white space, sentences of cleaning/sentences.py: datatrove's own need models or spaCy."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()

    def sent_tokenize(self, text: str) -> list[str]:
        return [text[start:end] for start, end in sentences.spans(text)]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return sentences.spans(text)


class SpanSignature(SentenceDedupSignature):
    """Spans beyond the 65,536th of one document are left as they are."""

    def get_hashes(self, doc: Document, doc_idx: int) -> list[Any]:
        return super().get_hashes(doc, doc_idx)[:SPANS]


class Search(NamedTuple):
    """One stage between the signatures and the filter."""

    name: str
    tasks: int
    step: Any


class Steps(NamedTuple):
    signature: Any
    searches: tuple[Search, ...]
    filter: Any


def content(document: Document) -> str:
    return document.text


def by_spans(folder: Path, *, lines: bool) -> Steps:
    config = SentDedupConfig(
        n_sentences=1 if lines else 3,
        split_sentences=not lines,
        only_dedup_in_index=False,
        min_doc_words=0,
        min_num_sentences=3,  # a page that loses too many is dropped, as in c4_utils
        norm_config=AS_C4,
        hash_config=HASH,
    )
    plain: Any = PlainText()
    signatures, found = str(folder / "signatures"), str(folder / "found")
    return Steps(
        SpanSignature(signatures, config=config, language=plain),
        (Search("find", 1, SentenceFindDedups(signatures, found, config=config)),),
        SentenceDedupFilter(found, config=config, language=plain),
    )


def by_document(folder: Path) -> Steps:
    config = ExactDedupConfig(content_getter=content, hash_config=HASH, only_dedup_in_index=False)
    signatures, found = str(folder / "signatures"), str(folder / "found")
    return Steps(
        ExactDedupSignature(signatures, config=config),
        (Search("find", 1, ExactFindDedups(signatures, found, config=config)),),
        ExactDedupFilter(found, config=config),
    )


def by_minhash(folder: Path) -> Steps:
    config = MinhashConfig(hash_config=HASH)
    plain: Any = PlainText()
    signatures, pairs, found = (str(folder / name) for name in ("signatures", "pairs", "found"))
    return Steps(
        MinhashDedupSignature(signatures, config=config, language=plain),
        (
            Search("buckets", config.num_buckets, MinhashDedupBuckets(signatures, pairs, config=config)),
            Search("cluster", 1, MinhashDedupCluster(pairs, found, config=config)),
        ),
        MinhashDedupFilter(found),
    )


KINDS: dict[str, Callable[[Path], Steps]] = {
    "sentences": lambda folder: by_spans(folder, lines=False),
    "lines": lambda folder: by_spans(folder, lines=True),
    "exact": by_document,
    "minhash": by_minhash,
}
