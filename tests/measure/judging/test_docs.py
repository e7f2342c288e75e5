"""docs/evaluation.md says what the code does: its numbers, its flags, its files."""

import json
import re
from pathlib import Path

from deepnarrow.cli.errors import MATRIX
from deepnarrow.measure.evaluate import LENGTH_PENALTY, Prediction
from deepnarrow.measure.judging.kept import PREDICTIONS, SCORES
from deepnarrow.model.inference import BUDGET, PIECE
from deepnarrow.text.overlap import RUN

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "evaluation.md").read_text("utf-8")


def test_its_numbers_are_the_codes() -> None:
    for said in (
        f"batches of {BUDGET['cpu']:,} input tokens ({BUDGET['cuda']:,} on a GPU", f"pieces of {PIECE:,} tokens",
        f"runs of {RUN} words", f"length penalty {LENGTH_PENALTY}",
    ):  # fmt: skip
        assert said in TEXT, said
    assert MATRIX == 20
    assert "beyond twenty labels" in TEXT


def test_its_flags_exist() -> None:
    flags = json.loads((ROOT / "tests" / "cli" / "flags.json").read_text())
    known = {flag for verb in ("evaluate", "compare", "errors", "corpus overlap") for flag in flags[verb]}
    assert set(re.findall(r"--[a-z][a-z-0-9]*", TEXT)) <= known


def test_its_files_and_fields_are_those_written() -> None:
    assert SCORES in TEXT
    listed = re.search(rf"{PREDICTIONS} +(.*), \.\.\.", TEXT)
    assert listed
    assert set(listed[1].split(", ")) <= set(Prediction.__dataclass_fields__)
