"""What `evaluate`, `compare` and `errors` have in common: the flags of an evaluation, and how numbers are set."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from deepnarrow.measure.answerer import Answerer
    from deepnarrow.measure.judging.judge import Wanted
    from deepnarrow.measure.judging.subject import Subject, Way
    from deepnarrow.model.heads import OpenedHead
    from deepnarrow.tasks import Task
    from deepnarrow.tasks.significance import Interval

TaskNames = Annotated[
    str | None,
    typer.Option("--task", metavar="T[,T]", help="The tasks (evaluate --list), else those a run was fine-tuned on."),
]
Suite = Annotated[
    str | None, typer.Option(metavar="NAME", help="All tasks of glue, super_glue or scaling, and their average.")
]
Split = Annotated[str | None, typer.Option(metavar="NAME", help="The split to score; by default validation.")]
Data = Annotated[
    Path | None,
    typer.Option(metavar="PATH", help="A file, or a folder with SPLIT.jsonl (.csv, .parquet); of several: DIR/TASK/."),
]
Limit = Annotated[int | None, typer.Option(metavar="N", help="Only the first so many items.")]
Batch = Annotated[
    int | None, typer.Option(metavar="N", help="Inputs at once; scores do not depend on it. Default: what is quick.")
]
BeamWidth = Annotated[
    int | None, typer.Option("--beam", metavar="N", help="Search with a beam of this width, T5's length penalty.")
]
AsT5 = Annotated[
    bool, typer.Option("--as-t5", help="T5's protocol: labels are generated too, the task's own beam is used.")
]
Again = Annotated[bool, typer.Option("--again", help="Evaluate anew what is kept.")]
Seed = Annotated[int, typer.Option(metavar="N", help="Of the intervals' resamples.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Dtype = Annotated[
    str | None, typer.Option(help="float32, bfloat16, or int8 (native).  [default: float32, or as converted]")
]
Runtime = Annotated[str, typer.Option(help="auto (native on a CPU in float32 or as converted), native or torch.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def chosen_tasks(one: "Subject", task: str | None, suite: str | None) -> "list[Task]":
    """The tasks of a suite, those named, or those of the run itself."""
    from deepnarrow.measure.judging.subject import tasks_for

    if suite is None:
        return tasks_for(one, task)
    if task is not None:
        raise UserError("name tasks (--task) or a suite of them (--suite), not both")
    from deepnarrow import tasks
    from deepnarrow.tasks import suites

    return [tasks.get(name) for name in suites.tasks_of(suites.get(suite))]


def way_of(*, runtime: str, device: str, dtype: str | None) -> "Callable[[Path], Way]":
    """How to run models that are judged, mistakes in the flags told first.

    By itself the native runtime is taken where PyTorch would give the same answers, in float32, and for what was
    converted, in its own precision; in another precision and for heads where it is asked for.
    """
    from deepnarrow.cli import answering
    from deepnarrow.measure.judging.subject import NATIVE, TORCH, Way, torch_way
    from deepnarrow.model.head_file import is_head
    from deepnarrow.runtime.folder import is_native
    from deepnarrow.runtime.format import NAME, open_file

    answering.check_runtime(runtime, device)
    answering.check_dtype(dtype)
    must = answering.must_be_native(runtime, dtype)
    if runtime == TORCH or device not in answering.NATIVE_DEVICES:
        answering.refuse_int8(dtype)
    by_torch = torch_way(
        device=device, dtype="float32" if dtype in (None, answering.INT8) else dtype, insisted=runtime == TORCH
    )

    goes: dict[bool, bool] = {}  # of a converted folder, and of any other

    def way(folder: Path) -> Way:
        if is_head(folder):
            if must:
                raise UserError(
                    f"{folder} has a head, which PyTorch runs, in float32 or bfloat16; leave out "
                    + ("--runtime native" if runtime == NATIVE else "--dtype int8")
                )
            return by_torch(folder)
        converted = is_native(folder)
        if not (must or converted or dtype in (None, "float32")):
            return by_torch(folder)
        if converted not in goes:  # where it is not there, that is said once for all models
            goes[converted] = answering.goes_native(str(folder), runtime, device, dtype, "evaluating")
        if not goes[converted]:
            return by_torch(folder)
        held = open_file(folder / NAME, verify=False).precision if converted else "float32"

        def opened() -> "Answerer | OpenedHead":
            from deepnarrow.measure.answerer import ByEngine

            found = answering.open_native(folder, dtype, must=must, doing="evaluating")
            if found is None:
                return by_torch(folder).open()
            return ByEngine(found.engine, found.tokenizer, found.origin, found.own)

        return Way(NATIVE, dtype or held, opened, insisted=runtime == NATIVE)

    return way


def wanted(
    tasks: "list[Task]",
    *,
    split: str | None,
    data: Path | None,
    limit: int | None,
    batch: int | None,
    beam: int | None,
    as_t5: bool,
    seed: int,
    likelihood: bool = False,
) -> "Iterator[Wanted]":
    """One request for each task, mistakes in the flags told first."""
    from deepnarrow.measure.evaluate import LENGTH_PENALTY
    from deepnarrow.measure.judging.judge import Wanted, data_of, split_of
    from deepnarrow.model.decode import Beam
    from deepnarrow.model.inference import check_batch

    check_batch(batch)
    search = None
    if beam is not None:
        if beam < 1:
            raise UserError(f"the width of a beam must be at least 1, not {beam}")
        labelled = [task.name for task in tasks if task.labels and not as_t5]
        if labelled:
            raise UserError(
                f"task {labelled[0]} is scored by the likelihood of its labels, without a search; drop --beam "
                "(or add --as-t5, which generates labels)"
            )
        search = Beam(beam, length_penalty=LENGTH_PENALTY, normaliser="wu", early_stopping="never")
    for task in tasks:
        yield Wanted(
            task=task,
            split=split_of(task, split, data),
            data=data_of(task, data, alone=len(tasks) == 1),
            limit=limit,
            search=search,
            beam=beam,
            as_t5=as_t5,
            likelihood=likelihood,
            batch=batch,
            seed=seed,
        )


def console() -> "Console":
    from rich.console import Console

    from deepnarrow.cli.shapes import terminal_width

    return Console(width=terminal_width(), highlight=False)


def bounds(found: "Interval", digits: int = 2) -> str:
    return f"{found.low:.{digits}f} to {found.high:.{digits}f}"


def one_line(text: str, most: int) -> str:
    """
    >>> one_line("a  long\\ntext", 8)
    'a lon...'
    """
    plain = " ".join(text.split())
    return plain if len(plain) <= most else plain[: max(0, most - 3)] + "..."


def as_numbers(found: "Interval") -> dict[str, Any]:
    return {"value": found.value, "low": found.low, "high": found.high, "n": found.n}


def suite_average(suite: str | None, scores: "dict[str, dict[str, Interval]]") -> "Interval | None":
    """The average that a suite's paper reports, of task -> metric -> score."""
    if suite is None:
        return None
    from deepnarrow.tasks import suites

    return suites.average(suites.get(suite), scores)
