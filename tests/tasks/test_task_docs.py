"""docs/tasks.md: its code runs, its tables name every task and nothing else."""

import doctest
import re
from pathlib import Path

import pytest

from deepnarrow import tasks

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tasks.md").read_text("utf-8")
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("code", CODE, ids=range(len(CODE)))
def test_code_runs(code: str) -> None:
    before = {name: tasks.get(name) for name in tasks.names()}
    space: dict = {"__name__": "docs"}
    try:
        exec(code, space)
        for value in list(space.values()):
            if getattr(value, "__module__", "") == "docs":
                for example in doctest.DocTestFinder(recurse=False).find(value, value.__name__, globs=space):
                    assert doctest.DocTestRunner().run(example).failed == 0
    finally:
        tasks.TASKS.clear()
        tasks.TASKS.update(before)


def test_tables_name_every_task() -> None:
    table = PAGE.split("## Where rows come from")[0]
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\w, ]+) \| ([\w ]+) \|$", table, re.M)
    assert sorted(name for name, _, _ in rows) == tasks.names()
    for name, metrics, baseline in rows:
        task = tasks.get(name)
        assert metrics == ", ".join(metric.name for metric in task.metrics)
        assert baseline == task.baseline.name


def test_sources_name_every_task() -> None:
    """The table of columns names each task once, and the hub's data set that it reads."""
    table = PAGE.split("## Where rows come from")[1].split("## Your own data")[0]
    named: list[str] = []
    for tasks_, hubs, _ in re.findall(r"^\| (`\w+`.*?) \| (.*?) \| (.*) \|$", table, re.M):
        here = re.findall(r"`(\w+)`", tasks_)
        named += here
        for name in here:
            for source in tasks.get(name).sources.values():
                if source.spec.startswith("hub:"):
                    dataset = re.split("[:@]", source.spec.removeprefix("hub:"))[0]
                    assert f"`{dataset}`" in hubs, name
    assert sorted(named) == tasks.names()


def test_inputs_shown_are_inputs_made() -> None:
    """Each prefix of the first table is the one of a pair's docstring."""
    table = PAGE.split("## Whose words they are")[0]
    for name, shown in re.findall(r"^\| `(\w+)` \| `([^`]*?:)", table, re.M):
        assert f"'{shown} " in str(tasks.get(name).to_pair.__doc__), name
