"""`deepnarrow evaluate`: score a model on a task, with intervals, beside a baseline."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.measure.evaluate import Evaluation

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A run folder, a Hugging Face folder or a hub name.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task; --list shows them.")] = None,
    corpus: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead of a task: predict this corpus, or its DIR/held_out.")
    ] = None,
    objective: Annotated[str, typer.Option(metavar="NAME", help="With --corpus: what is hidden.")] = "span",
    input_length: Annotated[int, typer.Option(metavar="N", help="With --corpus: tokens of one input.")] = 512,
    split: Annotated[str, typer.Option(help="The split to score.")] = "validation",
    data: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A file, or a folder with SPLIT.jsonl (.csv, .parquet) in it.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first so many items.")] = None,
    batch: Annotated[int, typer.Option(help="Inputs at once; scores do not depend on it.")] = 32,
    beam: Annotated[
        int | None, typer.Option(help="Search with a beam of this width, T5's length penalty; default: greedily.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write every prediction here, as JSONL.")] = None,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="Add the scores to this ledger.")] = None,
    seed: Annotated[int, typer.Option(help="Of the intervals' resamples.")] = 0,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    show_list: Annotated[bool, typer.Option("--list", help="List the tasks and stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a model on a task, with 95 % intervals, beside a baseline that learned nothing.

    A task with labels is scored by which label the model finds likeliest, any other by what it generates. A corpus is
    scored by how well the model predicts what an objective hides: loss per token, and bits per byte.

    \b
    Example:
      deepnarrow evaluate --list
      deepnarrow evaluate runs/stdlib --task stdlib_topic --split test
      deepnarrow evaluate runs/wiki --corpus wiki/held_out --objective prefix_lm
      deepnarrow evaluate google/t5-efficient-tiny --task squad --data squad/dev.jsonl --limit 200 --out answers.jsonl
    """
    if show_list:
        list_tasks(as_json=as_json)
        return
    if model is None or (task is None) == (corpus is None):
        raise UserError(
            "name a model and a task (deepnarrow evaluate MODEL --task NAME; --list shows the tasks), "
            "or a corpus (--corpus)"
        )
    if corpus is not None:
        on_corpus(
            model, corpus, objective, input_length, limit=limit, batch=batch, seed=seed, device=device, dtype=dtype,
            as_json=as_json,
        )  # fmt: skip
        return
    assert task is not None
    if beam is not None and beam < 1:
        raise UserError(f"the width of a beam must be at least 1, not {beam}")
    from deepnarrow import tasks

    chosen = tasks.get(task)
    if beam is not None and chosen.labels:
        raise UserError(f"task {chosen.name} is scored by the likelihood of its labels, without a search; drop --beam")
    loaded = tasks.load(chosen, split, data=data, limit=limit)

    from deepnarrow.measure.evaluate import evaluate as run
    from deepnarrow.model.decode import Beam, Greedy
    from deepnarrow.model.folder import open_model, resolve_device, resolve_dtype

    opened = open_model(model, device=resolve_device(device), dtype=resolve_dtype(dtype))
    search = Greedy() if beam is None else Beam(beam, length_penalty=0.6, normaliser="wu", early_stopping="never")
    evaluation = run(opened, chosen, loaded.pairs, batch=batch, search=search, seed=seed)

    if out is not None:
        evaluation.write_predictions(out)
    if ledger is not None:
        from deepnarrow.measure.ledger import append

        asked = {"limit": limit, "beam": beam}  # what makes it another measurement than the plain one
        records = evaluation.records(
            model=opened.origin,
            shape=str(opened.shape),
            split=split,
            parameters=sum(parameter.numel() for parameter in opened.model.parameters()),
            conditions={name: value for name, value in asked.items() if value is not None},
            extra={"data": loaded.origin, "skipped": loaded.skipped, "dtype": dtype},
        )
        append(ledger, records)
    about = {"model": opened.origin, "shape": str(opened.shape), "split": split, "data": loaded.origin}
    if as_json:
        show_json(evaluation, about | {"skipped": loaded.skipped})
    else:
        show(evaluation, about, loaded.skipped)
        if out is not None:
            print(f"predictions: {out}")


def on_corpus(
    model: str,
    folder: Path,
    objective: str,
    input_length: int,
    *,
    limit: int | None,
    batch: int,
    seed: int,
    device: str,
    dtype: str,
    as_json: bool,
) -> None:
    from deepnarrow.measure.text_loss import text_loss
    from deepnarrow.model.folder import open_model, resolve_device, resolve_dtype
    from deepnarrow.text.corpus import open_corpus

    corpus = open_corpus(folder)
    opened = open_model(model, device=resolve_device(device), dtype=resolve_dtype(dtype))
    found = text_loss(
        opened, corpus, objective=objective, input_length=input_length, limit=limit, batch=batch, seed=seed
    )
    if as_json:
        import json

        about = {"model": opened.origin, "shape": str(opened.shape), "corpus": str(folder)}
        print(json.dumps(about | found.to_json(), indent=2))
        return
    print(
        f"{opened.origin} ({opened.shape}) on {folder}, {objective}: {found.bits_per_byte:.3f} bits per byte "
        f"[{found.low:.3f}, {found.high:.3f}], loss {found.loss:.3f} per token; {found.examples:,} examples, "
        f"{found.target_tokens:,} target tokens, {found.target_bytes:,} bytes"
    )


def show_json(evaluation: "Evaluation", about: dict[str, Any]) -> None:
    import json

    names = ("task", "task_version", "n", "truncated", "search", "seconds", "baseline_name")
    scores = {
        name: {"value": found.value, "low": found.low, "high": found.high, "baseline": evaluation.baseline[name]}
        for name, found in evaluation.scores.items()
    }
    print(json.dumps(about | {name: getattr(evaluation, name) for name in names} | {"scores": scores}, indent=2))


def show(evaluation: "Evaluation", about: dict[str, Any], skipped: int) -> None:
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from deepnarrow.cli.shapes import terminal_width

    console = Console(width=terminal_width(), highlight=False)
    console.print(
        f"\n[bold]{escape(evaluation.task)}[/], {about['split']}: {escape(about['model'])} ({about['shape']})"
    )
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column("metric")
    for title in ("score", "95 % interval", "n", evaluation.baseline_name):
        grid.add_column(title, justify="right")
    for name, found in evaluation.scores.items():
        bounds = f"{found.low:.2f} to {found.high:.2f}"
        grid.add_row(name, f"[bold]{found.value:.2f}[/]", bounds, f"{found.n:,}", f"{evaluation.baseline[name]:.2f}")
    console.print(grid)
    notes = [f"by {evaluation.search}", f"{evaluation.seconds:.1f} s", f"data: {about['data']}"]
    if evaluation.truncated:
        notes.append(f"inputs cut to the task's length: {evaluation.truncated:,}")
    if skipped:
        notes.append(f"rows without an answer, left out: {skipped:,}")
    for note in notes:
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def list_tasks(*, as_json: bool) -> None:
    from deepnarrow import tasks

    every = [tasks.get(name) for name in tasks.names()]
    if as_json:
        import json

        print(json.dumps([tasks.describe(task) for task in every], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    from deepnarrow.cli.shapes import terminal_width

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold cyan", no_wrap=True)
    grid.add_column()
    for task in every:
        metrics = ", ".join(metric.name for metric in task.metrics)
        more = "; ".join(part for part in (metrics, ", ".join(task.sources), task.paper) if part)
        grid.add_row(task.name, f"{task.about}\n[dim]{more}[/]")
    Console(width=terminal_width(), highlight=False).print(grid)
