"""The report as one HTML page: what to use and why, the plots, every shape in a table, and where the numbers come from.

The page holds its own styles, its few lines of script and its drawings; its content security policy forbids it to ask
the network for anything.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

from deepnarrow.measure.comparison import Comparison, CostKind, Measure, Row
from deepnarrow.measure.frontier import Quality, Recommendation
from deepnarrow.measure.numbers import MISSING, counted, short, significant
from deepnarrow.measure.page_table import conditions_text, table
from deepnarrow.measure.palette import DARK, LIGHT, css


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A figure of the page: the same drawing for a wide and a narrow window."""

    roomy: str
    narrow: str
    caption: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """One measure: what it recommends, and its plots."""

    measure: Measure
    cost: CostKind
    recommendation: Recommendation
    doubt: str | None
    plots: Sequence[Plot]


def page(
    comparison: Comparison,
    sections: Sequence[Section],
    curves: Sequence[Plot],
    *,
    title: str,
    command: str,
) -> str:
    """The whole document."""
    main = sections[0]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="lead">{escape(subtitle(comparison, [one.measure for one in sections]))}</p>',
        verdict(comparison, main),
        *(plots(comparison, one, number) for number, one in enumerate(sections)),
        losses(curves),
        table(comparison, main.measure, main.recommendation.name),
        reading(comparison),
        provenance(comparison, command),
    ]
    dates = sorted(one.date[:10] for one in comparison.records if one.date)
    meta = f"{dates[0]} to {dates[-1]}" if dates and dates[0] != dates[-1] else (dates[-1] if dates else "")
    return Template(asset("report.html")).substitute(
        title=escape(title),
        meta=escape(meta),
        style=Template(asset("report.css")).substitute(light=css(LIGHT), dark=css(DARK)),
        script=asset("report.js"),
        body="\n".join(part for part in parts if part),
    )


@cache
def asset(name: str) -> str:
    return (files("deepnarrow.measure") / name).read_text("utf-8").strip()


def subtitle(comparison: Comparison, measures: Sequence[Measure]) -> str:
    scored = [row for row in comparison.rows if row.scores]
    what = listed([measure.name for measure in measures])
    seeds = [score.seeds for row in scored for score in row.scores.values()]
    least = "" if min(seeds) == max(seeds) else f"{min(seeds)} to "
    return f"{counted(len(scored), 'shape')}, judged by {what}, {least}{counted(max(seeds), 'seed')} each."


