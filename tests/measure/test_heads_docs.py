"""docs/heads.md: its commands run, one behind the other, and its code."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "heads.md").read_text("utf-8")
SHORTER = {r"--steps \d+": "--steps 2 --batch 4 --input-length 64 --device cpu", r"--eval-every \d+": "--eval-every 1"}


@pytest.mark.slow  # each command reads Python's library anew
def test_commands_and_code_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = T5(parse("tiny-dm32-ff64-kv16-nh2-nl1-v384"))
    initialise(model, 0)
    save_model(model, load("bytes"), tmp_path / "runs" / "stdlib")
    (commands,) = re.findall(r"^```sh\n(.*?)^```", PAGE, flags=re.S | re.M)
    beside = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for line in commands.splitlines():
        for long, short in SHORTER.items():
            line = re.sub(long, short, line)
        done = subprocess.run(
            ["bash", "-c", line], cwd=tmp_path, env={**os.environ, "PATH": beside}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.S | re.M)
    space: dict[str, object] = {}
    exec(compile(code, "docs/heads.md", "exec"), space)
    assert [space["vectors"].shape, space["shares"].shape, len(space["found"])] == [(2, 32), (1, 8), 5]  # type: ignore[attr-defined]
