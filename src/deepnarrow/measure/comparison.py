"""From a ledger to a table of shapes: every shape's costs, and its scores over seeds.

Only like is set beside like. Of a task's versions the newest counts, since older scores were measured by other rules.
Of the conditions under which shapes were scored (such as a limit of items) or timed (machine, lengths, batch, dtype,
threads), those that cover most shapes count. What is left out is said in `notes`.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.measure.frontier import Measured, Point, Quality, Recommendation, over_seeds, recommend
from deepnarrow.measure.ledger import Record, current, select
from deepnarrow.measure.numbers import short, significant
from deepnarrow.shapes import counts, parse

LOSSES = ("held_out_loss", "loss", "perplexity", "bits_per_byte", "bits_per_token")  # lower is better
DEFAULT_LENGTHS = (512, 114)  # T5's pretraining lengths, for counting FLOPs where nothing was timed


class Measure(NamedTuple):
    """What a score is a score of."""

    task: str
    metric: str
    split: str | None
    version: int | None
    unit: str

    @property
    def lower_is_better(self) -> bool:
        return self.metric in LOSSES

    @property
    def least(self) -> float:
        """The lower end of the scale: a correlation's is -100 %, any other score's and a loss's is 0."""
        return -100.0 if self.metric == "matthews" else 0.0

    @property
    def most(self) -> float:
        return 100.0 if self.unit == "%" else math.inf

    @property
    def metric_name(self) -> str:
        return self.metric.replace("held_out", "held-out").replace("_", " ")

    @property
    def name(self) -> str:
        return f"{self.task} {self.metric_name}" if self.task else self.metric_name

    @property
    def places(self) -> int:
        """Digits behind the point: percentages have one, losses three."""
        return 3 if self.lower_is_better else 1

    def show(self, value: float) -> str:
        return f"{value:.{self.places}f}"

    @property
    def key(self) -> str:
        """What `--metric` takes."""
        return f"{self.task}:{self.metric}" if self.task else self.metric


class Baseline(NamedTuple):
    """An answer that needs no learning, and its score."""

    name: str
    value: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One shape. FLOPs are counted, for reading one input and writing one answer; times are medians in milliseconds."""

    shape: str
    parameters: int
    flops: int
    milliseconds: float | None
    quartiles: tuple[float, float] | None
    per_token: float | None
    memory_mb: float | None
    outcome: str  # of the timing: "ok", "OOM" or "not measured"
    scores: Mapping[Measure, Quality]


class CostKind(NamedTuple):
    """A cost that shapes are compared by."""

    name: str
    label: str
    unit: str

    def of(self, row: Row) -> float | None:
        value: float | None = getattr(row, self.name)
        return value

    def show(self, cost: float) -> str:
        if self.name == "milliseconds":
            return f"{significant(cost)} ms"
        return f"{short(cost)} {self.unit}".replace("G FLOP", "GFLOP").replace("M FLOP", "MFLOP")


COSTS = {
    "milliseconds": CostKind("milliseconds", "milliseconds for one answer", "ms"),
    "parameters": CostKind("parameters", "parameters", "parameters"),
    "flops": CostKind("flops", "FLOPs for one answer", "FLOP"),
}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Rows by rising number of parameters, what was scored, and under what conditions it was timed."""

    rows: Sequence[Row]
    measures: Sequence[Measure]
    conditions: Mapping[str, Any]
    lengths: tuple[int, int]
    timed_on: Mapping[str, Any]
    baselines: Mapping[Measure, Baseline | None]
    records: Sequence[Record]
    notes: Sequence[str] = field(default=())

    def points(self, measure: Measure, cost: CostKind) -> list[Point]:
        """Shapes that have both, in the plane. A loss is turned round, so that higher is better everywhere."""
        sign = -1 if measure.lower_is_better else 1
        points = []
        for row in self.rows:
            price, score = cost.of(row), row.scores.get(measure)
            if price is not None and score is not None:
                low, high = (None if end is None else sign * end for end in (score.low, score.high)[::sign])
                points.append(Point(row.shape, price, sign * score.value, low, high))
        return points

    def absent(self, measure: Measure, cost: CostKind) -> list[str]:
        """Scored shapes whose cost is not known, each with the reason."""
        rows = [row for row in self.rows if measure in row.scores and cost.of(row) is None]
        return [f"{row.shape} ({row.outcome})" for row in rows]

    def cost(self, measure: Measure) -> CostKind:
        """What to compare by when nobody says: the time to answer where all shapes have one, else parameters."""
        return COSTS["parameters" if self.absent(measure, COSTS["milliseconds"]) else "milliseconds"]

    def recommend(self, measure: Measure, cost: CostKind) -> Recommendation:
        return recommend(
            self.points(measure, cost),
            quality=measure.metric_name,
            cost=cost.label,
            show_cost=cost.show,
            show_quality=lambda value: measure.show(abs(value) if measure.lower_is_better else value),
            seeds_known=all(row.scores[measure].seeds_known for row in self.rows if measure in row.scores),
        )


