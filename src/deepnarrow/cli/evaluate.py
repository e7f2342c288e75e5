"""`deepnarrow evaluate`: score a model on tasks, with intervals, beside a baseline; every answer is kept."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.cli import judging
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.measure.evaluate import Evaluation
    from deepnarrow.measure.judging.judge import Judged, Wanted
    from deepnarrow.measure.judging.subject import Subject
    from deepnarrow.tasks.significance import Interval

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

UNITS = {"gold_probability": "%", "ece": "%"}  # of what stands below the scores; the others have none
JSON_LINES = (".jsonl", ".ndjson")


@app.command()
def evaluate(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="A run folder, a Hugging Face folder or a hub name.")
    ] = None,
    task: judging.TaskNames = None,
    suite: judging.Suite = None,
    corpus: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Instead of a task: predict this corpus, or its DIR/held_out.")
    ] = None,
    objective: Annotated[str, typer.Option(metavar="NAME", help="With --corpus: what is hidden.")] = "span",
    input_length: Annotated[int, typer.Option(metavar="N", help="With --corpus: tokens of one input.")] = 512,
    split: judging.Split = None,
    data: judging.Data = None,
    limit: judging.Limit = None,
    batch: judging.Batch = None,
    beam: judging.BeamWidth = None,
    as_t5: judging.AsT5 = False,
    likelihood: Annotated[
        bool, typer.Option("--likelihood", help="Also perplexity and bits per byte of the accepted answers.")
    ] = False,
    without: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Score also the items beside those of this file (`corpus overlap --out`)."),
    ] = None,
    check_batch: Annotated[
        bool, typer.Option("--check-batch", help="Instead: are the answers the same at any batch size?")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR|FILE", help="Keep the evaluation here; a FILE.jsonl takes the predictions alone."),
    ] = None,
    again: judging.Again = False,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="Add the scores to this ledger.")] = None,
    seed: judging.Seed = 0,
    device: judging.Device = "auto",
    dtype: judging.Dtype = None,
    runtime: judging.Runtime = "auto",
    show_list: Annotated[bool, typer.Option("--list", help="List the tasks and stop.")] = False,
    as_json: judging.Json = False,
) -> None:
    """Score a model on a task, with 95 % intervals, beside a baseline that learned nothing.

    A fine-tuned run is scored on its own task unless others are named. A task with labels is scored by which label the
    model finds likeliest, any other by what it generates. Every answer is kept in RUN/evaluations (of a model that is
    no run, in ./evaluations); the same evaluation is not made twice. On a CPU the native runtime answers where its
    answers are those of PyTorch, in float32; another --dtype is scored with --runtime native. A corpus is scored by how
    well the model predicts what an objective hides: loss per token, and bits per byte.

    \b
    Example:
      deepnarrow evaluate --list
      deepnarrow evaluate runs/topic --split test
      deepnarrow evaluate runs/mixture --suite glue --data glue --as-t5
      deepnarrow evaluate google/t5-efficient-tiny --task squad --data squad/dev.jsonl --limit 200 --out answers.jsonl
      deepnarrow evaluate runs/topic --split test --runtime native --dtype int8
      deepnarrow evaluate runs/wiki --corpus wiki/held_out --objective prefix_lm
    """
    if show_list:
        list_tasks(as_json=as_json)
        return
    if model is None or (corpus is not None and (task is not None or suite is not None)):
        raise UserError(
            "name a model and a task (deepnarrow evaluate MODEL --task NAME; --list shows the tasks), "
            "or a corpus (--corpus)"
        )
    if corpus is not None:
        if runtime == "native":
            raise UserError("a corpus is predicted by PyTorch; leave out --runtime native")
        on_corpus(
            model, corpus, objective, input_length, limit=limit, batch=32 if batch is None else batch, seed=seed,
            device=device, dtype=dtype or "float32", as_json=as_json,
        )  # fmt: skip
        return
    from deepnarrow.measure.judging.judge import judge
    from deepnarrow.measure.judging.subject import subject

    one = subject(model, judging.way_of(runtime=runtime, device=device, dtype=dtype))
    requests = list(
        judging.wanted(
            judging.chosen_tasks(one, task, suite), split=split, data=data, limit=limit, batch=batch, beam=beam,
            as_t5=as_t5, likelihood=likelihood, seed=seed,
        )
    )  # fmt: skip
    if check_batch:
        check_batches(one, requests, as_json=as_json)
        return
    if without is not None and len(requests) > 1:
        raise UserError(f"{without} is of one task; name it with --task")
    single = out is not None and out.suffix in JSON_LINES
    if single and len(requests) > 1:
        raise UserError(f"{out} takes the predictions of one task; give a folder for several")
    results = []
    for request in requests:
        found = judge(one, request, again=again, out=None if single else out)
        clean = clean_scores(request, found, without)
        if single and out is not None:
            found.kept.evaluation.write_predictions(out)
        if ledger is not None:
            add_to_ledger(ledger, one, request, found)
        results.append((request, found, clean))
        if not as_json:
            show(one, request, found, clean)
            print(f"predictions: {out if single else found.kept.folder}")
    scored = {request.task.name: found.kept.evaluation.scores for request, found, _ in results}
    average = judging.suite_average(suite, scored)
    if as_json:
        import json

        told = [as_object(one, request, found, clean) for request, found, clean in results]
        several = {"tasks": told} | ({"average": judging.as_numbers(average)} if average else {})
        print(json.dumps(told[0] if len(told) == 1 and not suite else several, indent=2))
    elif average is not None:
        print(f"\n{suite}, averaged as in the papers: {average.value:.2f} [{judging.bounds(average)}]")


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


def clean_scores(request: "Wanted", found: "Judged", without: Path | None) -> "dict[str, Interval] | None":
    """The scores of the items that are not in a file of item numbers."""
    if without is None:
        return None
    from deepnarrow.measure.evaluate import scores_of
    from deepnarrow.measure.judging.items import read_numbers

    dropped = read_numbers(without, items=request.items, n=found.kept.evaluation.n)
    left = [one for one in found.kept.evaluation.predictions if one.number not in dropped]
    if not left:
        raise UserError(f"{without} names every item of {request.task.name}, so nothing is left to score")
    return scores_of(request.task, left, samples=1000, seed=request.seed)


def check_batches(one: "Subject", requests: "list[Wanted]", *, as_json: bool) -> None:
    """Ask the same at several batch sizes; exit code 1 where an answer changes by more than a tie."""
    from deepnarrow.measure.judging.invariance import check

    told = []
    for request in requests:
        found = check(one.opened, request)
        told.append(found.to_json())
        if not as_json:
            for line in found.lines():
                print(line)
    if as_json:
        import json

        print(json.dumps(told[0] if len(told) == 1 else told, indent=2))
    if any(row["differing"] for row in told):
        raise typer.Exit(1)


def add_to_ledger(ledger: Path, one: "Subject", request: "Wanted", found: "Judged") -> None:
    from deepnarrow.measure.ledger import append

    about = found.kept.about
    records = found.kept.evaluation.records(
        model=one.origin,
        shape=about["model"]["shape"],
        split=request.split,
        parameters=about["model"]["parameters"],
        conditions=request.differences | ({} if one.precision == one.way.dtype else {"dtype": one.precision}),
        extra={
            "data": about["data"],
            "skipped": about["skipped"],
            "dtype": about["dtype"],
            "runtime": about["runtime"],
        },
    )
    append(ledger, records)


def as_object(
    one: "Subject", request: "Wanted", found: "Judged", clean: "dict[str, Interval] | None"
) -> dict[str, Any]:
    from deepnarrow.measure.judging.kept import scores_json

    about = found.kept.about
    return {
        "model": one.origin,
        "shape": about["model"]["shape"],
        "split": request.split,
        "data": about["data"],
        "skipped": about["skipped"],
        "runtime": about.get("runtime", "torch"),
        **scores_json(found.kept.evaluation),
        **({"without": {name: judging.as_numbers(row) for name, row in clean.items()}} if clean else {}),
        "kept": str(found.kept.folder),
        "reused": found.reused,
    }


def show(one: "Subject", request: "Wanted", found: "Judged", clean: "dict[str, Interval] | None") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    evaluation, about = found.kept.evaluation, found.kept.about
    console = judging.console()
    console.print(
        f"\n[bold]{escape(evaluation.task)}[/], {request.split}: {escape(one.origin)} ({about['model']['shape']})",
        soft_wrap=True,
    )
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column("metric")
    for title in ("score", "95 % interval", "n", evaluation.baseline_name):
        grid.add_column(title, justify="right")
    for name, row in evaluation.scores.items():
        base = f"{evaluation.baseline[name]:.2f}"
        grid.add_row(name, f"[bold]{row.value:.2f}[/]", judging.bounds(row), f"{row.n:,}", base)
        if clean:
            part = clean[name]
            grid.add_row("  without those", f"{part.value:.2f}", judging.bounds(part), f"{part.n:,}", "")
    for name, row in evaluation.more.items():
        digits = 2 if name in UNITS else 3
        value = f"{row.value:.{digits}f}"
        grid.add_row(f"[dim]{name.replace('_', ' ')}[/]", value, judging.bounds(row, digits), f"{row.n:,}", "")
    console.print(grid)
    for note in notes(evaluation, about, found):
        console.print(f"[dim]{escape(note)}[/]", soft_wrap=True)


def notes(evaluation: "Evaluation", about: Any, found: "Judged") -> list[str]:
    lines = [
        f"by {evaluation.search}",
        f"{evaluation.seconds:.1f} s, computed by {about.get('runtime', 'torch')}",
        f"data: {about['data']}",
    ]
    lines += [f"{name}: {said}" for name, said in evaluation.signatures.items()]
    if evaluation.truncated:
        lines.append(f"inputs cut to the task's length: {evaluation.truncated:,}")
    if about["skipped"]:
        lines.append(f"rows without an answer, left out: {about['skipped']:,}")
    if found.reused:
        lines.append(f"kept since {about['date']}, the same weights, items and protocol; --again evaluates anew")
    return lines


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
