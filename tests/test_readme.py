"""The README tells the truth: its commands run, its table comes from the ledger, its links lead somewhere."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from .forking import Forking

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
WALK = [
    line.strip()
    for block in re.findall(r"^```sh\n(.*?)^```", README, flags=re.S | re.M)
    for line in block.splitlines()
    if line.strip()
]
TORCH = ("pretrain", "finetune", "evaluate", "compare", "errors", "bench", "export")  # verbs that import it


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """Every command of the walk through, in its order, in one empty folder; what needs no torch, in a real shell."""
    here, scratch = tmp_path_factory.mktemp("walk"), tmp_path_factory.mktemp("scratch")
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": beside, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def shell(line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", line], cwd=here, env=environment, capture_output=True, text=True)

    with Forking(environment, scratch) as run:
        split = {line: shlex.split(line) for line in WALK}
        return {
            line: run(words[1:], here) if words[0] == "deepnarrow" and words[1] in TORCH else shell(line)
            for line, words in split.items()
        }


@pytest.mark.parametrize("line", WALK)
def test_a_command_runs(walk: dict[str, subprocess.CompletedProcess[str]], line: str) -> None:
    done = walk[line]
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_the_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert set(re.findall(r"^make ([a-z-]+)", README, flags=re.M)) <= targets


def test_links_lead_to_files() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page.name} links to {link}"


def test_the_results_are_those_of_the_ledger() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "results_table.py"), "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
