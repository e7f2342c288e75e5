"""Loss curves from the logs of runs: every folder with a `run.json` and a `log.jsonl` under a study."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from math import isfinite
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, read_json_lines

POINTS = 120  # of a drawn line; each is the mean of an equal share of the log's lines


class Run(NamedTuple):
    """One run's training loss by step. `stage` is "pretrain", or what it was fine-tuned on."""

    stage: str
    shape: str
    seed: int | None
    folder: Path
    steps: list[float]
    losses: list[float]


def runs(folder: Path) -> list[Run]:
    """Every run below `folder` whose log has at least two losses: pretraining first, then in the order of paths."""
    found = []
    for path in sorted(folder.rglob("run.json")):
        run = read_run(path.parent)
        if run is not None and len(run.steps) > 1:
            found.append(run)
    return sorted(found, key=lambda run: run.stage != "pretrain")


def read_run(folder: Path) -> Run | None:
    """A run's curve; None for a folder without a readable log, since a plot less is no reason to have no report."""
    try:
        about = read_json(folder / "run.json")
        rows = read_json_lines(folder / "log.jsonl")
    except UserError:
        return None
    if not isinstance(about, dict) or not isinstance(about.get("shape"), str):
        return None
    kept = list(losses(rows))
    seed = settings(about).get("seed")
    steps, values = thinned([step for step, _ in kept], last), thinned([loss for _, loss in kept], fmean)
    return Run(stage(about), about["shape"], seed if isinstance(seed, int) else None, folder, steps, values)


def last(values: Sequence[float]) -> float:
    return values[-1]


def stage(about: Mapping[str, Any]) -> str:
    origin = about.get("origin")
    task = origin.get("task") if isinstance(origin, dict) else None
    kind = str(about.get("kind", "training"))
    return str(task) if kind == "finetune" and task else kind


def settings(about: Mapping[str, Any]) -> Mapping[str, Any]:
    config = about.get("config")
    return config if isinstance(config, dict) else {}


def losses(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[float, float]]:
    """Step and loss of every line that has both; lines of evaluations have no loss."""
    for row in rows:
        step, loss = row.get("step"), row.get("loss")
        if isinstance(step, int | float) and isinstance(loss, int | float) and isfinite(loss):
            yield float(step), float(loss)


def thinned(values: Sequence[float], join: Callable[[Sequence[float]], float], points: int = POINTS) -> list[float]:
    """At most `points` values, each an equal share of the values joined.

    >>> thinned([1.0, 3.0, 5.0, 7.0], fmean, 2)
    [2.0, 6.0]
    """
    if len(values) <= points:
        return list(values)
    edges = [round(at * len(values) / points) for at in range(points + 1)]
    return [join(values[low:high]) for low, high in pairwise(edges)]
