"""What a model gets wrong: the worst items, scores by length and by label, confusions, frequent wrong answers.

Everything is read from an evaluation that was kept; nothing is asked of the model again.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from deepnarrow.measure.confidence import right_share
from deepnarrow.measure.evaluate import Prediction
from deepnarrow.measure.judging.kept import Kept
from deepnarrow.tasks import Task
from deepnarrow.tasks.significance import Interval, interval

BESIDE = "(no label)"  # an answer beside the set
PARTS, PART_ITEMS = 5, 20  # parts by length at most, and the items that each of them should have at least
WRONG = 0.5  # below it an answer counts as wrong
SAME_TEXT = "same text"  # how an item is scored whose task has metrics of the whole set only


class Part(NamedTuple):
    """Some of the items, and their mean score in percent."""

    name: str
    score: Interval


class Often(NamedTuple):
    """A wrong answer that is given again and again, or a pair of labels that is."""

    answer: str
    expected: str | None
    times: int


class Worst(NamedTuple):
    """An item. `sure` is the probability of its own answer, `right` that of the right one, where they are known."""

    item: Prediction
    score: float  # 0 to 1
    sure: float | None
    right: float | None


@dataclass(frozen=True)
class Errors:
    metric: str  # that the items are scored by
    n: int
    wrong: int  # items below `WRONG`
    all_or_nothing: bool  # every item is right or wrong
    worst: list[Worst]
    by_length: list[Part]
    by_label: list[Part]
    labels: list[str]  # of the matrix
    confusion: list[list[int]]  # true label by given label
    confused: list[Often]  # pairs of labels, the most frequent first
    frequent: list[Often]

    def to_json(self) -> dict[str, Any]:
        def part(one: Part) -> dict[str, Any]:
            return {"name": one.name, **one.score._asdict()}

        return {
            "item_metric": self.metric,
            "n": self.n,
            "wrong": self.wrong,
            "worst": [
                {"score": one.score, "sure": one.sure, "right": one.right} | asdict(one.item) for one in self.worst
            ],
            "by_length": [part(one) for one in self.by_length],
            "by_label": [part(one) for one in self.by_label],
            "confusion": {"labels": self.labels, "rows_are_true": self.confusion},
            "confused": [one._asdict() for one in self.confused],
            "frequent_wrong_answers": [one._asdict() for one in self.frequent],
        }


def errors(kept: Kept, task: Task, *, n: int = 10) -> Errors:
    """Look into a kept evaluation: its `n` worst items, and where they lie."""
    rows = kept.evaluation.predictions
    metric, score = scoring(task, rows)
    scores = np.array([score(one) for one in rows])
    wrong = [one for one, value in zip(rows, scores, strict=True) if value < WRONG]
    labels = list(task.labels or ())
    return Errors(
        metric=metric,
        n=len(rows),
        wrong=len(wrong),
        all_or_nothing=bool(np.isin(scores, (0.0, 1.0)).all()),
        worst=worst(rows, scores, n),
        by_length=by_length(rows, scores),
        by_label=by_label(rows, scores, labels),
        labels=confusion_labels(rows, labels),
        confusion=confusion(rows, labels),
        confused=confused(wrong, labels),
        frequent=[
            Often(text, None, count)
            for text, count in Counter(one.prediction for one in wrong).most_common(n)
            if count > 1 or labels
        ],
    )


def scoring(task: Task, rows: Sequence[Prediction]) -> tuple[str, Callable[[Prediction], float]]:
    """The first of the task's metrics that scores single items; else whether the text is an accepted one."""
    known = rows[0].scores if rows else {}
    name = next((metric.name for metric in task.metrics if metric.name in known), None)
    if name is None:
        return SAME_TEXT, lambda one: float((one.prediction.strip() in one.accepted) != one.negated)
    return name, lambda one: one.scores[name]


def worst(rows: Sequence[Prediction], scores: np.ndarray, n: int) -> list[Worst]:
    """The lowest scores; among equal ones first those whose right answer the model found least likely.

    Where that is not known, first those of whose own answer it was surest.
    """
    found = [Worst(one, float(value), sure(one), right(one)) for one, value in zip(rows, scores, strict=True)]
    imperfect = [one for one in found if one.score < 1]
    return sorted(imperfect, key=lambda one: (one.score, -doubt(one), one.item.number))[:n]


def doubt(one: Worst) -> float:
    """How far off a model was: what it denied the right answer, or what it gave its own."""
    return 1 - one.right if one.right is not None else (one.sure or 0.0)


def sure(one: Prediction) -> float | None:
    """The probability of the model's own answer: among the labels, or of the text it generated."""
    if one.probabilities is not None:
        return one.probabilities.get(one.prediction)
    return None if one.log_probability is None else float(np.exp(min(one.log_probability, 0.0)))


def right(one: Prediction) -> float | None:
    """The probability of the right answer: among the labels, or of the first accepted text where it was scored."""
    if one.probabilities is not None:
        return right_share(one)
    return None if one.log_likelihood is None else float(np.exp(one.log_likelihood))


def by_length(rows: Sequence[Prediction], scores: np.ndarray) -> list[Part]:
    """Scores of items of like input length; the parts hold about equally many."""
    if not rows:
        return []
    lengths = np.array([one.input_tokens for one in rows])
    parts = max(1, min(PARTS, len(rows) // PART_ITEMS))
    edges = np.unique(np.quantile(lengths, np.arange(1, parts) / parts, method="higher"))
    place = np.searchsorted(edges, lengths, side="right")
    found = []
    for part in np.unique(place):
        here = lengths[place == part]
        low, high = int(here.min()), int(here.max())
        name = f"{low} tokens" if low == high else f"{low} to {high} tokens"
        found.append(Part(name, interval(scores[place == part])))
    return found


def by_label(rows: Sequence[Prediction], scores: np.ndarray, labels: Sequence[str]) -> list[Part]:
    """The mean score of the items of each true label: its recall, where the score is 1 for a right label."""
    true = np.array([one.accepted[0] if one.accepted else "" for one in rows])
    return [Part(label, interval(scores[true == label])) for label in labels if (true == label).any()]


def given(one: Prediction, labels: Sequence[str]) -> str:
    text = one.prediction.strip()
    return text if text in labels else BESIDE


def confusion_labels(rows: Sequence[Prediction], labels: Sequence[str]) -> list[str]:
    """The labels, and a place for answers beside them where there are any."""
    beside = labels and any(given(one, labels) == BESIDE for one in rows)
    return [*labels, *([BESIDE] if beside else [])]


def confusion(rows: Sequence[Prediction], labels: Sequence[str]) -> list[list[int]]:
    """How often each true label was answered by each label, [true][given]; none without labels."""
    columns = confusion_labels(rows, labels)
    counts = Counter((one.accepted[0], given(one, labels)) for one in rows if one.accepted and not one.negated)
    return [[counts[true, column] for column in columns] for true in labels]


def confused(wrong: Sequence[Prediction], labels: Sequence[str]) -> list[Often]:
    counts = Counter((given(one, labels), one.accepted[0]) for one in wrong if labels and one.accepted)
    return [Often(answer, expected, count) for (answer, expected), count in counts.most_common(12)]
