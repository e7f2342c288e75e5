"""Suites: tasks whose scores are averaged into one number, as the papers average them.

A task's metrics are averaged first, then the tasks (arXiv:1804.07461, section 4; arXiv:1905.00537, section 4). Which
metrics, and that the two validation sets of MNLI make one task, is as in T5's evaluation code, which printed the
averages of its paper. So is what is left out: GLUE's WNLI, whose place in T5's training WSC took. (The test scores of
that paper's table 14 are the leaderboard's, whose mean over GLUE has WNLI in it.)

The scaling study (arXiv:2109.10686) compared shapes on three suites: GLUE, SuperGLUE, and SQuAD, whose two metrics
count as one task's. It printed the three beside each other; `scaling` is their mean.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from math import hypot
from typing import NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.tasks.significance import Interval

Scores = Mapping[str, Mapping[str, Interval]]  # task -> metric -> score


class Member(NamedTuple):
    """What counts as one task: the mean of these metrics, over these tasks where it is judged on several sets."""

    tasks: tuple[str, ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Members of equal weight; a suite may be one of another's."""

    name: str
    about: str
    members: tuple["Member | Suite", ...]


ACCURACY = ("accuracy",)
GLUE = Suite(
    name="glue",
    about="GLUE's mean over eight tasks, MNLI's two validation sets as one, without WNLI",
    members=(
        Member(("cola",), ("matthews",)),
        Member(("sst2",), ACCURACY),
        Member(("mrpc",), ("f1", "accuracy")),
        Member(("stsb",), ("pearson", "spearman")),
        Member(("qqp",), ("f1", "accuracy")),
        Member(("mnli", "mnli_mismatched"), ACCURACY),
        Member(("qnli",), ACCURACY),
        Member(("rte",), ACCURACY),
    ),
)
SUPER_GLUE = Suite(
    name="super_glue",
    about="SuperGLUE's mean over eight tasks, without its two diagnostic sets",
    members=(
        Member(("boolq",), ACCURACY),
        Member(("cb",), ("macro_f1", "accuracy")),
        Member(("copa",), ACCURACY),
        Member(("multirc",), ("multirc_f1", "multirc_exact_match")),
        Member(("record",), ("token_f1", "exact_match")),
        Member(("super_glue_rte",), ACCURACY),
        Member(("wic",), ACCURACY),
        Member(("wsc",), ("wsc_accuracy",)),
    ),
)
SCALING = Suite(
    name="scaling",
    about="the mean of GLUE, SuperGLUE and SQuAD: the three suites of the scaling study",
    members=(GLUE, SUPER_GLUE, Member(("squad",), ("exact_match", "token_f1"))),
)
SUITES = {suite.name: suite for suite in (GLUE, SUPER_GLUE, SCALING)}
SAME_ITEMS = {"super_glue_rte": "rte"}  # a task -> the one whose items it judges in other words


def get(name: str) -> Suite:
    if name not in SUITES:
        raise UserError(f"unknown suite {name!r}; {nearest(name, SUITES)}")
    return SUITES[name]


def weights(suite: Suite) -> dict[tuple[str, str], float]:
    """What each task's metric weighs in the average; all of them weigh 1 together.

    >>> weights(SCALING)["squad", "token_f1"], 48 * weights(SCALING)["mnli", "accuracy"]
    (0.16666666666666666, 1.0)
    """
    found: dict[tuple[str, str], float] = {}
    for member in suite.members:
        if isinstance(member, Suite):
            found |= {key: weight / len(suite.members) for key, weight in weights(member).items()}
        else:
            share = 1 / (len(suite.members) * len(member.tasks) * len(member.metrics))
            found |= {(task, metric): share for task in member.tasks for metric in member.metrics}
    return found


def tasks_of(suite: Suite) -> list[str]:
    """The suite's tasks, in its order."""
    return list(dict.fromkeys(task for task, _ in weights(suite)))


def missing(suite: Suite, scores: Scores) -> list[str]:
    """What the average still wants: "cola matthews" and the like."""
    return [f"{task} {metric}" for task, metric in weights(suite) if metric not in scores.get(task, {})]


def average(suite: Suite, scores: Scores) -> Interval:
    """The average, with an interval and the number of items behind it. What is missing is a `UserError` that names it.

    Tasks are held to err independently: each side of the interval is the root of the sum of the squares of the weighted
    distances from score to bound, as for a sum of independent estimates (Zou and Donner 2008, "Construction of
    confidence limits about effect measures"). Metrics on the same items, and the two wordings of RTE, are held to err
    together, which is the most they can do: their distances are added. Like its parts, the interval knows nothing of
    training seeds.

    >>> squad = {"exact_match": Interval(80.0, 77.0, 83.0, 600), "token_f1": Interval(90.0, 88.0, 92.0, 600)}
    >>> average(Suite(name="one", about="", members=SCALING.members[2:]), {"squad": squad})
    Interval(value=85.0, low=82.5, high=87.5, n=600)
    """
    lacking = missing(suite, scores)
    if lacking:
        raise UserError(f"the average of {suite.name} also needs {', '.join(lacking)}")
    value = 0.0
    below: dict[str, float] = defaultdict(float)
    above: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = {}
    for (task, metric), weight in weights(suite).items():
        score, items = scores[task][metric], SAME_ITEMS.get(task, task)
        value += weight * score.value
        below[items] += weight * (score.value - score.low)
        above[items] += weight * (score.high - score.value)
        counts[items] = max(score.n, counts.get(items, 0))
    return Interval(value, value - hypot(*below.values()), value + hypot(*above.values()), sum(counts.values()))