def listed(names: Sequence[str]) -> str:
    """
    >>> listed(["a", "b", "c"])
    'a, b and c'
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


# What to use


def verdict(comparison: Comparison, section: Section) -> str:
    found = section.recommendation
    row = next(row for row in comparison.rows if row.shape == found.name)
    chip = '<span class="chip sure">the evidence settles it</span>'
    if not found.settled or section.doubt:
        chip = '<span class="chip open">not settled by the evidence</span>'
    doubt = f'<p class="notice">{escape(section.doubt)}</p>' if section.doubt else ""
    return (
        '<section class="verdict" aria-labelledby="use">\n'
        f'<p class="kicker"><span id="use">Use, by {escape(section.measure.name)} and '
        f"{escape(section.cost.label)}</span>"
        f"{chip}</p>\n"
        f'<p class="name">{escape(found.name)}</p>\n'
        f'<p class="reason">{escape(found.reason)}</p>\n{doubt}'
        f'<dl class="figures">\n{figures(row, section.measure)}\n</dl>\n</section>'
    )


def figures(row: Row, measure: Measure) -> str:
    score = row.scores[measure]
    quartiles = f"quartiles {' to '.join(significant(end) for end in row.quartiles)}" if row.quartiles else ""
    items = [
        (measure.metric_name, measure.show(score.value), interval_text(score, measure)),
        ("One answer", timed(row.milliseconds, row.outcome), quartiles),
        ("Parameters", short(row.parameters), ""),
        ("FLOPs for one answer", short(row.flops), "counted"),
        ("Peak memory", MISSING if row.memory_mb is None else f"{significant(row.memory_mb)} MB", "weights included"),
    ]
    return "\n".join(
        f"<div><dt>{escape(name[:1].upper() + name[1:])}</dt><dd>{escape(value)}"
        + (f"<small>{escape(note)}</small>" if note and value != MISSING else "")
        + "</dd></div>"
        for name, value, note in items
    )


def timed(milliseconds: float | None, outcome: str) -> str:
    if milliseconds is not None:
        return f"{significant(milliseconds)} ms"
    return outcome if outcome != "ok" else MISSING


def interval_text(score: Quality, measure: Measure) -> str:
    parts = []
    if score.low is not None and score.high is not None:
        parts.append(f"{measure.show(score.low)} to {measure.show(score.high)}")
    parts.append(counted(score.seeds, "seed"))
    if score.items is not None:
        parts.append(counted(score.items, "item"))
    return ", ".join(parts)


# The plots

KEY = (
    '<ul class="key" aria-hidden="true">'
    '<li><i class="k-pick"></i>recommended</li><li><i></i>on the frontier</li><li><i class="k-out"></i>dominated</li>'
    '<li><i class="k-line"></i>the best a budget buys</li><li><i class="k-bar"></i>95 % interval</li>{base}</ul>'
)


def plots(comparison: Comparison, section: Section, number: int) -> str:
    measure = section.measure
    sentence = ""
    if number:
        sentence = f"<p><b>{escape(section.recommendation.name)}</b>: {escape(section.recommendation.reason)}</p>\n"
        sentence += f'<p class="notice">{escape(section.doubt)}</p>\n' if section.doubt else ""
    heading = measure.name if measure.task else title_case(measure.name)  # a task's name is spelt as it is
    split = f", {measure.split}" if measure.split else ""
    version = f", task version {measure.version}" if measure.version is not None else ""
    turned = " The axis is turned round: a lower loss stands higher." if measure.lower_is_better else ""
    base = comparison.baselines.get(measure)
    key = KEY.format(base=f'<li><i class="k-base"></i>{escape(base.name)}, no learning</li>' if base else "")
    drawn = "\n".join(figure(plot) for plot in section.plots)
    return (
        f'<section aria-labelledby="m{number}">\n<h2 id="m{number}">{escape(heading)}'
        f'</h2>\n<p class="note">Measured on {escape(measure.task or "held-out text")}{escape(split + version)}. '
        f"Up is better, left is cheaper.{turned}</p>\n{sentence}"
        f'{key}\n<div class="plots">\n{drawn}\n</div>\n</section>'
    )


def title_case(text: str) -> str:
    """
    >>> title_case("squad exact match")
    'Squad exact match'
    """
    return text[:1].upper() + text[1:]


def figure(plot: Plot) -> str:
    klass = ' class="wide"' if plot.wide else ""
    return f"<figure{klass}>\n{plot.roomy}\n{plot.narrow}\n<figcaption>{escape(plot.caption)}</figcaption>\n</figure>"


def losses(curves: Sequence[Plot]) -> str:
    if not curves:
        return ""
    drawn = "\n".join(figure(plot) for plot in curves)
    return (
        '<section aria-labelledby="losses">\n<h2 id="losses">How they learned</h2>\n'
        '<p class="note">Training loss in nats for each target token, from the logs of the runs. The first fifth of '
        "the steps may start above the plot: its fall would hide what follows.</p>\n"
        f'<div class="plots">\n{drawn}\n</div>\n</section>'
    )


# How to read it, and where it comes from


def reading(comparison: Comparison) -> str:
    scores = [score for row in comparison.rows for score in row.scores.values()]
    if any(score.seeds_known for score in scores):
        seeds = (
            "The standard deviation between seeds is pooled over all shapes, divided by the root of the number of "
            "seeds, widened by Student's t, and added by squares."
        )
    else:
        seeds = (
            "Every shape was trained with one seed, so what another seed would have given is not known and not in the "
            "interval: it is wider than drawn."
        )
    answers = {
        "What do the intervals mean?": (
            "Each score is the mean over seeds. Its 95 % interval joins two doubts. Other test items would have given "
            "another score: this part is the bootstrap over items, and more seeds do not shrink it, since all seeds "
            f"answer the same items. Another seed would have given another model: {seeds} Two shapes whose intervals "
            "overlap are not ranked here. That is a cautious rule: a paired test on the same items may tell some of "
            "them apart."
        ),
        "What is the frontier?": (
            "A shape is dominated when another one costs no more and scores no less, and is better in one of the two. "
            "The frontier is what is left. Being efficient depends on the cost: a shape may be on the frontier of "
            "parameters and dominated in time."
        ),
        "How were costs measured?": (
            "Parameters and FLOPs are counted from the shape: a multiply-add is two, only matrix products count, the "
            "encoder works once for each input token, the decoder once for each output token. Times are medians over "
            "repeats after a warm-up, with shapes taking turns, so that a machine that slows down slows them all."
        ),
        "What does this not say?": (
            "Which shape is best at another size, on other data, with other training or on another machine. Strategies "
            "differ by compute region, and extrapolating from small models is unsafe (Tay et al. 2022, "
            "arXiv:2109.10686)."
        ),
    }
    items = "\n".join(
        f"<details><summary>{escape(question)}</summary><p>{escape(answer)}</p></details>"
        for question, answer in answers.items()
    )
    return f'<section aria-labelledby="how">\n<h2 id="how">How to read this</h2>\n{items}\n</section>'


def provenance(comparison: Comparison, command: str) -> str:
    facts = [
        ("Timed on", machine_text(comparison.timed_on) if comparison.timed_on else MISSING),
        ("Timed with", conditions_text(comparison) if comparison.conditions else MISSING),
        ("Scored on", listed(machines(comparison))),
        ("Versions", versions_text(comparison)),
        ("Commit", ", ".join(distinct(one.commit or "installed, no commit" for one in comparison.records))),
        ("Seeds", ", ".join(distinct(str(one.seed) for one in comparison.records if one.seed is not None)) or "none"),
        ("Records", f"{len(comparison.records):,} lines of the ledger"),
    ]
    rows = "\n".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return (
        '<section aria-labelledby="from">\n<h2 id="from">Where the numbers come from</h2>\n'
        f'<dl class="facts">\n{rows}\n</dl>\n<h3>Do it again</h3>\n'
        f'<pre tabindex="0">{escape(command)}</pre>\n</section>'
    )


def distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(values))


def machines(comparison: Comparison) -> list[str]:
    scored = [machine_text(one.machine) for one in comparison.records if one.kind == "score" and one.machine]
    return distinct(scored) or [MISSING]


def machine_text(machine: Mapping[str, Any]) -> str:
    """
    >>> machine_text({"processor": "Some CPU", "cores": 2, "memory_gib": 8.0, "system": "Linux x86_64"})
    'Some CPU, 2 cores, 8.0 GiB, Linux x86_64'
    """
    parts = [
        str(machine["processor"]) if machine.get("processor") else "",
        f"{machine['cores']} cores" if machine.get("cores") else "",
        f"{machine['memory_gib']} GiB" if machine.get("memory_gib") else "",
        str(machine.get("system", "")),
    ]
    return ", ".join(part for part in parts if part)


def versions_text(comparison: Comparison) -> str:
    together: dict[str, list[str]] = {}
    for one in comparison.records:
        for name, version in one.versions.items():
            seen = together.setdefault(name, [])
            if version not in seen:
                seen.append(version)
    return ", ".join(f"{name} {' / '.join(seen)}" for name, seen in together.items()) or MISSING
