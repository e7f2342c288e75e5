"""docs/statistics.md: its code runs, from top to bottom, and prints what it says."""

import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "statistics.md").read_text("utf-8")


def test_code_runs_and_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```(python)?\n(.*?)```", PAGE, re.S)
    code = [text for kind, text in blocks if kind == "python"]
    (printed,) = [text for kind, text in blocks if not kind]
    assert len(code) == 3
    space: dict = {}
    for text in code:
        exec(text, space)
    assert capsys.readouterr().out == printed
