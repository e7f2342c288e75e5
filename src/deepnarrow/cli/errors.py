"""`deepnarrow errors`: what a model gets wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.cli import judging
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.measure.judging.errors import Errors, Part, Worst
    from deepnarrow.measure.judging.kept import Kept
    from deepnarrow.tasks import Task

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

MATRIX = 20  # labels that a matrix of confusions is drawn for
INPUT, ANSWER = 320, 160  # characters shown of an item's texts
BAR = 20  # cells for 100 %


@app.command()
def errors(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run, a model, or a kept evaluation.")],
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="The task; by default the one a run was fine-tuned on.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many of the worst items to show.")] = 10,
    split: judging.Split = None,
    data: judging.Data = None,
    limit: judging.Limit = None,
    batch: judging.Batch = None,
    beam: judging.BeamWidth = None,
    as_t5: judging.AsT5 = False,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Find how likely each right answer was, to sort by it.")
    ] = False,
    again: judging.Again = False,
    seed: judging.Seed = 0,
    device: judging.Device = "auto",
    dtype: judging.Dtype = None,
    runtime: judging.Runtime = "auto",
    as_json: judging.Json = False,
) -> None:
    """Show what a model gets wrong: the worst items, scores by input length and by label, confusions, frequent answers.

    Read from the evaluation that is kept; made first where there is none. Of equally bad items those come first whose
    right answer the model found least likely, or, where that is not known, of whose own answer it was surest.

    \b
    Example:
      deepnarrow errors runs/topic --split test
      deepnarrow errors runs/squad --data squad/dev.jsonl --n 20 --likelihood
      deepnarrow errors runs/topic/evaluations/stdlib_topic.validation --json
    """
    found, of = look_up(
        run, task, runtime, device, dtype, again=again,
        split=split, data=data, limit=limit, batch=batch, beam=beam, as_t5=as_t5, likelihood=likelihood, seed=seed,
    )  # fmt: skip
    from deepnarrow.measure.judging.errors import errors as look_into

    seen = look_into(found, of, n=n)
    if as_json:
        import json

        about = {"task": of.name, "split": found.about["split"], "model": found.about["model"]["origin"]}
        print(json.dumps(about | seen.to_json() | {"kept": str(found.folder)}, indent=2, ensure_ascii=False))
        return
    show(seen, found, of)


def look_up(
    run: str, task: str | None, runtime: str, device: str, dtype: str | None, *, again: bool, **settings: Any
) -> "tuple[Kept, Task]":
    """The evaluation named, or that of a model, and its task."""
    from deepnarrow.measure.judging import kept
    from deepnarrow.measure.judging.comparing import task_in
    from deepnarrow.measure.judging.judge import judge
    from deepnarrow.measure.judging.subject import seeds_in, subject

    if kept.is_kept(Path(run)):
        found = kept.read(Path(run))
        of = task_in(found)
        if task not in (None, of.name):
            raise UserError(f"{run} is a kept evaluation of {of.name}, not of {task}")
        return found, of
    if seeds := seeds_in(run):
        raise UserError(f"{run} holds {len(seeds)} runs; name one of them, such as {seeds[0]}")
    one = subject(run, judging.way_of(runtime=runtime, device=device, dtype=dtype))
    chosen = judging.chosen_tasks(one, task, None)
    if len(chosen) > 1:
        raise UserError(f"{run} has several tasks; name one: --task {' or '.join(each.name for each in chosen)}")
    [request] = judging.wanted(chosen, **settings)
    return judge(one, request, again=again).kept, request.task


def show(seen: "Errors", found: "Kept", task: "Task") -> None:
    from rich.markup import escape

    console = judging.console()
    about, score = found.about, found.evaluation.main
    model = about["model"]
    console.print(f"\n[bold]{escape(task.name)}[/], {about['split']}: {escape(model['origin'])}", soft_wrap=True)
    wrong = "wrong" if seen.all_or_nothing else "below one half"
    console.print(
        f"{task.main_metric} {score.value:.2f} \\[{judging.bounds(score)}]; {seen.wrong:,} of {seen.n:,} items {wrong}"
    )
    parts(console, "by input length", seen.metric, seen.by_length)
    parts(console, "by true label", seen.metric, seen.by_label)
    if seen.labels and len(seen.labels) <= MATRIX:
        matrix(console, seen)
    elif seen.confused:
        often(
            console, "most confused", [(f"{one.expected} taken for {one.answer}", one.times) for one in seen.confused]
        )
    if seen.frequent and not seen.labels:
        often(console, "most frequent wrong answers", [(one.answer or "(nothing)", one.times) for one in seen.frequent])
    if not seen.worst:
        console.print("\nno item is wrong")
        return
    console.print(f"\n[bold cyan]the {len(seen.worst)} worst[/]")
    for one in seen.worst:
        item(console, one)


def parts(console: "Console", title: str, metric: str, rows: "list[Part]") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    if len(rows) < 2:
        return
    console.print()
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column(title, overflow="fold")
    for name in (metric, "95 % interval", "n"):
        grid.add_column(name, justify="right", no_wrap=True)
    grid.add_column("", no_wrap=True)
    for name, score in rows:
        bar = "\N{FULL BLOCK}" * round(score.value / 100 * BAR)
        grid.add_row(escape(name), f"{score.value:.1f}", judging.bounds(score, 1), f"{score.n:,}", f"[cyan]{bar}[/]")
    console.print(grid)


def matrix(console: "Console", seen: "Errors") -> None:
    """Rows are true labels, columns given ones; columns bear the rows' numbers, so that long names fit."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print()
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 1))
    grid.add_column("true label, given label", no_wrap=True)
    for number in range(1, len(seen.labels) + 1):
        grid.add_column(str(number), justify="right", no_wrap=True)
    for place, label in enumerate(seen.labels):
        counts = seen.confusion[place] if place < len(seen.confusion) else []
        cells = [
            f"[bold]{count}[/]" if column == place else (str(count) if count else "[dim].[/]")
            for column, count in enumerate(counts)
        ]
        grid.add_row(f"{place + 1:>2} {escape(judging.one_line(label, 24))}", *cells)
    console.print(grid)


def often(console: "Console", title: str, rows: "list[tuple[str, int]]") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console.print()
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column(title, overflow="fold")
    grid.add_column("times", justify="right", no_wrap=True)
    for text, count in rows:
        grid.add_row(escape(judging.one_line(text, ANSWER)), f"{count:,}")
    console.print(grid)


def item(console: "Console", one: "Worst") -> None:
    from rich.markup import escape
    from rich.table import Table

    console.print(f"\n[bold]item {one.item.number}[/]  score {one.score:.2f}  [dim]{one.item.input_tokens} tokens[/]")
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="cyan", no_wrap=True, min_width=8)
    grid.add_column(overflow="fold")
    grid.add_row("input", escape(judging.one_line(one.item.inputs, INPUT)))
    wanted = " | ".join(judging.one_line(text, ANSWER) for text in one.item.accepted[:4])
    verb = "not" if one.item.negated else "right"
    grid.add_row(verb, f"[green]{escape(wanted)}[/]{share(one.right)}")
    said = judging.one_line(one.item.prediction, ANSWER) or "(nothing)"
    grid.add_row("answer", f"[red]{escape(said)}[/]{share(one.sure)}")
    console.print(grid)


def share(probability: float | None) -> str:
    if probability is None:
        return ""
    shown = f"{100 * probability:.1f}" if probability >= 0.001 else "below 0.1"
    return f"  [dim]({shown} %)[/]"
