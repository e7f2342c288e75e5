"""Averages over suites: by hand, by simulation, and against what the tasks are called."""

import numpy as np
import pytest

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.tasks import suites
from deepnarrow.tasks.significance import Interval, interval
from deepnarrow.tasks.suites import GLUE, SCALING, SUPER_GLUE, Suite, average, missing, tasks_of, weights


def exact(value: float, n: int = 100) -> Interval:
    return Interval(value, value, value, n)


def test_every_member_is_a_task_with_that_metric() -> None:
    for suite in suites.SUITES.values():
        for name, metric in weights(suite):
            assert metric in {one.name for one in tasks.get(name).metrics}
        assert sum(weights(suite).values()) == pytest.approx(1)


def test_the_suites_are_those_of_the_papers() -> None:
    assert len(GLUE.members) == len(SUPER_GLUE.members) == 8
    assert "wnli" not in tasks_of(SCALING)
    assert tasks_of(SCALING) == [*tasks_of(GLUE), *tasks_of(SUPER_GLUE), "squad"]
    assert len(tasks_of(SCALING)) == 18  # the study's 17 tasks, MNLI's two validation sets apart


def test_glue_by_hand() -> None:
    """T5-Base's row of table 14 of Raffel et al. 2020: the printed average, 82.7, has WNLI's 78.8 in it, ours not."""
    scores = {
        "cola": {"matthews": exact(51.1), "accuracy": exact(0.0)},  # accuracy does not count
        "sst2": {"accuracy": exact(95.2)},
        "mrpc": {"f1": exact(90.7), "accuracy": exact(87.5)},
        "stsb": {"pearson": exact(89.4), "spearman": exact(88.6)},
        "qqp": {"f1": exact(72.6), "accuracy": exact(89.4)},
        "mnli": {"accuracy": exact(87.1)},
        "mnli_mismatched": {"accuracy": exact(86.2)},
        "qnli": {"accuracy": exact(93.7)},
        "rte": {"accuracy": exact(80.1)},
    }
    by_hand = (51.1 + 95.2 + 89.1 + 89.0 + 81.0 + 86.65 + 93.7 + 80.1) / 8
    found = average(GLUE, scores)
    assert found.value == pytest.approx(by_hand)
    assert found.low == pytest.approx(by_hand) == pytest.approx(found.high)
    assert found.n == 900
    assert round((8 * found.value + 78.8) / 9, 1) == 82.7


def test_super_glue_as_printed() -> None:
    """T5-Base's row of the same table, and its average, 76.2."""
    row = {
        "boolq": [81.4], "cb": [86.2, 94.0], "copa": [71.2], "multirc": [79.7, 43.1], "record": [75.0, 74.2],
        "super_glue_rte": [81.5], "wic": [68.3], "wsc": [80.8],
    }  # fmt: skip
    scores = {task: dict(zip(metrics, map(exact, row[task]), strict=True)) for task, metrics in members(SUPER_GLUE)}
    assert round(average(SUPER_GLUE, scores).value, 1) == 76.2


def test_the_three_suites_by_hand() -> None:
    scores = {task: {metric: exact(60.0) for metric in metrics} for task, metrics in members(SCALING)}
    for task in tasks_of(SUPER_GLUE):
        scores[task] = {metric: exact(30.0) for metric in scores[task]}
    scores["squad"] = {"exact_match": exact(80.0), "token_f1": exact(90.0)}
    found = average(SCALING, scores)
    assert found.value == pytest.approx((60 + 30 + 85) / 3)
    assert found.n == 1700  # the items of RTE count once


def members(suite: Suite) -> list[tuple[str, list[str]]]:
    return [(task, [metric for one, metric in weights(suite) if one == task]) for task in tasks_of(suite)]


def test_intervals_by_hand() -> None:
    two = Suite(name="two", about="", members=(suites.Member(("a",), ("m",)), suites.Member(("b",), ("m",))))
    found = average(two, {"a": {"m": Interval(50, 44, 58, 10)}, "b": {"m": Interval(70, 62, 76, 20)}})
    assert found == pytest.approx((60, 60 - 5, 60 + 5, 30))  # half of the root of 36 + 64, on either side
    same = Suite(
        name="same", about="", members=tuple(suites.Member((task,), ("m",)) for task in ("rte", "super_glue_rte"))
    )
    found = average(same, {"rte": {"m": Interval(50, 44, 58, 10)}, "super_glue_rte": {"m": Interval(70, 62, 76, 10)}})
    assert found == pytest.approx((60, 60 - 7, 60 + 7, 10))  # the same items: distances are added


def test_intervals_hold_what_they_promise() -> None:
    """95 % of the intervals of four right-or-wrong tasks hold the true mean, within what 2,000 trials can tell."""
    rng = np.random.default_rng(0)
    shares, counts = np.array([0.55, 0.7, 0.85, 0.95]), (56, 100, 277, 400)
    suite = Suite(name="four", about="", members=tuple(suites.Member((str(n),), ("m",)) for n in range(4)))
    held = 0
    for _ in range(2000):
        drawn = [interval((rng.random(n) < share).astype(float)) for share, n in zip(shares, counts, strict=True)]
        found = average(suite, {str(place): {"m": one} for place, one in enumerate(drawn)})
        held += found.low <= 100 * shares.mean() <= found.high
    assert 0.935 <= held / 2000 <= 0.968


def test_what_is_missing_is_named() -> None:
    scores = {"cola": {"accuracy": exact(70)}, "sst2": {"accuracy": exact(90)}}
    assert missing(GLUE, scores)[:2] == ["cola matthews", "mrpc f1"]
    with pytest.raises(UserError, match="the average of glue also needs cola matthews, mrpc f1, mrpc accuracy, stsb"):
        average(GLUE, scores)
    assert suites.get("super_glue") is SUPER_GLUE
    with pytest.raises(UserError, match="unknown suite 'superglue'; did you mean super_glue"):
        suites.get("superglue")
