"""A study's report: `report.html`, and its plots as PNG and SVG files, all from the ledger and the runs' logs."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure

from deepnarrow.errors import UserError, nearest
from deepnarrow.files import read_json, write_bytes, write_text
from deepnarrow.measure import curves, ledger, plots
from deepnarrow.measure.comparison import COSTS, Comparison, CostKind, Measure, compare, find_measures
from deepnarrow.measure.frontier import Point, Recommendation, frontier
from deepnarrow.measure.labels import short_names
from deepnarrow.measure.numbers import tick
from deepnarrow.measure.page import Plot, Section, listed, page
from deepnarrow.measure.plots import Axis, Curve, Size

HERO, HALF, NARROW, FILE = Size(1058, 440), Size(508, 380), Size(356, 350), Size(900, 520)
PAGE = "report.html"
PLOTS = "plots"
NO_BREAK = "\u2011"  # a hyphen at which no line ends
STUDY = "study.json"  # what a study says of itself; `name` and `command` are read, if they are there


class Report(NamedTuple):
    """What was written, and what it recommends, by measure ("task:metric")."""

    page: Path
    plots: list[Path]
    recommendations: dict[str, Recommendation]


def report(
    where: Path,
    *,
    out: Path | None = None,
    metrics: Sequence[str] = (),
    cost: str | None = None,
    title: str | None = None,
    command: str | None = None,
) -> Report:
    """Write the report of a study folder, or of one ledger file, into `out` (by default beside the ledger).

    metrics   which scores to draw, "task", "metric" or "task:metric"; by default the first metric of each task
    cost      what the recommendation weighs quality against: milliseconds, parameters or flops
    title     the page's heading; by default the study's name
    command   how to do the study again; by default as `study.json` says

    Raises `UserError` where there is no ledger or no score in it.
    """
    folder, path = (where.parent, where) if where.is_file() else (where, where / ledger.FILE)
    if not path.is_file():
        raise UserError(f"no {ledger.FILE} in {where}; give the folder of a study, or a ledger")
    comparison = compare(ledger.read(path))
    kind = cost_kind(cost)
    target = folder if out is None else out
    files: dict[str, Figure] = {}
    sections = [
        section(comparison, measure, kind, number, files)
        for number, measure in enumerate(find_measures(comparison, metrics))
    ]
    about = own_words(folder)
    text = page(
        comparison,
        sections,
        loss_plots(comparison, curves.runs(folder), files),
        title=title or about.get("name") or folder.resolve().name,
        command=command or about.get("command") or f"deepnarrow report {where}",
    )
    written = write_plots(target / PLOTS, files)
    write_text(target / PAGE, text + "\n")
    return Report(target / PAGE, written, {one.measure.key: one.recommendation for one in sections})


def cost_kind(name: str | None) -> CostKind | None:
    if name is None:
        return None
    if name not in COSTS:
        raise UserError(f"unknown cost {name!r}; {nearest(name, COSTS)}")
    return COSTS[name]


def own_words(folder: Path) -> dict[str, str]:
    """The name and the command a study gives of itself; nothing where it says nothing."""
    path = folder / STUDY
    if not path.is_file():
        return {}
    about = read_json(path)
    if not isinstance(about, dict):
        return {}
    return {key: about[key] for key in ("name", "command") if isinstance(about.get(key), str)}


def section(
    comparison: Comparison, measure: Measure, kind: CostKind | None, number: int, files: dict[str, Figure]
) -> Section:
    """One measure's plots, the cost that decides first and largest; `files` gets the drawings to be saved."""
    main = kind or comparison.cost(measure)
    if not comparison.points(measure, main):
        raise UserError(f"no shape with a {measure.name} has {main.label} in this ledger; choose another --cost")
    found = comparison.recommend(measure, main)
    order = [main, *(cost for cost in COSTS.values() if cost != main)]
    drawn = []
    for place, cost in enumerate(order):
        points = comparison.points(measure, cost)
        if not points:
            continue
        draw = drawing(comparison, measure, cost, points, found.name)
        name = slug(f"{measure.key}-{measure.split or ''}-{cost.name}")
        files[name] = draw(FILE)
        prefix, label, titles = f"p{number}{place}", described(points, measure, cost), tips(points, measure, cost)
        drawn.append(
            Plot(
                roomy=inline(draw(HALF if place else HERO), f"{prefix}r", label, titles, "roomy"),
                narrow=inline(draw(NARROW), f"{prefix}n", label, titles, "narrow"),
                caption=caption(comparison, measure, cost, points),
                wide=place == 0,
            )
        )
    return Section(
        measure=measure, cost=main, recommendation=found, doubt=doubt(comparison, measure, found), plots=drawn
    )


def drawing(
    comparison: Comparison, measure: Measure, cost: CostKind, points: Sequence[Point], pick: str
) -> Callable[[Size], Figure]:
    sign = -1 if measure.lower_is_better else 1
    base = comparison.baselines.get(measure)
    unit = f", {measure.unit}" if measure.unit else ""
    names = short_names([point.name for point in points])

    def draw(size: Size) -> Figure:
        return plots.frontier_plot(
            points,
            cost=Axis(label=cost.label, show=tick),
            quality=Axis(label=f"{measure.metric_name}{unit}", show=lambda value: f"{sign * value:g}"),
            pick=pick,
            size=size,
            names=names,
            baseline=(base.name, sign * base.value) if base else None,
        )

    return draw


