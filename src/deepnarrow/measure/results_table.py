"""A study's results as one table: for the terminal, and as Markdown for a README. From the ledger, never typed."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from deepnarrow.measure.comparison import Comparison, Measure, compare, find_measures
from deepnarrow.measure.frontier import Quality
from deepnarrow.measure.ledger import Record
from deepnarrow.measure.numbers import short, significant

if TYPE_CHECKING:
    from rich.table import Table

Lines = tuple[list[str], list[list[str]]]


def lines(comparison: Comparison) -> Lines:
    """The head, and a line for each shape by rising number of parameters; a cell that was not measured has a dash."""
    measures = find_measures(comparison)
    head = ["shape", "parameters", "FLOPs", "ms", *(heading(comparison, measure) for measure in measures)]
    body = [
        [
            row.shape,
            short(row.parameters),
            short(row.flops),
            "-" if row.milliseconds is None else significant(row.milliseconds),
            *(score(row.scores.get(measure)) for measure in measures),
        ]
        for row in comparison.rows
    ]
    return head, body


def heading(comparison: Comparison, measure: Measure) -> str:
    base = comparison.baselines.get(measure)
    beside = f" ({base.name} {base.value:.1f})" if base else ""
    return f"{measure.name}{beside}"


def score(found: Quality | None) -> str:
    if found is None:
        return "-"
    interval = "" if found.low is None or found.high is None else f" [{found.low:.1f}, {found.high:.1f}]"
    return f"{found.value:.1f}{interval}"


def results_table(records: Iterable[Record]) -> "Table":
    """For the terminal."""
    from rich.table import Table

    head, body = lines(compare(records))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name, justify="right" if place else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    return table


def markdown(records: Iterable[Record]) -> str:
    """For a README: the table, then what its columns mean and where they were measured."""
    comparison = compare(records)
    head, body = lines(comparison)
    table = [row(head), row(["---"] + ["---:"] * (len(head) - 1)), *(row(line) for line in body)]
    return "\n".join([*table, "", *legend(comparison)])


def row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def legend(comparison: Comparison) -> list[str]:
    """What the numbers mean, in the order of the columns."""
    source, target = comparison.lengths
    some = next(quality for line in comparison.rows for quality in line.scores.values())
    at, here = comparison.conditions, comparison.timed_on
    doubt = "of items and seeds" if some.seeds_known else "over test items; one seed, so its luck is not in them"
    return [
        f"FLOPs and milliseconds are for one answer: {source} tokens in, {target} out, greedy, {at.get('dtype', '')}, "
        f"{at.get('threads', '?')} threads on {here.get('processor', 'an unknown processor')}. "
        f"Intervals are 95 %, {doubt}. In brackets behind a task: an answer that needs no learning."
    ]