def compare(records: Iterable[Record]) -> Comparison:
    """Gather a ledger's records. Raises `UserError` when they hold no score of any shape."""
    found = current(list(records))
    notes: list[str] = []
    chosen, measures = _scores(found, notes)
    scores = {measure: _over_seeds(measure, shapes) for measure, shapes in chosen.items()}
    if not measures:
        raise UserError(
            "the ledger holds no score; `deepnarrow evaluate MODEL --task T --ledger FILE` or a study adds one"
        )
    timings, conditions, timed_on = _timings(found, notes)
    lengths = (
        int(conditions.get("input_length", DEFAULT_LENGTHS[0])),
        int(conditions.get("target_length", DEFAULT_LENGTHS[1])),
    )
    shapes = list(dict.fromkeys([one.shape for one in found]))
    rows = [_row(shape, scores, measures, timings, lengths) for shape in shapes]
    shown = sorted((row for row in rows if row.scores or row.outcome != "not measured"), key=lambda row: row.parameters)
    return Comparison(
        rows=shown,
        measures=measures,
        conditions=conditions,
        lengths=lengths,
        timed_on=timed_on,
        baselines={measure: _baseline(shapes) for measure, shapes in chosen.items()},
        records=found,
        notes=notes,
    )


def _scores(found: Sequence[Record], notes: list[str]) -> tuple[dict[Measure, dict[str, list[Record]]], list[Measure]]:
    """The records behind each measure's shapes; measures in the order of the ledger, losses last."""
    good = [one for one in found if one.value is not None and (one.kind == "score" or one.metric in LOSSES)]
    newest: dict[tuple[str | None, str | None], int] = {}
    for one in good:
        newest[one.task, one.split] = max(newest.get((one.task, one.split), -1), _version(one))
    old = sorted(
        {f"{one.task} version {one.task_version}" for one in good if _version(one) < newest[one.task, one.split]}
    )
    if old:
        notes.append(f"Scores of older task versions are left out: {', '.join(old)}.")
    groups: dict[Measure, list[Record]] = {}
    for one in good:
        if _version(one) == newest[one.task, one.split]:
            measure = Measure(one.task or "", one.metric, one.split, one.task_version, one.unit)
            groups.setdefault(measure, []).append(one)
    chosen: dict[Measure, dict[str, list[Record]]] = {}
    for measure, ones in groups.items():
        for one in most_covering(ones, lambda one: dict(one.conditions), f"{measure.name} scores", notes):
            chosen.setdefault(measure, {}).setdefault(one.shape, []).append(one)
    failed = [one for one in found if one.kind == "score" and one.value is None]
    if failed:
        names = sorted({f"{one.shape} ({one.extra.get('outcome', 'no value')})" for one in failed})
        notes.append(f"Without a score: {', '.join(names)}.")
    return chosen, sorted(chosen, key=lambda measure: measure.lower_is_better)


def _version(one: Record) -> int:
    return -1 if one.task_version is None else one.task_version


def _over_seeds(measure: Measure, shapes: Mapping[str, Sequence[Record]]) -> dict[str, Quality]:
    seeds = {
        shape: [Measured(float(one.value or 0.0), one.low, one.high, one.n) for one in _seeds(ones)]
        for shape, ones in shapes.items()
    }
    return over_seeds(seeds, least=measure.least, most=measure.most)