def inline(figure: Figure, prefix: str, label: str, titles: Mapping[str, str], klass: str) -> str:
    return plots.inline_svg(figure, prefix=prefix, label=label, titles=titles, klass=klass)


def described(points: Sequence[Point], measure: Measure, cost: CostKind) -> str:
    """The plot in words, for those who hear it."""
    best = frontier(points)
    kept = {point.name for point in best}
    rest = [point.name for point in points if point.name not in kept]
    words = "; ".join(tip(point, measure, cost) for point in best)
    return f"Plot of {measure.name} over {cost.label}. On the frontier, cheapest first: {words}. " + (
        f"Dominated: {listed(rest)}." if rest else "No shape is dominated."
    )


def tips(points: Sequence[Point], measure: Measure, cost: CostKind) -> dict[str, str]:
    return {point.name: tip(point, measure, cost) for point in points}


def tip(point: Point, measure: Measure, cost: CostKind) -> str:
    values = [
        abs(one) if measure.lower_is_better else one
        for one in (point.quality, point.low, point.high)
        if one is not None
    ]
    score, *ends = (measure.show(one) for one in values)
    between = f" ({' to '.join(sorted(ends, key=float))})" if len(ends) == 2 else ""
    return f"{point.name}, {cost.show(point.cost)}, {measure.metric_name} {score}{between}"


def caption(comparison: Comparison, measure: Measure, cost: CostKind, points: Sequence[Point]) -> str:
    sentences = [f"{title(measure)} against {cost.label}."]
    names = short_names([point.name for point in points])
    shared = {full.removeprefix(brief) for full, brief in names.items() if full != brief and full.startswith(brief)}
    if len(shared) == 1 and all(full != brief for full, brief in names.items()):
        sentences.append(f"All names end with {shared.pop().replace('-', NO_BREAK)}.")
    absent = comparison.absent(measure, cost)
    if absent:
        sentences.append(f"Not drawn: {listed(absent)}.")
    return " ".join(sentences)


def title(measure: Measure) -> str:
    name = measure.metric_name
    return name[:1].upper() + name[1:]


def doubt(comparison: Comparison, measure: Measure, found: Recommendation) -> str | None:
    """A warning where even the best shape is not shown to beat an answer that needs no learning."""
    base = comparison.baselines.get(measure)
    if base is None:
        return None
    score = next(row.scores[measure] for row in comparison.rows if row.shape == found.best)
    if measure.lower_is_better:
        beaten = (score.value if score.high is None else score.high) < base.value
    else:
        beaten = (score.value if score.low is None else score.low) > base.value
    if beaten:
        return None
    return (
        f"No shape is shown to have learned this task: {base.name}, which needs no learning, scores "
        f"{measure.show(base.value)}, and the interval of the best shape does not lie beyond it."
    )


def loss_plots(comparison: Comparison, runs: Sequence[curves.Run], files: dict[str, Figure]) -> list[Plot]:
    """One plot for each stage of training; a shape has the same colour in all."""
    order = [row.shape for row in comparison.rows] + [run.shape for run in runs]
    colours = {shape: place for place, shape in enumerate(dict.fromkeys(order))}
    stages = dict.fromkeys(run.stage for run in runs)
    drawn = []
    for number, stage in enumerate(stages):
        mine = [run for run in runs if run.stage == stage]
        lines = [Curve(name=run.shape, steps=run.steps, losses=run.losses) for run in mine]
        name = {"pretrain": "pretraining"}.get(stage, stage)

        def draw(size: Size, lines: Sequence[Curve] = lines, name: str = name) -> Figure:
            return plots.loss_plot(lines, label=f"{name}: loss, nats per token", size=size, colours=colours)

        files[slug(f"loss-{stage}")] = draw(FILE)
        ends = "; ".join(f"{run.shape} {run.losses[-1]:.3f} at step {run.steps[-1]:,.0f}" for run in mine)
        label = f"Training loss by step, {name}. Last values: {ends}."
        seeds = {run.seed for run in mine}
        more = " Lines of one colour are seeds of one shape." if len(seeds) > 1 else ""
        wide = len(stages) % 2 == 1 and number == 0
        drawn.append(
            Plot(
                roomy=inline(draw(HERO if wide else HALF), f"l{number}r", label, {}, "roomy"),
                narrow=inline(draw(NARROW), f"l{number}n", label, {}, "narrow"),
                caption=f"{name[:1].upper() + name[1:]}: training loss by step.{more}",
                wide=wide,
            )
        )
    return drawn


def write_plots(folder: Path, files: Mapping[str, Figure]) -> list[Path]:
    written = []
    for name, figure in files.items():
        png, svg = folder / f"{name}.png", folder / f"{name}.svg"
        write_bytes(png, plots.png(figure))
        write_text(svg, plots.svg(figure))
        written += [png, svg]
    return written


def slug(text: str) -> str:
    """
    >>> slug("squad:exact_match--milliseconds")
    'squad-exact_match-milliseconds'
    """
    return re.sub(r"[^A-Za-z0-9_.]+", "-", text).strip("-")
