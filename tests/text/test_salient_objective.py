"""Salient span masking: the two forms, one example for each span, and the form in which a corpus stores them."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Sentinels, salient
from deepnarrow.text.salient import taggers
from deepnarrow.text.salient.spans import Span, cut, from_characters
from deepnarrow.text.tokenizer import ByteTokenizer, Tokenizer, load

TEXT = (
    "EARLY LIFE\n"
    "Zo\u00eb Bl\u0101ck was born in Gda\u0144sk on 3 May 1999. It rained. \U0001f600\n"
    "History\n"
    "She met Bj\u00f6rk, who left for S\u00e3o Paulo in 2021."
)
SPANS = ["Zo\u00eb Bl\u0101ck", "Gda\u0144sk", "3 May 1999", "Bj\u00f6rk", "S\u00e3o Paulo", "2021"]


@pytest.fixture(scope="module", params=["bytes", "t5"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    if request.param == "bytes":
        return ByteTokenizer()
    return load(request.getfixturevalue("shared") / "data" / "t5_tokenizer" / "spiece.model")


# The forms


def test_one_example_a_span() -> None:
    found = salient.pairs(TEXT, taggers.builtin(TEXT), form="nem")
    assert [target for _, target in found] == SPANS
    assert found[1] == ("nem: Zo\u00eb Bl\u0101ck was born in _X_ on 3 May 1999.", "Gda\u0144sk")
    assert found[3] == ("nem: She met _X_, who left for S\u00e3o Paulo in 2021.", "Bj\u00f6rk")
    found = salient.pairs(TEXT, taggers.builtin(TEXT), form="sentinel")
    assert found[4] == ("She met Bj\u00f6rk, who left for <extra_id_0> in 2021.", "<extra_id_0> S\u00e3o Paulo")


def test_nothing_comes_of_a_sentence_without_spans() -> None:
    assert salient.pairs("It rained. It snowed.", [], form="nem") == []
    assert salient.pairs("Ada left. Bob stayed.", [Span(4, 13, "PER")], form="nem") == [], "a span over the border"


@given(
    words=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1), min_size=1),
    data=st.data(),
    form=st.sampled_from(sorted(salient.FORMS)),
)
def test_putting_the_target_back_gives_the_sentence(words: list[str], data: st.DataObject, form: str) -> None:
    text = "a" + " ".join(words).translate(
        dict.fromkeys(map(ord, ".!?\u2026\u061f\u06d4\u3002\uff01\uff1f\u0964"), ",")
    )
    start, end = sorted(data.draw(st.tuples(st.integers(0, len(text)), st.integers(0, len(text)))))
    (span,) = from_characters(text, [(start, end, "PER")])
    ((inputs, target),) = salient.pairs(text, [span], form=form)
    before, mask, before_target = salient.FORMS[form]
    assert inputs == before + text[:start] + mask + text[end:]
    assert target == before_target + cut(text, span)


def test_an_unknown_form_teaches(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="no such form of salient examples: 'sentinels'; did you mean sentinel"):
        salient.pairs(TEXT, [], form="sentinels")
    with pytest.raises(UserError, match="no such form"):
        salient.documents(TEXT, tokenizer, "builtin", "nen")


# As a corpus stores it


@pytest.mark.parametrize("form", ["nem", "sentinel"])
def test_a_stored_document_is_inputs_end_and_target(tokenizer: Tokenizer, form: str) -> None:
    found = salient.documents(TEXT, tokenizer, "builtin", form)
    pairs = salient.pairs(TEXT, taggers.builtin(TEXT), form=form)
    assert found == [[*tokenizer.encode(inputs), tokenizer.eos, *tokenizer.encode(target)] for inputs, target in pairs]
    sentinels = Sentinels.of(tokenizer)
    for ids, (inputs, target) in zip(found, pairs, strict=True):
        assert ids.count(tokenizer.sentinel(0)) == 2 * (form == "sentinel")
        sides = salient.example(np.array(ids, np.int32), None, sentinels)
        assert [side[-1] for side in sides] == [1, 1]
        assert [side.dtype for side in sides] == [np.int32, np.int32]
        assert [side[:-1].tolist() for side in sides] == [tokenizer.encode(inputs), tokenizer.encode(target)]
        if form == "sentinel":
            assert sides[1][0] == tokenizer.sentinel(0)


def test_a_tagger_may_be_a_function(tokenizer: Tokenizer) -> None:
    dates = salient.documents(TEXT, tokenizer, taggers.dates_alone, "nem")
    assert dates == salient.documents(TEXT, tokenizer, "dates", "nem")
    assert len(dates) == 2


def test_headings_and_names_of_special_tokens_are_passed_over(tokenizer: Tokenizer) -> None:
    assert salient.documents("The life of Ada Blom\nVisit Rome\n", tokenizer, "builtin", "nem") == []
    for name in ("</s>", "<pad>", "<extra_id_0>", "<extra_id_7>"):
        text = f"Ada Blom wrote {name} in 1921. She died in Rome in 1930."
        for form in salient.FORMS:
            found = salient.documents(text, tokenizer, "builtin", form)
            assert [tokenizer.decode(ids[ids.index(1) + 1 :])[-4:] for ids in found] == ["Rome", "1930"], (name, form)


def test_the_form_sentinel_needs_a_sentinel() -> None:
    with pytest.raises(UserError, match="needs a tokenizer with sentinels"):
        salient.documents(TEXT, ByteTokenizer(sentinels=0), "builtin", "sentinel")
    assert len(salient.documents(TEXT, ByteTokenizer(sentinels=0), "builtin", "nem")) == len(SPANS)


# As training reads it


def test_parting_draws_nothing_and_takes_a_document_that_ends_with_eos() -> None:
    sentinels, generator = Sentinels(first=99, count=10, eos=1), np.random.Generator(np.random.Philox(0))
    before = str(generator.bit_generator.state)
    for ids in ([7, 8, 1, 5, 6], [7, 8, 1, 5, 6, 1]):
        inputs, targets = salient.example(np.array(ids, np.int32), generator, sentinels)
        assert (inputs.tolist(), targets.tolist()) == ([7, 8, 1], [5, 6, 1])
    assert str(generator.bit_generator.state) == before
    assert salient.piece_length(512) is None


def test_a_plain_corpus_is_refused() -> None:
    with pytest.raises(UserError, match="corpus build --salient"):
        salient.example(np.arange(3, 9, dtype=np.int32), None, Sentinels(first=99, count=10, eos=1))


def test_the_corpus_of_the_closed_book_models_in_small(shared: Path) -> None:
    """On real articles every target is found again in its sentence, and answers are names and dates, not scraps."""
    import gzip
    import json

    path = shared / "data" / "pretrain" / "wikipedia_articles.jsonl.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not there")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        texts = [json.loads(next(file))["text"] for _ in range(12)]
    pairs = [pair for text in texts for pair in salient.pairs(text, taggers.builtin(text), form="nem")]
    assert len(pairs) > 1000
    for inputs, target in pairs:
        assert inputs.startswith("nem: ")
        assert any(inputs.removeprefix("nem: ").replace("_X_", target, 1) in text for text in texts)
    assert np.median([len(target) for _, target in pairs]) < 16
