"""Chunks and their scores, beside `seqeval`, an independent implementation of the shared task's script."""

import random

import pytest

from deepnarrow.tasks import Pair, get
from deepnarrow.tasks.chunks import chunks, entity_f1, entity_precision, entity_recall, fitted, token_accuracy
from deepnarrow.tasks.tagging import tagged, tagging_pair

SCHEMES = {
    "bio": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
    "bioes": ["O", "B-X", "I-X", "E-X", "S-X", "I-Y-Z", "B-Y-Z"],
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_chunks_and_scores_are_the_scripts(scheme: str) -> None:
    """Random tags, so that every wrong order occurs: I- after O, E- after E-, a kind that changes inside."""
    metrics = pytest.importorskip("seqeval.metrics", reason="seqeval, the oracle of chunks, is not installed")
    labelling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    generator = random.Random(7)
    sentences = [
        [[generator.choice(SCHEMES[scheme]) for _ in range(length)] for _ in range(2)]
        for length in [generator.randint(1, 12) for _ in range(300)]
    ]
    for true, _ in sentences:
        assert [tuple(chunk) for chunk in chunks(true)] == labelling.get_entities(true)
    pairs = [Pair("", [" ".join(true)]) for true, _ in sentences]
    found = [" ".join(tags) for _, tags in sentences]
    both = [true for true, _ in sentences], [tags for _, tags in sentences]
    for metric, name in ((entity_f1, "f1"), (entity_precision, "precision"), (entity_recall, "recall")):
        wanted = 100 * getattr(metrics, f"{name}_score")(*both)
        assert metric.score(found, pairs) == pytest.approx(wanted, abs=1e-9)
    assert token_accuracy.score(found, pairs) == pytest.approx(100 * metrics.accuracy_score(*both), abs=1e-9)


def test_scores_by_hand() -> None:
    pairs = [Pair("a b c", ["B-X I-X O"]), Pair("d e", ["O B-Y"])]
    found = ["B-X I-X B-X", "O B-X"]  # found: X right, X of nothing, X for Y
    assert entity_precision.score(found, pairs) == pytest.approx(100 / 3)
    assert entity_recall.score(found, pairs) == pytest.approx(100 / 2)
    assert entity_f1.score(found, pairs) == pytest.approx(100 * 2 / 5)
    assert token_accuracy.score(found, pairs) == pytest.approx(100 * 3 / 5)
    assert entity_f1.score(["", ""], pairs) == 0
    assert token_accuracy.score(["", ""], pairs) == 0


def test_a_written_answer_may_have_any_number_of_tags() -> None:
    assert fitted("B-X", 3) == ["B-X", "O", "O"]
    assert fitted("B-X O O O", 2) == ["B-X", "O"]


def test_tags_of_a_sentence() -> None:
    row = tagged("Ada Lovelace wrote to Charles Babbage on 5 July 1843, from London.")
    assert " ".join(row["tokens"]) == "Ada Lovelace wrote to Charles Babbage on 5 July 1843 , from London ."
    assert " ".join(row["tags"]) == "B-NAME I-NAME O O B-NAME I-NAME O B-DATE I-DATE I-DATE O O B-NAME O"


def test_rows_that_are_no_tagging() -> None:
    from deepnarrow.errors import UserError

    for row, said in (
        ({"tokens": ["a", "b"], "tags": ["O"]}, "2 words have 1 tags"),
        ({"tokens": ["a"], "tags": [3]}, "write tags by their names"),
        ({"tokens": ["a b"], "tags": ["O"]}, "has no space in it"),
        ({"tokens": [], "tags": []}, "is empty"),
    ):
        with pytest.raises(UserError, match=said):
            tagging_pair(row)
    with pytest.raises(UserError, match="has no data of its own"):
        list(get("tagging").sources["train"].rows())
