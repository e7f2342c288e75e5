"""`deepnarrow bench`: time and weigh models here, beside what this machine can do at best."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from deepnarrow.measure.ceilings import Ceilings
    from deepnarrow.measure.speed import Entry
    from deepnarrow.measure.timing import Phase, Timing

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def bench(
    names: Annotated[
        list[str], typer.Argument(metavar="MODEL_OR_SHAPE", help="Run or Hugging Face folders, hub names, or shapes.")
    ],
    input_length: Annotated[int, typer.Option(help="Tokens of every input.")] = 512,
    target_length: Annotated[int, typer.Option(help="Tokens of every answer; it is forced to that length.")] = 64,
    batch: Annotated[int, typer.Option(help="Examples at once; `one answer` is always of one.")] = 1,
    repeats: Annotated[int, typer.Option(help="Rounds; the median is shown.")] = 5,
    train: Annotated[bool, typer.Option("--train/--no-train", help="Time training steps too.")] = True,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="Add the timings to this ledger.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16.")] = "float32",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON alone.")] = False,
) -> None:
    """Time and weigh models on this machine, beside the machine's own ceilings.

    Several models take turns in every round, so that a machine that slows down slows them all. A shape is timed with
    random weights. The last line printed is JSON.

    \b
    Example:
      deepnarrow bench small small-el16-dl2 --input-length 256 --target-length 32
      deepnarrow bench runs/nq --batch 16 --dtype bfloat16 --no-train --ledger ledger.jsonl
    """
    import json
    from dataclasses import asdict

    from deepnarrow.measure.ceilings import ceilings
    from deepnarrow.measure.speed import conditions_here, time_models
    from deepnarrow.model.folder import resolve_device, resolve_dtype

    resolve_dtype(dtype)
    at = conditions_here(
        input_length=input_length,
        target_length=target_length,
        batch=batch,
        dtype=dtype,
        device=str(resolve_device(device)),
    )
    entries = [entry(name) for name in names]
    with status() as say:
        timings = time_models(entries, at, repeats=repeats, train=train, say=say)
    best = ceilings(at.device)
    if ledger is not None:
        from deepnarrow.measure.ledger import append
        from deepnarrow.measure.timing import to_records

        for timing in timings:
            append(ledger, to_records(timing))
    if not as_json:
        show(timings, best, repeats)
    print(json.dumps({"ceilings": asdict(best), "timings": [timing.to_json() for timing in timings]}))


def entry(name: str) -> "Entry":
    """A model where there is one of that name, else a shape, which has no weights and needs none."""
    from deepnarrow.errors import UserError
    from deepnarrow.measure.speed import Entry
    from deepnarrow.model.folder import open_model
    from deepnarrow.shapes import parse

    if not Path(name).expanduser().exists() and "/" not in name:
        try:
            shape = parse(name)
        except UserError as error:
            raise UserError(f"{name} is neither a folder nor a shape: {error}") from None
        return Entry(str(shape), shape)
    opened = open_model(name)
    return Entry(name, opened.shape, opened.model)


def status() -> Any:
    """Tell on a terminal what is being timed, in one line that is written between timed parts only.

    A bar that draws itself would take time from what is measured.
    """
    import sys
    from contextlib import contextmanager

    live = sys.stderr.isatty()

    def say(line: str) -> None:
        if live:
            print(f"\r\x1b[2K{line[:100]}", end="", file=sys.stderr, flush=True)

    @contextmanager
    def told() -> Any:
        try:
            yield say
        finally:
            say("")

    return told()


def show(timings: "list[Timing]", best: "Ceilings", repeats: int) -> None:
    from rich.console import Console
    from rich.markup import escape

    from deepnarrow.cli.shapes import terminal_width
    from deepnarrow.measure.numbers import counted

    at = timings[0].conditions
    console = Console(width=terminal_width(), highlight=False)
    console.print(
        f"\n[bold]{at.input_length}[/] tokens in, [bold]{at.target_length}[/] out, batch [bold]{at.batch}[/], "
        f"{at.dtype}, {at.device}, {counted(at.threads, 'thread')}, {counted(repeats, 'round')}"
    )
    for timing in timings:
        console.print(f"\n[bold]{escape(timing.name)}[/]  {headline(timing)}")
        console.print(table(timing))
    console.print(
        f"[dim]ms are medians. Ceilings of this machine: matrix products {best.gemm(at.dtype):,.0f} GFLOP/s in "
        f"{at.dtype}, reading {best.bandwidth_gbs:,.1f} GB/s from memory; what fits a cache is read faster, and shares "
        "are of the speed at what the model must read for each token.[/]"
    )


def headline(timing: "Timing") -> str:
    from deepnarrow.measure.numbers import MISSING, short, significant

    def size(value: float | None, phase: "Phase | None") -> str:
        if value is not None:
            return f"{significant(value)} MB"
        return phase.outcome if phase is not None and phase.outcome != "ok" else MISSING

    parts = [
        *([f"shape {timing.shape}"] if timing.shape != timing.name else []),
        f"{short(timing.parameters)} parameters",
        f"weights {significant(timing.weights_mb)} MB",
        f"peak {size(timing.peak_memory_mb, timing.end_to_end)}",
    ]
    if timing.train_step is not None:
        parts.append(f"in training {size(timing.train_peak_memory_mb, timing.train_step)}")
    return ", ".join(parts)


def table(timing: "Timing") -> Any:
    from rich import box
    from rich.table import Table

    from deepnarrow.measure.numbers import percent, significant
    from deepnarrow.measure.timing import PHASES

    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column("", min_width=18)
    for title in ("ms", "quartiles", "GFLOP/s", "of GEMM", "of reading", "tokens/s"):
        grid.add_column(title, justify="right")
    for name, phase in timing.phases():
        spread = phase.milliseconds
        if spread is None:
            grid.add_row(PHASES[name], phase.outcome)
            continue
        rate = {"per_token": timing.conditions.batch / spread.median * 1e3}.get(name)
        rate = timing.train_tokens_per_second if name == "train_step" else rate
        grid.add_row(
            PHASES[name],
            f"[bold]{significant(spread.median)}[/]",
            f"{significant(spread.low)} to {significant(spread.high)}",
            significant(phase.gflops or 0.0),
            percent(phase.gemm_share),
            percent(phase.bandwidth_share) if phase.bytes else "",
            f"{rate:,.0f}" if rate is not None else "",
        )
    return grid
