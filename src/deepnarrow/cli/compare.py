"""`deepnarrow compare`: models side by side on a task, and whether the difference is real."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from deepnarrow.cli import judging
from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from deepnarrow.measure.judging.comparing import Compared, System
    from deepnarrow.measure.judging.kept import Kept
    from deepnarrow.tasks import Task
    from deepnarrow.tasks.significance import Interval

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs, folders of seeds (OUT/seed-0, ...), models, kept evaluations."),
    ],
    task: judging.TaskNames = None,
    suite: judging.Suite = None,
    split: judging.Split = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="By default the task's main metric.")] = None,
    data: judging.Data = None,
    limit: judging.Limit = None,
    batch: judging.Batch = None,
    beam: judging.BeamWidth = None,
    as_t5: judging.AsT5 = False,
    again: judging.Again = False,
    seed: judging.Seed = 0,
    device: judging.Device = "auto",
    dtype: judging.Dtype = None,
    runtime: judging.Runtime = "auto",
    as_json: judging.Json = False,
) -> None:
    """Compare models on the same items of a task, and say of every pair whether the difference is real.

    Evaluations that are kept are used, missing ones are made. The runs of a folder of seeds count as one system: its
    seeds are a source of variance, in the intervals and in the tests. The tests are paired, and corrected (Holm) where
    there are several pairs.

    \b
    Example:
      deepnarrow compare runs/deep runs/wide --task squad --data squad/dev.jsonl
      deepnarrow compare runs/deep-seeds runs/wide-seeds runs/lora --task sst2
      deepnarrow compare runs/a/evaluations/rte.validation runs/b/evaluations/rte.validation
      deepnarrow compare runs/deep runs/wide --suite glue --json
    """
    from deepnarrow.measure.judging.comparing import compared, system

    choose = judging.way_of(runtime=runtime, device=device, dtype=dtype)
    systems = [system(run, choose) for run in runs]
    names = [one.name for one in systems]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(f"{twice} is named twice; a model is compared with others")
    settings: dict[str, Any] = {
        "split": split, "data": data, "limit": limit, "batch": batch, "beam": beam, "as_t5": as_t5, "seed": seed,
    }  # fmt: skip
    tables = [
        compared(chosen, found, metric, every=suite is not None, seed=seed)
        for chosen, found in evaluations(systems, task, suite, settings, again=again)
    ]
    averages = suite_averages(suite, tables, names)
    if as_json:
        import json

        said = {name: judging.as_numbers(one) for name, one in averages.items()}
        told = [one.to_json() for one in tables]
        print(json.dumps(told[0] if len(told) == 1 else {"tasks": told, "average": said}, indent=2))
        return
    for one in tables:
        show(one)
    for name, average in averages.items():
        print(f"{suite}: {name} {average.value:.2f} [{judging.bounds(average)}]")


def evaluations(
    systems: "list[System]", task: str | None, suite: str | None, settings: dict[str, Any], *, again: bool
) -> "list[tuple[Task, dict[str, list[Kept]]]]":
    """For each task, every system's evaluations: those named on the command line, or those of its models."""
    from deepnarrow.measure.judging.comparing import task_in
    from deepnarrow.measure.judging.judge import judge
    from deepnarrow.measure.judging.subject import identity

    opened = [one for one in systems if one.kept is None]
    given = [one for one in systems if one.kept is not None]
    if given:
        first = given[0].kept
        assert first is not None
        own = task_in(first)
        if suite is not None or task not in (None, own.name):
            raise UserError(f"{given[0].name} is a kept evaluation of {own.name}; drop --task and --suite")
        for one in given:
            assert one.kept is not None
            if identity(task_in(one.kept)) != identity(own):
                raise UserError(f"{given[0].name} and {one.name} are evaluations of different tasks")
        # a model's own run knows where the rows of own data are, a kept evaluation only what they were
        chosen = [opened[0].subjects[0].task(own.name)] if opened else [own]
        settings = as_kept(settings, first)
    else:
        chosen = judging.chosen_tasks(opened[0].subjects[0], task, suite)
    found = []
    for request in judging.wanted(chosen, **settings):
        judged = {}
        for one in systems:
            judged[one.name] = (
                [one.kept] if one.kept else [judge(each, request, again=again).kept for each in one.subjects]
            )
        found.append((request.task, judged))
    return found


def as_kept(settings: dict[str, Any], first: "Kept") -> dict[str, Any]:
    """What is not said on the command line is as in the evaluation that was named."""
    said = first.about.get("differences", {})
    return {
        **settings,
        "split": settings["split"] or first.about["split"],
        "limit": settings["limit"] or said.get("limit"),
        "beam": settings["beam"] or said.get("beam"),
        "as_t5": settings["as_t5"] or said.get("protocol") == "t5",
    }


def suite_averages(suite: str | None, tables: "list[Compared]", names: list[str]) -> "dict[str, Interval]":
    found = {}
    for name in names if suite else []:
        average = judging.suite_average(suite, {one.task: dict(one.every_score[name]) for one in tables})
        assert average is not None
        found[name] = average
    return found


def show(one: "Compared") -> None:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    console = judging.console()
    console.print(f"\n[bold]{escape(one.task)}[/], {escape(one.split)}: {one.metric}")
    grid = Table(box=box.SIMPLE_HEAD, header_style="bold cyan", pad_edge=False, padding=(0, 2))
    grid.add_column("", overflow="fold")
    for title in ("score", "95 % interval", "n", "seeds"):
        grid.add_column(title, justify="right", no_wrap=True)
    best = max(row.score.value for row in one.rows)
    for row in one.rows:
        value = f"{row.score.value:.2f}"
        value = f"[bold]{value}[/]" if row.score.value == best else value
        grid.add_row(escape(row.name), value, judging.bounds(row.score), f"{row.score.n:,}", str(row.seeds))
    grid.add_row(f"[dim]{one.baseline_name}[/]", f"[dim]{one.baseline:.2f}[/]", "", "", "")
    console.print(grid)
    for sentence in one.verdicts:
        console.print(escape(sentence), soft_wrap=True)
    protocols = {row.protocol for row in one.rows}
    if len(protocols) > 1:
        console.print(
            f"[yellow]judged by different protocols: {escape('; '.join(sorted(protocols)))}[/]", soft_wrap=True
        )
