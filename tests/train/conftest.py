"""What tests of several processes share."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Jobs = Callable[[Path, list[dict]], list[dict]]


@pytest.fixture(scope="session")
def jobs() -> Jobs:
    """Do the jobs of a plan (ranks_at_work.py) in a folder, and say how each ended."""

    def do(folder: Path, plan: list[dict]) -> list[dict]:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "plan.json").write_text(json.dumps(plan))
        done = subprocess.run(
            [sys.executable, str(Path(__file__).parent / "ranks_at_work.py"), str(folder)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        errors = [path.read_text() for path in sorted(folder.glob("error-*.txt"))]
        assert not errors, errors[0]
        return json.loads((folder / "outcome.json").read_text())

    return do
