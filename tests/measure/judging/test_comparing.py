"""Comparisons of kept evaluations: the library's own statistics over the same items, and refusals of any others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.measure.evaluate import Evaluation, Prediction, baseline, scores_of
from deepnarrow.measure.judging.comparing import compared, items_of, system, task_in
from deepnarrow.measure.judging.items import fingerprint
from deepnarrow.measure.judging.judge import Wanted, judge
from deepnarrow.measure.judging.kept import Kept
from deepnarrow.measure.judging.subject import subject
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.significance import over_seeds

Ask = Callable[..., Wanted]
COLA = tasks.get("cola")
WORDS = ("unacceptable", "acceptable")


def answered(task: Task, pairs: Sequence[Pair], texts: Sequence[str], data: str = "here") -> Kept:
    """An evaluation in which these were the answers."""
    rows = [
        Prediction(number=n, inputs=pair.inputs, accepted=pair.accepted, prediction=text, scores={}, input_tokens=9,
                   log_probability=-1.0, group=pair.group)
        for n, (pair, text) in enumerate(zip(pairs, texts, strict=True))
    ]  # fmt: skip
    found = Evaluation(
        task=task.name, task_version=task.version, scores=scores_of(task, rows, samples=100, seed=0),
        baseline=baseline(task, pairs), baseline_name=task.baseline.name, n=len(rows), truncated=0, search="by hand",
        seconds=0.0, predictions=rows,
    )  # fmt: skip
    identity = {"task": task.name, "task_version": task.version, "items": fingerprint(pairs)}
    return Kept(Path("nowhere"), found, identity, {"split": "validation", "data": data})


def judgements(seed: int, n: int = 300) -> tuple[list[Pair], Callable[[float], list[str]]]:
    draw = np.random.default_rng(seed)
    truth = draw.integers(0, 2, n)
    pairs = [Pair(f"cola sentence: {place}", [WORDS[label]]) for place, label in enumerate(truth)]

    def answer(skill: float) -> list[str]:
        right = draw.random(n) < skill
        return [WORDS[label] if good else WORDS[1 - label] for label, good in zip(truth, right, strict=True)]

    return pairs, answer


def test_the_better_one_wins_by_every_metric() -> None:
    pairs, answer = judgements(0)
    systems = {"good": [answered(COLA, pairs, answer(0.9))], "bad": [answered(COLA, pairs, answer(0.6))]}
    by_matthews = compared(COLA, systems)
    assert by_matthews.metric == "matthews"
    assert by_matthews.verdicts[0].startswith("good beats bad on cola matthews by ")
    by_accuracy = compared(COLA, systems, "accuracy")
    [found] = by_accuracy.pairs.values()
    assert found.difference.value == pytest.approx(
        systems["good"][0].evaluation.scores["accuracy"].value - systems["bad"][0].evaluation.scores["accuracy"].value
    )
    assert found.n == 300
    assert by_accuracy.baseline == baseline(COLA, pairs)["accuracy"]


def test_seeds_widen_what_is_claimed() -> None:
    pairs, answer = judgements(1)
    runs = [answered(COLA, pairs, answer(skill)) for skill in (0.85, 0.7, 0.78)]
    found = compared(COLA, {"a": runs, "b": [answered(COLA, pairs, answer(0.7))]}, "accuracy")
    [a, b] = found.rows
    items = [COLA.metrics[1].items([p.prediction for p in one.evaluation.predictions], pairs) for one in runs]
    assert a.score == over_seeds(items)
    assert (a.seeds, b.seeds) == (3, 1)
    one = compared(COLA, {"a": runs[:1], "b": runs[1:2]}, "accuracy").rows[0].score
    assert a.score.high - a.score.low > one.high - one.low
    assert "over 3 and 1 seeds" in found.verdicts[0]


def test_three_systems_are_corrected_for() -> None:
    pairs, answer = judgements(2)
    found = compared(COLA, {name: [answered(COLA, pairs, answer(0.7))] for name in "abc"}, "accuracy")
    assert list(found.pairs) == [("a", "b"), ("a", "c"), ("b", "c")]
    assert all(one.adjusted >= one.p for one in found.pairs.values())
    assert "corrected for 3 comparisons" in found.verdicts[0]
    told = found.to_json()
    assert [one["sentence"] for one in told["comparisons"]] == found.verdicts
    assert [one["name"] for one in told["systems"]] == ["a", "b", "c"]


def test_groups_are_resampled_as_groups() -> None:
    multirc = tasks.get("multirc")
    pairs = [Pair(f"q {n}", [str(n % 3 == 0)], group=str(n // 4)) for n in range(80)]
    right = [pair.accepted[0] for pair in pairs]
    found = compared(
        multirc, {"a": [answered(multirc, pairs, right)], "b": [answered(multirc, pairs, ["False"] * 80)]},
        "multirc_exact_match",
    )  # fmt: skip
    assert found.rows[0].score.n == 20
    assert next(iter(found.pairs.values())).n == 20


def test_only_the_same_items_are_compared() -> None:
    pairs, answer = judgements(3)
    a = answered(COLA, pairs, answer(0.8), "dev.jsonl")
    b = answered(COLA, pairs[:200], answer(0.8)[:200], "other.jsonl")
    with pytest.raises(UserError, match=r"a and b were judged on different items \(300 and 200 items; dev.jsonl and"):
        compared(COLA, {"a": [a], "b": [b]})
    with pytest.raises(UserError, match="is not scored by 'acuracy'; did you mean accuracy"):
        compared(COLA, {"a": [a]}, "acuracy")


def test_kept_rows_are_the_metrics_rows(runs: Path, wanted: Ask) -> None:
    kept = judge(subject(runs / "short"), wanted()).kept
    [accuracy] = tasks.get("sst2").metrics
    rows = kept.evaluation.predictions
    np.testing.assert_array_equal(
        items_of(accuracy, kept), accuracy.items([row.prediction for row in rows], [row.pair for row in rows])
    )


def test_a_suite_needs_every_metric() -> None:
    pairs, answer = judgements(4)
    systems = {"a": [answered(COLA, pairs, answer(0.7))]}
    assert compared(COLA, systems).every_score == {}
    assert set(compared(COLA, systems, every=True).every_score["a"]) == {"matthews", "accuracy"}


def test_what_a_name_stands_for(runs: Path, wanted: Ask) -> None:
    assert [one.name for one in system(str(runs / "seeds")).subjects] == [
        str(runs / "seeds" / "seed-0"), str(runs / "seeds" / "seed-1"),
    ]  # fmt: skip
    assert len(system(str(runs / "short") + "/").subjects) == 1
    kept = judge(subject(runs / "short"), wanted()).kept
    found = system(str(kept.folder))
    assert found.kept == kept
    assert task_in(kept) == tasks.get("sst2")
    old = replace(kept, identity={**kept.identity, "task_version": 0})
    with pytest.raises(UserError, match="evaluate the model again"):
        task_in(old)
