"""Text as it grows: what is told piece by piece is the whole, for any ids of any tokenizer."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.serve.words import Text, Until
from deepnarrow.text import builtin
from deepnarrow.text.byte_tokenizer import ByteTokenizer
from deepnarrow.text.tokenizer import Tokenizer, train

BYTES = ByteTokenizer()


@pytest.fixture(scope="module")
def pieces() -> Tokenizer:
    return train((topic.text for topic in builtin.topics()), vocab=512, max_bytes=100_000)


def told(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text = Text(tokenizer)
    return "".join([text.add(id) for id in ids if not text.is_special(id)]) + text.rest()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 383), max_size=40))
def test_any_bytes(ids: list[int]) -> None:
    assert told(BYTES, ids) == BYTES.decode(ids)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_pieces(pieces: Tokenizer, data: st.DataObject) -> None:
    ids = data.draw(st.lists(st.integers(0, pieces.size - 1), max_size=40))
    assert told(pieces, ids) == pieces.decode(ids)


def test_a_character_is_told_when_it_is_whole() -> None:
    text = Text(BYTES)
    assert [text.add(id) for id in BYTES.encode("a\u20ac!")] == ["a", "", "", "\u20ac", "!"]


@settings(max_examples=100, deadline=None)
@given(st.text("abE", max_size=30), st.lists(st.text("abE", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_until_any_end(whole: str, ends: list[str], data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    until, found = Until(ends), ""
    for first, last in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        found += until.add(whole[first:last])
    found += until.rest()
    wanted = whole[: min((whole.index(end) for end in ends if end in whole), default=len(whole))]
    assert found == wanted