def _baseline(shapes: Mapping[str, Sequence[Record]]) -> Baseline | None:
    """What needs no learning scored on the same items, where the records say it."""
    for ones in shapes.values():
        for one in ones:
            value = one.extra.get("baseline")
            if isinstance(value, int | float):
                return Baseline(str(one.extra.get("baseline_name", "baseline")), float(value))
    return None


def _seeds(records: Sequence[Record]) -> list[Record]:
    """One record for each seed, the newest: a shape trained twice with one seed counts once."""
    newest: dict[int | None, Record] = {}
    for one in records:
        if one.seed not in newest or one.date >= newest[one.seed].date:
            newest[one.seed] = one
    return list(newest.values())


def most_covering(
    records: Sequence[Record], place: Callable[[Record], Mapping[str, Any]], what: str, notes: list[str]
) -> list[Record]:
    """The records of the one place (conditions, machine) that covers most shapes; the newer wins a draw."""
    groups: dict[str, list[Record]] = {}
    for one in records:
        groups.setdefault(json.dumps(place(one), sort_keys=True, default=str), []).append(one)
    if len(groups) > 1:
        notes.append(
            f"The ledger holds {what} under {len(groups)} different conditions; only those that cover most shapes are "
            "compared here."
        )

    def worth(group: Sequence[Record]) -> tuple[int, str]:
        return len({one.shape for one in group}), max(one.date for one in group)

    return max(groups.values(), key=worth, default=[])


def _timings(
    found: Sequence[Record], notes: list[str]
) -> tuple[dict[str, dict[str, Record]], Mapping[str, Any], Mapping[str, Any]]:
    """Timings by shape and metric, and the conditions and machine they share."""

    def place(one: Record) -> Mapping[str, Any]:
        return {"conditions": dict(one.conditions), "machine": dict(one.machine)}

    best = most_covering(select(found, kind="timing"), place, "timings", notes)
    timings: dict[str, dict[str, Record]] = {}
    for one in sorted(best, key=lambda one: one.date):
        timings.setdefault(one.shape, {})[one.metric] = one
    return timings, (best[0].conditions if best else {}), (best[0].machine if best else {})


def _row(
    shape: str,
    scores: Mapping[Measure, Mapping[str, Quality]],
    measures: Sequence[Measure],
    timings: Mapping[str, Mapping[str, Record]],
    lengths: tuple[int, int],
) -> Row:
    timed = timings.get(shape, {})
    whole, token, memory = (timed.get(name) for name in ("end_to_end", "per_token", "peak_memory"))
    ends = (whole.low, whole.high) if whole and whole.low is not None and whole.high is not None else None
    parsed = parse(shape)
    return Row(
        shape=shape,
        parameters=counts.parameters(parsed).total,
        flops=counts.generate_flops(parsed, input_length=lengths[0], target_length=lengths[1]),
        milliseconds=whole.value if whole else None,
        quartiles=ends,
        per_token=token.value if token else None,
        memory_mb=memory.value if memory else None,
        outcome=str(whole.extra.get("outcome", "ok")) if whole else "not measured",
        scores={measure: scores[measure][shape] for measure in measures if shape in scores[measure]},
    )


def find_measures(comparison: Comparison, wanted: Sequence[str] = ()) -> list[Measure]:
    """What to draw: each task's first metric, or those named ("task", "metric" or "task:metric"), in that order."""
    if not wanted:
        first: dict[tuple[str, str | None], Measure] = {}
        for measure in comparison.measures:
            first.setdefault((measure.task, measure.split), measure)
        return list(first.values())
    found: dict[Measure, None] = {}
    for name in wanted:
        fits = [one for one in comparison.measures if name in (one.task, one.metric, one.key)]
        if not fits:
            names = dict.fromkeys(
                text for one in comparison.measures for text in (one.key, one.metric, one.task) if text
            )
            raise UserError(f"no score called {name!r}; {nearest(name, names)}")
        found |= dict.fromkeys(fits)
    return list(found)
