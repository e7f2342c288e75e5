"""Every document of the test data, three ways. 24 MB; about a minute."""

from pathlib import Path

import pytest

from deepnarrow.text.sources import documents
from deepnarrow.text.tokenizer import JsonTokenizer, SentencePieceTokenizer, load

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def texts(shared: Path) -> list[str]:
    return [document.text for document in documents(shared / "data" / "pretrain")]


def test_every_document_has_the_references_ids(shared: Path, texts: list[str]) -> None:
    from transformers import AutoTokenizer

    folder = shared / "data" / "t5_tokenizer"
    ours, pieces = load(folder), load(folder / "spiece.model")
    assert isinstance(ours, JsonTokenizer)
    assert isinstance(pieces, SentencePieceTokenizer)
    expected = AutoTokenizer.from_pretrained(folder)(texts, add_special_tokens=False, verbose=False).input_ids
    assert ours.encode_batch(texts) == expected
    assert ours.encode_whole(texts) == expected

    marked = [bool(pieces.special.search(text)) for text in texts]
    found = pieces.encode_batch(texts)
    library = pieces.engine.encode(texts)
    assert all(one == other or special for one, other, special in zip(found, library, marked, strict=True))

    different = [place for place, ids in enumerate(found) if ids != expected[place]]
    assert 0 < len(different) < 0.01 * len(texts)
    for place in different:  # the same text, cut in another way, of the same likelihood
        assert pieces.decode(found[place]) == pieces.decode(expected[place])
        one, other = (sum(pieces.model.pieces[index].score for index in ids) for ids in (found[place], expected[place]))
        assert one == pytest.approx(other, abs=0.05)
        assert abs(len(found[place]) - len(expected[place])) <= 10


def test_a_trained_vocabulary_agrees_with_its_tokenizer_json(texts: list[str], tmp_path: Path) -> None:
    from deepnarrow.text.tokenizer import train

    pieces = train(texts[::10], vocab=8192, out=tmp_path / "t")
    ids, other = pieces.encode_batch(texts), load(tmp_path / "t").encode_batch(texts)
    assert sum(one != two for one, two in zip(ids, other, strict=True)) < 0.01 * len(texts)
