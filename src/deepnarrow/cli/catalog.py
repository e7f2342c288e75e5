"""`deepnarrow catalog`: the published family."""

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepnarrow.shapes import Entry

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
    help="""The published T5 family: 174 checkpoints, searchable.

    \b
    Example:
      deepnarrow catalog list --family small --max-params 80M --sort params
      deepnarrow catalog show small-el16-dl2
      deepnarrow catalog search closed-book
    """,
)


class Sort(StrEnum):
    params = "params"
    name = "name"


Family = Annotated[
    str | None,
    typer.Option(help="t5-efficient, closed-book or lm-adapt; or a size: tiny to xxl."),
]
Most = Annotated[str | None, typer.Option("--max-params", metavar="SIZE", help="At most so many, e.g. 100M or 2.9B.")]
Least = Annotated[str | None, typer.Option("--min-params", metavar="SIZE", help="At least so many.")]
Order = Annotated[Sort | None, typer.Option("--sort", help="Order; default: as published.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, every field.")]


@app.command("list")
def list_entries(
    family: Family = None, max_params: Most = None, min_params: Least = None, sort: Order = None, as_json: Json = False
) -> None:
    """List checkpoints.

    \b
    Example:
      deepnarrow catalog list --family base --max-params 200M --sort params
    """
    show_found("", family, max_params, min_params, sort, as_json)


@app.command("search")
def search_entries(
    text: Annotated[list[str], typer.Argument(metavar="TEXT", help="Words that must all appear.")],
    family: Family = None,
    max_params: Most = None,
    min_params: Least = None,
    sort: Order = None,
    as_json: Json = False,
) -> None:
    """Search names, objectives, data sets, tags and known defects.

    \b
    Example:
      deepnarrow catalog search natural_questions
      deepnarrow catalog search incomplete --json
    """
    show_found(" ".join(text), family, max_params, min_params, sort, as_json)


@app.command("show")
def show_entry(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A hub id, or its end.")], as_json: Json = False
) -> None:
    """All that is known about one checkpoint, and where it was read.

    \b
    Example:
      deepnarrow catalog show google/t5-3b-ssm-nqo
    """
    from deepnarrow.shapes import find

    entry = find(name)
    if as_json:
        import json

        print(json.dumps(entry.record(), indent=2))
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from deepnarrow.cli.shapes import terminal_width

    console = Console(width=terminal_width(), highlight=False)
    console.print(f"\n[bold cyan]{entry.id}[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts(entry):
        grid.add_row(label, escape(value))
    console.print(grid)
    console.print("\n[bold]Sources[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(style="dim", overflow="fold")
    for label, value in entry.sources.items():
        grid.add_row(label, escape(value))
    console.print(grid)


def show_found(
    text: str, family: str | None, max_params: str | None, min_params: str | None, sort: Sort | None, as_json: bool
) -> None:
    """Print the entries that meet the conditions."""
    from deepnarrow.shapes import entries, magnitude, search

    found = search(
        text,
        family=family,
        min_parameters=None if min_params is None else magnitude.read(min_params),
        max_parameters=None if max_params is None else magnitude.read(max_params),
    )
    if sort is Sort.name:
        found.sort(key=lambda entry: natural(entry.name))
    elif sort is Sort.params:
        found.sort(key=lambda entry: (entry.parameters is None, entry.parameters or 0))
    if as_json:
        import json

        print(json.dumps([entry.record() for entry in found], indent=2))
        return
    from rich.console import Console

    from deepnarrow.cli.shapes import terminal_width

    console = Console(width=terminal_width(), highlight=False)
    if not found:
        console.print("Nothing in the catalogue meets this. `deepnarrow catalog list` shows everything.")
        return
    console.print(table(found))
    console.print(f"[dim]{len(found)} of {len(entries())} checkpoints. All about one: deepnarrow catalog show NAME[/]")


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts nl4 before nl12."""
    import re

    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"([0-9]+)", name)]


def table(found: "list[Entry]") -> Any:
    from rich import box
    from rich.table import Table

    from deepnarrow.shapes import magnitude, parse

    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False)
    grid.add_column("Checkpoint", no_wrap=True)
    for label in ("Parameters", "Layers", "d_model", "d_ff", "Heads"):
        grid.add_column(label, justify="right", no_wrap=True)
    grid.add_column("Remarks", overflow="fold")
    for entry in found:
        shape = parse(entry.shape) if entry.shape else None
        sizes = (
            ("?", "", "", "", "")
            if shape is None
            else (
                magnitude.write(entry.parameters or 0),
                f"{shape.encoder_layers} + {shape.decoder_layers}",
                str(shape.d_model),
                str(shape.d_ff),
                f"{shape.num_heads} x {shape.d_kv}",
            )
        )
        grid.add_row(entry.name, *sizes, ", ".join(remarks(entry)), style=None if entry.on_hub else "dim")
    return grid


def remarks(entry: "Entry") -> list[str]:
    """What sets a checkpoint apart: scores, training beyond the first stage, what is wrong with it."""
    found = [f"{score.metric} {score.value:.1f}" for score in entry.scores]
    found += [stage.objective for stage in entry.stages[1:2]]
    found += [defect.kind for defect in entry.defects if defect.kind != "card misprint"]
    return found if entry.on_hub else ["not on the hub"]


def facts(entry: "Entry") -> list[tuple[str, str]]:
    """Label and text of each known fact, in the order of reading."""
    from deepnarrow.shapes import parse

    found: list[tuple[str, str]] = [("Shape", entry.shape or str(entry.shape_note))]
    if entry.reading:
        found.append(("Read here as", entry.reading))
    shape = parse(entry.shape or entry.reading or "")
    found.append(
        (
            "Dimensions",
            f"{shape.encoder_layers} + {shape.decoder_layers} layers, d_model {shape.d_model}, d_ff {shape.d_ff}, "
            f"{shape.num_heads} heads of {shape.d_kv}, {shape.feed_forward}",
        )
    )
    if entry.parameters:
        found.append(("Parameters", f"{entry.parameters:,}"))
    if entry.card:
        card = entry.card
        found.append(
            (
                "Card says",
                f"{card.parameters_millions:g} M parameters; {card.fp32_mb:g} MB, {card.half_mb:g} MB in half",
            )
        )
    for number, stage in enumerate(entry.stages, start=1):
        note = f" ({stage.note})" if stage.note else ""
        text = f"{stage.steps:,} steps of {stage.objective} on {', '.join(stage.datasets)}{note}"
        found.append(("Training" if number == 1 else "", text))
    for score in entry.scores:
        found.append(("Score", f"{score.value:.1f} {score.metric}, {score.task}, {score.split} ({score.source})"))
    for number, (name, value) in enumerate(entry.peers.items()):
        found.append(("Sister models" if not number else "", f"{value:.1f} {name}"))
    if entry.golden is not None:
        found.append(("Golden score", f"{entry.golden:g}, log-likelihood of a fixed pair (docs/shapes.md)"))
    found += [("Careful" if not number else "", defect.text) for number, defect in enumerate(entry.defects)]
    found.append(("On the hub", "yes" if entry.on_hub else "no"))
    found.append(("Licence", entry.licence or "not read"))
    found.append(("Papers", ", ".join(f"arXiv:{paper}" for paper in entry.arxiv)))
    if entry.tags:
        found.append(("Tags", ", ".join(entry.tags)))
    if entry.created:
        found.append(("On the hub since", entry.created[:10]))
    return found
