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
    before = dict(tasks.TASKS)
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
