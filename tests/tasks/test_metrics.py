"""Metrics against the numbers T5's own tests record, against scikit-learn, and against a second implementation."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import matthews_corrcoef

from deepnarrow.tasks import Pair, metrics
from deepnarrow.tasks.metrics import Metric

EVERY = [value for value in vars(metrics).values() if isinstance(value, Metric)]
OF_OTHERS = [metrics.pearson, metrics.spearman, metrics.multirc_f1]  # of numbers and of "True"; tested by themselves
OF_TEXT = [metric for metric in EVERY if metric not in OF_OTHERS]
OF_SETS = [metrics.matthews, metrics.macro_f1]
WORDS = st.lists(
    st.sampled_from(["the", "a", "moose", "Moose!", "1987", "red", "U.S.", "\N{CYRILLIC SMALL LETTER ZHE}"])
)
TEXT = WORDS.map(" ".join) | st.text(max_size=12)


@pytest.fixture(scope="module")
def facts(shared: Path) -> dict:
    return json.loads((shared / "data/golden/t5_golden_facts.json").read_text("utf-8"))


def test_recorded_answer_scores(facts: dict) -> None:
    cases = [case for case in facts["qa_metrics"] if case["metric"] == "squad"]
    assert len(cases) == 4
    for case in cases:
        em = metrics.exact_match.score(case["predictions"], case["targets"])
        f1 = metrics.token_f1.score(case["predictions"], case["targets"])
        assert (em, f1) == (pytest.approx(case["expected"]["em"]), pytest.approx(case["expected"]["f1"]))


def test_recorded_normal_forms(facts: dict) -> None:
    for case in facts["normalisation"]:
        if case["function"] == "normalize_squad":
            assert metrics.normalised(case["input"]) == case["expected"]


def test_recorded_label_scores(facts: dict) -> None:
    cases = {case["metric"]: case for case in facts["classification_metrics"]}
    for metric, name in [(metrics.accuracy, "accuracy"), (metrics.matthews, "matthews_corrcoef x100")]:
        case = cases[name]
        truth = [[str(label)] for label in case["targets"]]
        expected = case["expected"][name.split()[0]]
        assert metric.score([str(label) for label in case["predictions"]], truth) == pytest.approx(expected)
    case = cases["sequence_accuracy"]
    found = metrics.accuracy.score(case["predictions"], [[one] for one in case["targets"]])
    assert found == case["expected"]["sequence_accuracy"]


@pytest.mark.parametrize(
    ("file", "published_rank"), [("predictions_bert_ensemble", 1), ("predictions_logistic_regression", 2)]
)
def test_published_squad_predictions(shared: Path, file: str, published_rank: int) -> None:
    """Whole files of real predictions, scored here and by character tables and set arithmetic."""
    folder = shared / "data/squad"
    rows = [json.loads(line) for line in (folder / "squad_dev.jsonl").read_text("utf-8").splitlines()]
    answers = json.loads((folder / f"{file}.json").read_text("utf-8"))
    predictions = [answers[row["id"]] for row in rows]
    accepted = [row["answers"] for row in rows]
    pairs = [second_opinion(text, many) for text, many in zip(predictions, accepted, strict=True)]
    em, f1 = (100 * sum(column) / len(rows) for column in zip(*pairs, strict=True))
    assert metrics.exact_match.score(predictions, accepted) == pytest.approx(em)
    assert metrics.token_f1.score(predictions, accepted) == pytest.approx(f1)
    assert (em > 75) == (published_rank == 1)


def second_opinion(prediction: str, answers: list[str]) -> tuple[float, float]:
    def form(text: str) -> list[str]:
        kept = "".join(
            c for c in text.lower() if not (c.isascii() and c.isprintable() and not c.isalnum() and c != " ")
        )
        return re.sub(r"(?<!\w)(?:the|an|a)(?!\w)", " ", kept).split()

    def overlap(a: list[str], b: list[str]) -> float:
        rest, common = list(b), 0
        for word in a:
            if word in rest:
                rest.remove(word)
                common += 1
        if not common:
            return 0.0
        precision, recall = common / len(a), common / len(b)
        return 2 * precision * recall / (precision + recall)

    forms = [form(answer) for answer in answers]
    return float(form(prediction) in forms), max(overlap(form(prediction), one) for one in forms)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_matthews_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    truth, predictions = map(list, zip(*pairs, strict=True))
    found = metrics.matthews.score(predictions, [[label] for label in truth])
    counted = [label if label in truth else "beside the set" for label in predictions]
    if len({*truth, *counted}) == 1:
        assert found == 0  # scikit-learn warns of one single label, and gives 0 too
    else:
        assert found == pytest.approx(100 * matthews_corrcoef(truth, counted), abs=1e-9)


@pytest.mark.parametrize(
    ("truth", "predictions", "expected"),
    [("ab", "ab", 100), ("ab", "ba", -100), ("aa", "aa", 0), ("aa", "bb", 0), ("ab", "aa", 0), ("aab", "aac", 0.0)],
)
def test_matthews_at_its_ends(truth: str, predictions: str, expected: float) -> None:
    """One label, predicted or true, tells nothing of correlation: 0 by convention, and no warning."""
    found = metrics.matthews.score(list(predictions), [[label] for label in truth])
    if truth == "aab":
        expected = 100 * matthews_corrcoef(list(truth), list(predictions))
    assert found == pytest.approx(expected)


def test_matthews_of_many_rows_has_no_rounding_at_its_edge() -> None:
    """One odd prediction among very many is still a correlation, not a rounding error taken for none."""
    n = 300_000
    truth = [["b"]] + [["a"]] * (n - 1)
    assert metrics.matthews.score(["b"] + ["a"] * (n - 1), truth) == pytest.approx(100)
    assert metrics.matthews.score(["a"] * n, truth) == 0


@pytest.mark.parametrize("metric", OF_TEXT, ids=lambda metric: metric.name)
def test_perfect_answers_score_100_and_empty_ones_do_not_crash(metric: Metric) -> None:
    accepted = [["the red moose runs", "one moose ran home"], ["South London"], ["1,987"]]
    assert metric.score([many[0] for many in accepted], accepted) == pytest.approx(100)
    if metric not in OF_SETS:  # their truth is the first answer, the only one a label has
        assert metric.score([many[-1] for many in accepted], accepted) == pytest.approx(100)
    assert abs(metric.score([""] * 3, accepted)) <= 100
    assert abs(metric.score([""], [["x"]])) <= 100


@pytest.mark.parametrize("metric", OF_TEXT, ids=lambda metric: metric.name)
@given(st.data())
def test_scores_stay_in_range_and_items_are_rows(metric: Metric, data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=4))
    predictions, accepted = map(list, zip(*rows, strict=True))
    items = metric.items(predictions, [Pair("", many) for many in accepted])
    assert len(items) == len(rows)
    assert np.isfinite(items).all()
    assert (-100 if metric is metrics.matthews else 0) - 1e-9 <= metric.combine(items) <= 100 + 1e-9


@given(TEXT, TEXT)
def test_overlap_is_symmetric_and_at_least_exactness(one: str, other: str) -> None:
    assert metrics.token_overlap(one, other) == metrics.token_overlap(other, one)
    if metrics.normalised(one):
        assert metrics.token_overlap(one, other) >= metrics.same_answer(one, other)


def test_unequal_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="longer"):
        metrics.exact_match.score(["a"], [["a"], ["b"]])
