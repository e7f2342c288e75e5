"""Words and pieces: word by word gives the ids of the whole text, and every word has its place."""

from pathlib import Path

import pytest

from deepnarrow.tasks.tagging import words_in
from deepnarrow.text import builtin
from deepnarrow.text.tokenizer import Tokenizer, load, train
from deepnarrow.text.words import rows_of_words


@pytest.fixture(scope="module")
def prose() -> list[list[str]]:
    texts = [paragraph for spoken in builtin.topics() for paragraph in builtin.paragraphs(spoken.text)]
    if not texts:
        pytest.skip("this Python was built without its language reference")
    return [[text[start:end] for start, end in words_in(" ".join(text.split()))] for text in texts[:400]]


@pytest.fixture(scope="module")
def trained(prose: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    train((" ".join(words) for words in prose), vocab=512).save(folder)
    return folder


def agree(tokenizer: Tokenizer, sentences: list[list[str]]) -> int:
    """How many sentences are read otherwise word by word than in one piece; where each word starts is checked."""
    rows = rows_of_words(sentences, tokenizer, 10**6)
    assert [row.sentence for row in rows] == list(range(len(sentences)))
    other = 0
    for row, words in zip(rows, sentences, strict=True):
        assert len(row.firsts) == len(words)
        for word, start in zip(words, row.firsts, strict=True):
            pieces = tokenizer.encode(word)
            assert row.ids[start : start + len(pieces)] == pieces
        other += row.ids != [*tokenizer.encode(" ".join(words)), tokenizer.eos]
    return other


def test_a_trained_vocabulary_both_ways_and_bytes(prose: list[list[str]], trained: Path) -> None:
    for tokenizer in (load(trained / "spiece.model"), load(trained / "tokenizer.json"), load("bytes")):
        assert agree(tokenizer, prose) == 0, tokenizer


def test_t5s_vocabulary(shared: Path, prose: list[list[str]]) -> None:
    for file in sorted((shared / "data" / "t5_tokenizer").glob("*")):
        if file.name in ("spiece.model", "tokenizer.json"):
            assert agree(load(file), prose) <= len(prose) // 100  # cuts of equal score


def test_long_sentences_come_in_parts_and_odd_words_have_a_place(trained: Path) -> None:
    tokenizer = load(trained / "tokenizer.json")
    words = ["alpha", "\u200b", "internationalisation" * 9, "beta", "gamma"] * 5
    rows = rows_of_words([words, ["one"]], tokenizer, 24)
    assert all(len(row.ids) <= 24 and row.ids[-1] == tokenizer.eos for row in rows)
    places = [(row.sentence, row.word + number) for row in rows for number in range(len(row.firsts))]
    assert places == [*((0, place) for place in range(25)), (1, 0)]
    assert all(0 <= first < len(row.ids) - 1 for row in rows for first in row.firsts)
