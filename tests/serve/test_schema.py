"""Requests that schemathesis makes from the server's own OpenAPI, over a real port: none may make the server fail."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .process import save_small, serving

CHECKS = "not_a_server_error,content_type_conformance,response_schema_conformance,status_code_conformance"


def fuzz(url: str, *, examples: int, phases: str, seconds: int, folder: Path) -> subprocess.CompletedProcess:
    """One run of schemathesis, whose files stay in `folder`."""
    command = [
        sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run", url + "/openapi.json",
        "--checks", CHECKS, "--phases", phases, "--max-examples", str(examples), "--seed", "1", "--workers", "2",
        "--generation-database", "none", "--request-timeout", "30", "--continue-on-failure", "--warnings", "off",
        "--suppress-health-check", "all", "--no-color",
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds, check=False)


@pytest.fixture(scope="module")
def small_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small(tmp_path_factory.mktemp("serve") / "small")


@pytest.fixture(scope="module")
def served(small_folder: Path) -> Iterator[str]:
    with serving([str(small_folder)], small_folder.parent / "log") as url:
        yield url


def test_schema_driven_requests_find_no_failure(served: str, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    done = fuzz(served, examples=8, phases="examples,fuzzing", seconds=120, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) generated", done.stdout)[1]) >= 50, done.stdout


@pytest.mark.slow
def test_schema_driven_requests_find_no_failure_at_length(small_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("schemathesis")
    with serving([str(small_folder)], tmp_path / "log") as url:
        done = fuzz(url, examples=150, phases="examples,coverage,fuzzing", seconds=900, folder=tmp_path)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "Traceback" not in (tmp_path / "log").read_text("utf-8")
