"""Several models on one task: their scores side by side, and for every pair whether the difference is real."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deepnarrow import tasks
from deepnarrow.errors import UserError, nearest
from deepnarrow.measure.judging import kept
from deepnarrow.measure.judging.kept import Kept
from deepnarrow.measure.judging.subject import Subject, Way, seeds_in, subject
from deepnarrow.tasks import Task, own, verdict
from deepnarrow.tasks.metrics import Metric
from deepnarrow.tasks.significance import Comparison, Interval, compare, over_seeds


@dataclass(frozen=True)
class System:
    """What was named on the command line: models, one for each training seed, or one evaluation that was kept."""

    name: str
    subjects: tuple[Subject, ...] = ()
    kept: Kept | None = None


def system(name: str, choose: Callable[[Path], Way] | None = None) -> System:
    """A kept evaluation, a folder of seeds, or one model; `choose` is as for `subject`."""
    folder = Path(name).expanduser()
    plain = name.rstrip("/") or name
    if kept.is_kept(folder):
        return System(plain, kept=kept.read(folder))
    runs: list[str | Path] = [*seeds_in(folder)] or [name]
    return System(plain, tuple(subject(run, choose) for run in runs))


def task_in(found: Kept) -> Task:
    """The task of a kept evaluation, of the version that scored it."""
    name, version, made = (found.identity.get(key) for key in ("task", "task_version", "task_spec"))
    task = own.from_spec({**made, "path": str(found.folder / "absent")}) if made else tasks.get(str(name))
    if task.version != version:
        raise UserError(
            f"{found.folder} was scored by version {version} of {name}, and this is version {task.version}: its scores "
            "mean something else; evaluate the model again"
        )
    return task


@dataclass(frozen=True)
class Row:
    """One system's score: over its seeds, if there are several."""

    name: str
    score: Interval
    seeds: int
    folders: tuple[str, ...]
    protocol: str


@dataclass(frozen=True)
class Compared:
    """Systems on the same items of one task, by one metric."""

    task: str
    split: str
    metric: str
    rows: list[Row]
    pairs: Mapping[tuple[str, str], Comparison]
    baseline_name: str
    baseline: float
    every_score: Mapping[str, Mapping[str, Interval]]  # of each system, by metric, where `every` was asked for

    @property
    def verdicts(self) -> list[str]:
        what = f"{self.task} {self.metric}"
        return [verdict.sentence(a, b, what, found) for (a, b), found in self.pairs.items()]

    def to_json(self) -> dict[str, Any]:
        return {
            "task": self.task,
            "split": self.split,
            "metric": self.metric,
            "baseline": {"name": self.baseline_name, "value": self.baseline},
            "systems": [
                {
                    "name": row.name, **row.score._asdict(), "seeds": row.seeds, "protocol": row.protocol,
                    "kept": list(row.folders),
                }
                for row in self.rows
            ],
            "comparisons": [
                {
                    "a": a, "b": b, "difference": found.difference.value, "low": found.difference.low,
                    "high": found.difference.high, "p": found.p, "p_adjusted": found.adjusted, "test": found.test,
                    "n": found.n, "needed": found.needed, "sentence": said,
                }
                for ((a, b), found), said in zip(self.pairs.items(), self.verdicts, strict=True)
            ],
        }  # fmt: skip


def compared(
    task: Task,
    systems: Mapping[str, Sequence[Kept]],
    metric: str | None = None,
    *,
    every: bool = False,
    seed: int = 0,
) -> Compared:
    """Compare kept evaluations by the task's main metric or another of it; `every` metric is scored for a suite.

    Raises `UserError` where they are not of the same items.
    """
    chosen = metric_of(task, metric)
    check_items(systems)
    items = {name: [items_of(chosen, one) for one in found] for name, found in systems.items()}
    first = next(iter(systems.values()))[0]
    return Compared(
        task=task.name,
        split=str(first.about["split"]),
        metric=chosen.name,
        rows=[
            Row(
                name,
                over_seeds(items[name], chosen.combine, seed=seed),
                len(found),
                tuple(str(one.folder) for one in found),
                found[0].evaluation.search,
            )
            for name, found in systems.items()
        ],
        pairs=compare(items, chosen.combine, seed=seed) if len(systems) > 1 else {},
        baseline_name=first.evaluation.baseline_name,
        baseline=first.evaluation.baseline[chosen.name],
        every_score={
            name: {
                one.name: over_seeds([items_of(one, each) for each in found], one.combine, seed=seed)
                for one in task.metrics
            }
            for name, found in systems.items()
            if every
        },
    )


def metric_of(task: Task, name: str | None) -> Metric:
    found = {metric.name: metric for metric in task.metrics}
    if name is None:
        return task.metrics[0]
    if name not in found:
        raise UserError(f"task {task.name} is not scored by {name!r}; {nearest(name, found)}")
    return found[name]


def items_of(metric: Metric, one: Kept) -> np.ndarray:
    """The rows of a metric over kept predictions: those that are kept, else made again, which gives the same."""
    predictions = one.evaluation.predictions
    if all(metric.name in row.scores for row in predictions):
        return np.array([row.scores[metric.name] for row in predictions])
    return metric.items([row.prediction for row in predictions], [row.pair for row in predictions])


def check_items(systems: Mapping[str, Sequence[Kept]]) -> None:
    """Only the same items may be compared, in the same order."""
    every = [(name, one) for name, found in systems.items() for one in found]
    first_name, first = every[0]
    for name, one in every[1:]:
        if one.items != first.items:
            here, there = first.evaluation.n, one.evaluation.n
            counts = f"{here:,} and {there:,} items" if here != there else f"{here:,} items each, not the same"
            raise UserError(
                f"{first_name} and {name} were judged on different items ({counts}; {first.about['data']} and "
                f"{one.about['data']}), so they cannot be compared; evaluate both on one split and data"
            )
