"""What `errors` counts, checked by counting again."""

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from deepnarrow import tasks
from deepnarrow.measure.evaluate import Evaluation, Prediction
from deepnarrow.measure.judging.errors import BESIDE, SAME_TEXT, errors
from deepnarrow.measure.judging.judge import Wanted, judge
from deepnarrow.measure.judging.kept import Kept
from deepnarrow.measure.judging.subject import subject
from deepnarrow.tasks.significance import interval, wilson

LABELS = ("negative", "positive")


def row(number: int, true: str, said: str, share: float | None = None, **more: object) -> Prediction:
    """An item; `share` is the probability of the true label."""
    other = LABELS[1 - LABELS.index(true)] if true in LABELS else "x"
    shares = None if share is None else {true: share, other: 1 - share}
    about = {"scores": {"accuracy": float(true == said)}, "input_tokens": 10 + number, "log_probability": -0.5, **more}
    return Prediction(number=number, inputs="i", accepted=[true], prediction=said, probabilities=shares, **about)


def kept(rows: list[Prediction]) -> Kept:
    found = Evaluation(
        task="sst2", task_version=1, scores={"accuracy": interval(np.array([one.scores["accuracy"] for one in rows]))},
        baseline={"accuracy": 50.0}, baseline_name="commonest label", n=len(rows), truncated=0, search="by hand",
        seconds=0.0, predictions=rows,
    )  # fmt: skip
    return Kept(Path("nowhere"), found, {}, {})


def test_the_worst_first() -> None:
    rows = [
        row(0, "positive", "negative", 0.4), row(1, "positive", "positive", 0.9), row(2, "negative", "positive", 0.01),
        row(3, "negative", "positive", 0.3),
    ]  # fmt: skip
    found = errors(kept(rows), tasks.get("sst2"), n=2)
    assert [one.item.number for one in found.worst] == [2, 3]
    assert (found.wrong, found.n, found.metric) == (3, 4, "accuracy")
    assert found.worst[0].right == 0.01
    assert found.worst[0].sure == 0.99
    assert len(errors(kept(rows), tasks.get("sst2"), n=9).worst) == 3  # what is right is not among them


def test_without_the_right_answers_probability_the_surest_comes_first() -> None:
    nq = tasks.get("nq_open")
    rows = [
        row(n, "Ada", "Bob", scores={"exact_match": 0.0}, log_probability=nats) for n, nats in enumerate((-3, -0.1, -2))
    ]
    assert [one.item.number for one in errors(kept_nq(rows), nq).worst] == [1, 2, 0]
    known = [
        row(n, "Ada", "Bob", scores={"exact_match": 0.0}, log_likelihood=nats) for n, nats in enumerate((-3, -0.1, -9))
    ]
    assert [one.item.number for one in errors(kept_nq(known), nq).worst] == [2, 0, 1]
    [often] = errors(kept_nq(rows), nq).frequent
    assert (often.answer, often.times) == ("Bob", 3)


def kept_nq(rows: list[Prediction]) -> Kept:
    found = Evaluation(
        task="nq_open", task_version=1, scores={}, baseline={}, baseline_name="", n=len(rows), truncated=0,
        search="by hand", seconds=0.0, predictions=rows,
    )  # fmt: skip
    return Kept(Path("nowhere"), found, {}, {})


def test_the_matrix_and_the_labels() -> None:
    rows = [
        row(0, "positive", "positive"), row(1, "positive", "negative"), row(2, "positive", "good"),
        row(3, "negative", "negative"), row(4, "negative", "negative"),
    ]  # fmt: skip
    found = errors(kept(rows), tasks.get("sst2"))
    assert found.labels == ["negative", "positive", BESIDE]
    assert found.confusion == [[2, 0, 0], [1, 1, 1]]
    assert [(part.name, part.score) for part in found.by_label] == [
        ("negative", wilson(2, 2)), ("positive", wilson(1, 3)),
    ]  # fmt: skip
    assert {(one.answer, one.expected, one.times) for one in found.confused} == {
        ("negative", "positive", 1), (BESIDE, "positive", 1),
    }  # fmt: skip
    assert sum(map(sum, found.confusion)) == len(rows)


@pytest.mark.parametrize("n", [1, 39, 40, 200])
def test_parts_by_length_hold_every_item_once(n: int) -> None:
    draw = np.random.default_rng(n)
    rows = [row(k, "positive", LABELS[k % 2], input_tokens=int(draw.integers(5, 60))) for k in range(n)]
    parts = errors(kept(rows), tasks.get("sst2")).by_length
    assert sum(part.score.n for part in parts) == n
    assert len(parts) == min(5, max(1, n // 20))
    bounds = [[int(word) for word in part.name.split() if word.isdigit()] for part in parts]
    for low, high in pairwise(bounds):
        assert low[-1] < high[0]
    first = [one for one in rows if one.input_tokens <= bounds[0][-1]]
    assert parts[0].score.value == pytest.approx(100 * np.mean([one.scores["accuracy"] for one in first]))


def test_all_inputs_of_one_length_are_one_part() -> None:
    rows = [row(k, "positive", "positive", input_tokens=7) for k in range(100)]
    [part] = errors(kept(rows), tasks.get("sst2")).by_length
    assert (part.name, part.score.n) == ("7 tokens", 100)
    assert errors(kept(rows), tasks.get("sst2")).worst == []


def test_a_task_of_whole_set_metrics_is_looked_into_by_its_texts(runs: Path, wanted: Callable[..., Wanted]) -> None:
    """STS-B has correlations only."""
    rows = [row(0, "positive", "positive", scores={}), row(1, "positive", "negative", scores={})]
    found = errors(kept_nq(rows), tasks.get("stsb"))
    assert (found.metric, found.wrong) == (SAME_TEXT, 1)
    made = errors(judge(subject(runs / "short"), wanted()).kept, tasks.get("sst2"), n=3)
    assert len(made.worst) == min(3, made.wrong)
    assert made.to_json()["confusion"]["labels"] == list(LABELS)
