"""Runs of words that a test set and a corpus share, counted again the slow way."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.text.building import Salient, build
from deepnarrow.text.corpus import open_corpus
from deepnarrow.text.overlap import Hashes, Item, corpus_documents, overlap, words
from deepnarrow.text.sources import Document, Memory
from deepnarrow.text.tokenizer import load

ALPHABET = st.lists(st.sampled_from(["a", "b", "c"]), max_size=12).map(" ".join)


def runs(text: str, n: int) -> list[tuple[str, ...]]:
    found = words(text)
    return [tuple(found[place : place + n]) for place in range(len(found) - n + 1)]


@settings(deadline=None)
@given(st.lists(st.tuples(ALPHABET, ALPHABET), max_size=4), st.lists(ALPHABET, max_size=4), st.integers(1, 5))
def test_it_counts_what_sets_of_words_count(pairs: list[tuple[str, str]], texts: list[str], n: int) -> None:
    found = overlap(
        [Item(inputs, [answer]) for inputs, answer in pairs],
        [Document(text, f"d{place}") for place, text in enumerate(texts)], n=n,
    )  # fmt: skip
    held = {run for text in texts for run in runs(text, n)}
    for one, (inputs, answer) in zip(found.items, pairs, strict=True):
        own = {*runs(inputs, n), *runs(answer, n)}
        assert (one.runs, one.shared) == (len(own), len(own & held))
        assert one.in_inputs == bool(set(runs(inputs, n)) & held)
        assert one.in_answers == bool(set(runs(answer, n)) & held)
        assert (one.document is None) == (not own & held)
        if one.document is not None:
            assert own & set(runs(texts[int(one.document[1:])], n))
    assert found.documents == len(texts)
    assert found.too_short == sum(not runs(a, n) and not runs(b, n) for a, b in pairs)


def test_the_worst_names_its_document() -> None:
    text = "in the year of the great flood the river left its bed and took the mill away"
    items = [
        Item("summarize: nothing is known", ["of it"]),
        Item(f"question: what happened? context: {text}", ["the flood"]),
        Item(f"summarize: elsewhere, {text[:50]}", []),
    ]
    found = overlap(items, [Document("other words", "a:1"), Document(text.upper() + "!", "a:2")], n=8)
    assert [one.number for one in found.dirty] == [1, 2]
    assert {one.document for one in found.dirty} == {"a:2"}
    assert found.dirty[0].share > found.dirty[1].share
    assert found.too_short == 1
    told = found.to_json()
    assert (told["overlapping"], told["in_inputs"], told["in_answers"]) == (2, 2, 0)


def test_order_matters_and_punctuation_does_not() -> None:
    hashes = Hashes(3)
    np.testing.assert_array_equal(hashes("A b, c d"), hashes("a  b c (D)"))
    every = [tuple(hashes(f"{x} {y} {z}")) for x in "abcd" for y in "abcd" for z in "abcd"]
    assert len(set(every)) == 64
    assert len(hashes("two words")) == 0
    with pytest.raises(UserError, match="at least 1 word"):
        Hashes(0)


TEXTS = [f"document {n} tells of things number {n} and of nothing else, but at length and twice {n}" for n in range(40)]


@pytest.mark.parametrize("tokenizer", ["bytes", "t5"])
def test_a_built_corpus_is_read_document_by_document(
    tokenizer: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    where = "bytes" if tokenizer == "bytes" else request.getfixturevalue("shared") / "data" / "t5_tokenizer"
    corpus = build([Memory("tales", TEXTS)], load(where), tmp_path / "corpus", shard_tokens=200)
    read = list(corpus_documents(corpus))
    assert [words(document.text) for document in read] == [words(text) for text in TEXTS]
    found = overlap([Item(f"q: {TEXTS[17]}", ["x"])], read, n=8)
    assert found.dirty[0].document == "document 17 (memory:tales)"


def test_torn_examples_are_refused(tmp_path: Path) -> None:
    texts = ["Ada Lovelace met Charles Babbage in London in 1833. She wrote the first program."] * 3
    build([Memory("ada", texts)], load("bytes"), tmp_path / "salient", salient=Salient("nem", "builtin"))
    with pytest.raises(UserError, match="masked words"):
        next(corpus_documents(open_corpus(tmp_path / "salient")))
