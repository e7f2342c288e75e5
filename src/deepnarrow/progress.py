"""Progress on the terminal: a live bar where there is one, a plain line now and then where there is none.

Everything goes to standard error, so that standard output stays a program's to read.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

PLAIN_EVERY = 10.0  # seconds between lines when standard error is a file


class Bar:
    """One task's progress: `advance(n, note)` after each piece of work."""

    def advance(self, amount: float = 1, note: str = "") -> None:
        raise RuntimeError("use progress()")


class _LiveBar(Bar):
    def __init__(self, live: "object", task: "object") -> None:
        self.live, self.task = live, task

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.live.update(self.task, advance=amount, note=note)  # type: ignore[attr-defined]


class _PlainBar(Bar):
    def __init__(self, label: str, total: float | None, done: float) -> None:
        self.label, self.total, self.done, self.start = label, total, done, done
        self.began = self.spoken = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        now = time.monotonic()
        if now - self.spoken < PLAIN_EVERY:
            return
        self.spoken = now
        share = f"{self.done:,.0f}"
        if self.total:
            rate = (self.done - self.start) / (now - self.began)
            left = (self.total - self.done) / rate if rate > 0 else 0.0
            share = f"{self.done:,.0f}/{self.total:,.0f} ({100 * self.done / self.total:.0f} %), {left:.0f} s left"
        print(f"{self.label}: {share}{'  ' + note if note else ''}", file=sys.stderr, flush=True)


@contextmanager
def progress(label: str, total: float | None, *, done: float = 0) -> Iterator[Bar]:
    """Show progress while the block runs. `done` is what an earlier, interrupted run had finished."""
    if not sys.stderr.isatty():
        yield _PlainBar(label, total, done)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False, redirect_stdout=False) as live:
        yield _LiveBar(live, live.add_task(label, total=total, completed=int(done), note=""))
