"""The architecture, held: imports run one way, the early floors need no torch, the command line does not drift."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "src" / "deepnarrow"
GROUND = {"errors", "files", "progress", "machine"}
# a floor imports only those before it
FLOORS = ["shapes", "text", "tasks", "runtime", "model", "train", "measure", "hub", "serve", "cli"]
NO_TORCH = {"shapes", "text", "tasks", "runtime"}
ORACLES = {  # for tests alone
    "transformers", "sentence_transformers", "seqeval", "peft", "sklearn", "rouge_score", "scipy", "pytest",
    "hypothesis",
}  # fmt: skip
ALLOWED = {"text/salient/taggers.py": {"transformers"}}  # optional there: a user's own tagging model, loaded by name
MODULES = sorted(PACKAGE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Every module a file imports, also inside its functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def floor_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_one_way(path: Path) -> None:
    here = floor_of(path)
    for name in imported(path):
        if not name.startswith("deepnarrow."):
            continue
        there = name.split(".")[1]
        if there in GROUND or there == "__version__" or here in ("__main__", "__init__"):
            continue
        assert here not in GROUND, f"{path.name} is ground: it may not import the floor {there}"
        assert FLOORS.index(there) <= FLOORS.index(here), (
            f"floor {here} may not import the later floor {there} ({name})"
        )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_early_floors_need_no_torch_and_the_product_no_oracle(path: Path) -> None:
    roots = {name.split(".")[0] for name in imported(path)}
    assert not roots & (ORACLES - ALLOWED.get(path.relative_to(PACKAGE).as_posix(), set()))
    if floor_of(path) in NO_TORCH | GROUND:
        assert "torch" not in roots


def test_no_file_without_a_subject() -> None:
    names = {path.stem for path in MODULES}
    assert not names & {"utils", "util", "common", "misc", "helpers", "base", "core"}


def test_every_public_name_exists() -> None:
    script = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    module = importlib.import_module(name)\n"
        "    for public in getattr(module, '__all__', []):\n"
        "        assert hasattr(module, public), (name, public)\n"
    )
    subprocess.run([sys.executable, "-c", script, *(f"deepnarrow.{floor}" for floor in FLOORS)], check=True)


def verbs() -> list[str]:
    from deepnarrow.cli.app import VERBS

    return list(VERBS)


def flags(command: object, name: str) -> dict[str, list[str]]:
    """Every command with the options and arguments it takes."""
    inner = getattr(command, "commands", None)
    if inner:
        return {key: value for sub in inner for key, value in flags(inner[sub], f"{name} {sub}").items()}
    return {name: sorted({option for parameter in command.params for option in parameter.opts})}  # type: ignore[attr-defined]


def test_the_command_line_is_the_written_one() -> None:
    """A new flag is a decision: write it into tests/cli/flags.json too (run this file as a script to do so)."""
    assert json.loads((ROOT / "tests/cli/flags.json").read_text()) == command_line()


def command_line() -> dict[str, list[str]]:
    from importlib import import_module

    import typer

    found: dict[str, list[str]] = {}
    for verb in verbs():
        found |= flags(typer.main.get_command(import_module(f"deepnarrow.cli.{verb}").app), verb)
    return found


@pytest.mark.parametrize("verb", verbs())
def test_help_is_quick_and_shows_an_example(verb: str) -> None:
    script = (
        "import sys; from deepnarrow.cli import main\n"
        f"try: main(['{verb}', '--help'])\n"
        "finally: print('torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env={**os.environ, "COLUMNS": "100"}
    )
    assert done.returncode == 0, done.stderr
    assert "Example" in done.stdout
    assert done.stdout.rstrip().endswith("False"), "help must not import torch"


def test_a_wrong_verb_teaches() -> None:
    done = subprocess.run([sys.executable, "-m", "deepnarrow", "pretran"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean pretrain" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_the_project_speaks_of_itself_alone() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".txt", ".jsonl", ".html", ""}
            and path.is_file()
            and path != Path(__file__)
        ):
            found = re.search(r"/(work|root|tmp)/[a-z]|/opt/wheels", path.read_text("utf-8", errors="ignore"))
            assert not found, f"{name} names a path of one machine: {found[0] if found else ''}"


if __name__ == "__main__":
    (ROOT / "tests/cli/flags.json").write_text(json.dumps(command_line(), indent=1, sort_keys=True) + "\n")
