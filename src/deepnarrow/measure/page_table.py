"""The table of every shape, for the report's page."""

from collections.abc import Mapping, Sequence
from html import escape

from deepnarrow.measure.comparison import COSTS, Comparison, Measure, Row
from deepnarrow.measure.frontier import Quality, frontier
from deepnarrow.measure.numbers import MISSING, counted, short, significant

TAGS = {"milliseconds": "time", "parameters": "parameters", "flops": "FLOPs"}


def table(comparison: Comparison, main: Measure, picked: str) -> str:
    on = {name: {point.name for point in frontier(comparison.points(main, cost))} for name, cost in COSTS.items()}
    others = [measure for measure in comparison.measures if measure != main]
    heads = [
        head("Shape", text=True),
        '<th scope="col" class="left">On the frontier of</th>',
        score_head(main),
        head("Parameters", sort="ascending"),
        head("FLOPs"),
        head("ms"),
        head("ms / token"),
        head("MB"),
        *(score_head(measure) for measure in others),
    ]
    rows = "\n".join(table_row(row, others, main, picked, on) for row in comparison.rows)
    length, target = comparison.lengths
    about = (
        f"FLOPs are counted for reading {length:,} tokens and writing {target:,}. "
        + (
            f"ms: the median time of the same for one example; {conditions_text(comparison)}. "
            if comparison.conditions
            else ""
        )
        + "MB: the highest memory while answering, weights included. Small figures are 95 % intervals. "
        f"Frontiers are those of {main.name}."
    )
    return (
        '<section aria-labelledby="shapes">\n<h2 id="shapes">Every shape</h2>\n'
        f'<p class="note">{escape(about)} Press a heading to sort.</p>\n'
        '<div class="scroll" role="region" aria-labelledby="shapes" tabindex="0">\n'
        '<table class="sortable" data-says="sorted"><thead><tr>'
        f"{''.join(heads)}</tr></thead>\n<tbody>\n{rows}\n</tbody></table>\n</div>\n"
        f'<p id="sorted" class="hidden" aria-live="polite"></p>\n{notes(comparison)}</section>'
    )


def head(name: str, *, text: bool = False, sort: str = "", first: str = "") -> str:
    order = f' aria-sort="{sort}"' if sort else ""
    data = (" data-text" if text else "") + (f' data-first="{first}"' if first else "")
    return f'<th scope="col"{order}><button type="button"{data}>{escape(name)}</button></th>'


def score_head(measure: Measure) -> str:
    return head(measure.name, first="ascending" if measure.lower_is_better else "descending")


def table_row(row: Row, others: Sequence[Measure], main: Measure, picked: str, on: Mapping[str, set[str]]) -> str:
    tags = [TAGS[name] for name, names in on.items() if row.shape in names]
    klass = "picked" if row.shape == picked else "" if tags or not row.scores else "out"
    cells = [
        f'<td class="left">{"".join(f"<span class=tag>{tag}</span>" for tag in tags) or "none"}</td>',
        score_cell(row.scores.get(main), main),
        cell(row.parameters, short(row.parameters)),
        cell(row.flops, short(row.flops)),
        cell(row.milliseconds, "" if row.milliseconds is None else significant(row.milliseconds), row.outcome),
        cell(row.per_token, "" if row.per_token is None else significant(row.per_token), row.outcome),
        cell(row.memory_mb, "" if row.memory_mb is None else significant(row.memory_mb), row.outcome),
        *(score_cell(row.scores.get(measure), measure) for measure in others),
    ]
    attribute = f' class="{klass}"' if klass else ""
    name = escape(row.shape)
    return f'<tr{attribute}><th scope="row" data-value="{name}">{name}</th>{"".join(cells)}</tr>'


def cell(value: float | None, text: str, outcome: str = "ok") -> str:
    if value is None:
        return f'<td data-value="">{escape(outcome if outcome != "ok" else MISSING)}</td>'
    return f'<td data-value="{value!r}">{escape(text)}</td>'


def score_cell(score: Quality | None, measure: Measure) -> str:
    if score is None:
        return f'<td data-value="">{MISSING}</td>'
    between = ""
    if score.low is not None and score.high is not None:
        between = f" <small>{measure.show(score.low)} to {measure.show(score.high)}</small>"
    return f'<td data-value="{score.value!r}">{measure.show(score.value)}{between}</td>'


def notes(comparison: Comparison) -> str:
    return "".join(f'<p class="notice">{escape(note)}</p>\n' for note in comparison.notes)


def conditions_text(comparison: Comparison) -> str:
    at = comparison.conditions
    length, target = comparison.lengths
    threads = int(at.get("threads", 1))
    return f"{length:,} tokens in, {target:,} out, {at.get('dtype')}, {at.get('device')}, {counted(threads, 'thread')}"
