"""A study's results as one table: for the terminal, and as Markdown for a README. From the ledger, never typed."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from deepnarrow.measure.comparison import Comparison, compare, find_measures
from deepnarrow.measure.frontier import Quality
from deepnarrow.measure.labels import short_names
from deepnarrow.measure.ledger import Record
from deepnarrow.measure.numbers import short, significant

if TYPE_CHECKING:
    from rich.table import Table

Lines = tuple[list[str], list[list[str]]]


def lines(comparison: Comparison, names: Mapping[str, str]) -> Lines:
    """The head; a line for each shape by rising number of parameters, under the name that `names` gives it; and what
    answers that need no learning score on the same items. A cell that was not measured has a dash.
    """
    measures = find_measures(comparison)
    head = ["shape", "parameters", "FLOPs", "ms", *(measure.name for measure in measures)]
    body = [
        [
            names[row.shape],
            short(row.parameters),
            short(row.flops),
            "-" if row.milliseconds is None else significant(row.milliseconds),
            *(score(row.scores.get(measure), 2 if measure.lower_is_better else 1) for measure in measures),
        ]
        for row in comparison.rows
    ]
    bases = [comparison.baselines.get(measure) for measure in measures]
    if any(bases):
        body.append(["no learning", "", "", "", *(f"{base.value:.1f} ({base.name})" if base else "" for base in bases)])
    return head, body


def score(found: Quality | None, places: int) -> str:
    if found is None:
        return "-"
    known = found.low is not None and found.high is not None
    return f"{found.value:.{places}f}" + (f" [{found.low:.{places}f}, {found.high:.{places}f}]" if known else "")


def results_table(records: Iterable[Record]) -> "Table":
    """For the terminal."""
    from rich.table import Table

    comparison = compare(records)
    head, body = lines(comparison, short_names([row.shape for row in comparison.rows]))
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for place, name in enumerate(head):
        table.add_column(name.replace(" ", "\n"), justify="right" if place else "left", overflow="fold")
    for cells in body:
        table.add_row(*(cell.replace(" [", "\n[").replace(" (", "\n(") for cell in cells))
    return table


def markdown(records: Iterable[Record]) -> str:
    """For a README: the table, then what its columns mean and where they were measured."""
    comparison = compare(records)
    head, body = lines(comparison, {row.shape: f"`{row.shape}`" for row in comparison.rows})
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
        f"Intervals are 95 %, {doubt}. The last line is what an answer scores that needs no learning."
    ]
