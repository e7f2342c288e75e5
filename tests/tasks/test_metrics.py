"""Metrics against the numbers T5's own tests record, against scikit-learn, and against a second implementation."""

import json
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, matthews_corrcoef

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
    (case,) = [case for case in facts["qa_metrics"] if case["metric"] == "trivia_qa"]
    em = metrics.trivia_exact_match.score(case["predictions"], case["targets"])
    f1 = metrics.trivia_f1.score(case["predictions"], case["targets"])
    assert (em, f1) == (case["expected"]["em"], case["expected"]["f1"])


def test_recorded_normal_forms(facts: dict) -> None:
    forms = {"normalize_squad": metrics.normalised, "normalize_trivia_qa": metrics.trivia_normalised}
    assert {case["function"] for case in facts["normalisation"]} == set(forms)
    for case in facts["normalisation"]:
        assert forms[case["function"]](case["input"]) == case["expected"]


def test_recorded_label_scores(facts: dict) -> None:
    cases = {case["metric"]: case for case in facts["classification_metrics"]}
    for metric, name in [
        (metrics.accuracy, "accuracy"),
        (metrics.matthews, "matthews_corrcoef x100"),
        (metrics.macro_f1, "mean_multiclass_f1"),
        (metrics.binary_f1("1"), "f1_score_with_invalid"),
        (metrics.pearson, "pearson_corrcoef"),
        (metrics.spearman, "spearman_corrcoef"),
    ]:
        case = cases[name]
        truth = [[str(label)] for label in case["targets"]]
        (expected,) = case["expected"].values()
        assert metric.score([str(label) for label in case["predictions"]], truth) == pytest.approx(expected), name
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


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("abcd")), min_size=1, max_size=30))
def test_macro_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    truth, predictions = map(list, zip(*pairs, strict=True))
    expected = f1_score(truth, predictions, labels=sorted(set(truth)), average="macro", zero_division=0)
    assert metrics.macro_f1.score(predictions, [[label] for label in truth]) == pytest.approx(100 * expected)


@given(st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["yes", "no", "?"])), min_size=1))
def test_binary_f1_is_scikit_learns(pairs: list[tuple[str, str]]) -> None:
    """A prediction beside the two labels is the wrong one of them, whichever that is."""
    truth, predictions = map(list, zip(*pairs, strict=True))
    wrong = {"yes": "no", "no": "yes"}
    counted = [wrong[label] if one == "?" else one for label, one in pairs]
    expected = f1_score(truth, counted, pos_label="yes", zero_division=0) if {*truth, *counted} != {"no"} else 0.0
    found = metrics.binary_f1("yes", name="paraphrase_f1")
    assert found.name == "paraphrase_f1"
    assert found.score(predictions, [[label] for label in truth]) == pytest.approx(100 * expected)


def multirc() -> tuple[list[str], list[Pair]]:
    """Three questions of 2, 3 and 1 answers, told apart by their groups, the second with one mistake."""
    truth = ["True", "False", "True", "True", "False", "False"]
    groups = ["q1", "q1", "q2", "q2", "q2", "q3"]
    predictions = ["True", "False", "True", "False", "False", "nonsense"]
    return predictions, [Pair("", [label], group) for label, group in zip(truth, groups, strict=True)]


def test_multirc_over_all_answers_is_scikit_learns() -> None:
    predictions, pairs = multirc()
    counted = ["True" if one == "nonsense" else one for one in predictions]  # no label where False is right: True
    expected = f1_score([pair.accepted[0] for pair in pairs], counted, pos_label="True")
    assert metrics.multirc_f1.score(predictions, pairs) == pytest.approx(100 * expected)
    assert metrics.multirc_f1.items(predictions, pairs).tolist() == [[1, 1, 1], [1, 1, 2], [0, 1, 0]]


def test_multirc_questions_are_right_as_a_whole() -> None:
    predictions, pairs = multirc()
    assert metrics.multirc_exact_match.items(predictions, pairs).tolist() == [1, 0, 0]
    assert metrics.multirc_exact_match.score(predictions, pairs) == pytest.approx(100 / 3)
    assert metrics.multirc_f1.grouped
    assert metrics.multirc_exact_match.grouped
    alone = [pair._replace(group=None) for pair in pairs]  # each answer a question of its own
    assert metrics.multirc_exact_match.score(predictions, alone) == metrics.accuracy.score(predictions, alone)


@given(st.lists(st.sampled_from(["x", "y", None]), max_size=8))
def test_groups_are_numbered_as_they_come(names: list[str | None]) -> None:
    found = metrics.groups([Pair("", ["a"], name) for name in names]).tolist()
    assert [one for place, one in enumerate(found) if one not in found[:place]] == list(range(len(set(found))))
    for (one, first), (other, second) in combinations(zip(names, found, strict=True), 2):
        assert (first == second) == (one is not None and one == other)


@pytest.mark.parametrize(
    ("prediction", "noun", "same"),
    [
        ("Bob", "bob", True),
        ("the city councilmen", "The city councilmen", True),
        ("councilmen", "the city councilmen", True),
        ("the very old dog", "that old dog", True),
        ("the demonstrators", "the city councilmen", False),
        ("Bob", "Bob's hat", False),
        ("Bob's", "Bob's hat", True),
        ("city mayor", "city councilmen", False),
        ("", "Bob", False),
        ("the", "Bob", False),
    ],
)
def test_winograds_nouns(prediction: str, noun: str, same: bool) -> None:
    named = prediction not in ("", "the")  # nothing named is never right
    assert metrics.wsc_accuracy.score([prediction], [Pair("", [noun])]) == 100 * same
    assert metrics.wsc_accuracy.score([prediction], [Pair("", [noun], negated=True)]) == 100 * (not same and named)


def test_a_lost_label_does_not_pull_resamples_down() -> None:
    """Every answer right: each resample scores 100, also one without the rare label."""
    truth = [["a"]] * 9 + [["b"]]
    items = metrics.macro_f1.items([one[0] for one in truth], [Pair("", one) for one in truth])
    assert metrics.macro_f1.combine(items[:9]) == 100


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
