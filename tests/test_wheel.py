"""The wheel, built from what the source distribution would hold, installed where neither torch nor a compiler is."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from deepnarrow.hub.native import to_native
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text import tokenizer

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "src")
NEEDED = ("numpy", "tokenizers", "sentencepiece", "typer", "safetensors", "rich")  # to generate without torch
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")

pytestmark = pytest.mark.slow


def run(*command: object, **others: str) -> str:
    environment = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, env=environment | others, cwd="/")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def copied(folder: Path) -> Path:
    """The sources alone: what an earlier build left beside them would go into the wheel too."""
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info", "*.pyc", "*.so"))
        else:
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    return folder


def built(folder: Path, out: Path, **others: str) -> Path:
    run(sys.executable, *PIP, "wheel", "--no-deps", "--wheel-dir", out, folder, **others)
    [wheel] = out.glob("*.whl")
    return wheel


def test_without_a_compiler_there_is_a_wheel_for_any_machine(tmp_path: Path) -> None:
    wheel = built(copied(tmp_path / "source"), tmp_path / "wheel", CXX="no-such-compiler")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


def test_a_wheel_generates_where_neither_torch_nor_a_compiler_is(tmp_path: Path) -> None:
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        pytest.skip("no compiler")
    wheel = built(copied(tmp_path / "source"), tmp_path / "wheel")
    names = zipfile.ZipFile(wheel).namelist()
    assert re.search(r"-py3-none-(linux|macosx)_\w+\.whl$", wheel.name)
    assert "deepnarrow/runtime/_native.so" in names
    assert not [name for name in names if name.startswith("deepnarrow/runtime/native/")]

    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v384-untied"))  # one that writes letters, always the same ones
    initialise(model, seed=4)
    with torch.no_grad():
        model.output.weight *= 4
        model.output.weight[:100] = 0
        model.output.weight[126:] = 0
    save_model(model, tokenizer.load("bytes"), tmp_path / "model")
    to_native(open_model(tmp_path / "model"), tmp_path / "native", precision="int8")
    asked = ("generate", tmp_path / "native", "What comes after?", "--max-tokens", "12")
    expected = run(sys.executable, "-m", "deepnarrow", *asked)
    assert len(expected.strip()) > 5

    clean = tmp_path / "clean"
    run(sys.executable, "-m", "venv", clean)
    python = clean / "bin" / "python"
    run(python, *PIP, "install", "--no-deps", wheel)
    run(python, *PIP, "install", "-c", ROOT / "constraints.txt", *NEEDED)
    without = {"PATH": str(clean / "bin"), "DEEPNARROW_CACHE": str(tmp_path / "cache")}
    assert run(python, "-c", "import importlib.util as u; print(u.find_spec('torch'))").strip() == "None"
    assert "agree in float32, bfloat16, int8" in (said := run(python, ROOT / "tests" / "installed.py", **without))
    assert said.startswith(str(clean))
    assert run(clean / "bin" / "deepnarrow", *asked, **without) == expected
