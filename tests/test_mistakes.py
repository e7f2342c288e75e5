"""Mistakes a new user makes, at the real command line: each gets one line that says what to do, exit code 2, and
nothing is lost.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .forking import Forking

TINY = "tiny-dm32-ff64-nh2-kv16-nl1"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}
TEXT = "The shape of a model decides what it costs. A deep and narrow one is often worth more.\n\n" * 400


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forking]:
    with Forking(ENVIRONMENT, tmp_path_factory.mktemp("scratch")) as run:
        yield run


def pretraining(out: object, *more: object) -> list[object]:
    sizes = ["--steps", 4, "--batch", 4, "--input-length", 32, "--save-every", 2, "--no-tensorboard"]
    return ["pretrain", "--shape", TINY, "--corpus", "corpus", "--out", out, *sizes, *more]


@pytest.fixture(scope="module")
def place(run: Forking, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a text, a corpus of bytes, a trained run, and some things that are broken."""
    here = tmp_path_factory.mktemp("place")
    (here / "text.txt").write_text(TEXT)
    (here / "empty.txt").write_text("")
    (here / "latin1.txt").write_bytes("na\xefve caf\xe9\n".encode("latin-1") * 50)
    (here / "broken.jsonl").write_text('{"text": "one"}\n{"text": \n')
    for command in (
        ["corpus", "build", "text.txt", "--tokenizer", "bytes", "--out", "corpus"],
        pretraining("run"),
    ):
        done = run(command, here)
        assert done.returncode == 0, done.stderr
    checkpoint = next((here / "run" / "checkpoints").glob("step-*4"))
    shutil.copytree(checkpoint, here / "cut")
    weights = here / "cut" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return here


MISTAKES = {
    "a misspelt shape": (["shapes", "smal-el16"], "did you mean small"),
    "a misspelt edit": (["shapes", "small-ll16"], "cannot read 'll16'"),
    "an absurd size": (["shapes", "tiny-dm99999999999999"], "at most ten digits"),
    "a size no memory holds": (["shapes", "tiny-dm9999999999"], "d_model must be a whole number"),
    "a missing file": (["corpus", "build", "nowhere.txt", "--tokenizer", "bytes", "--out", "c"], "nowhere.txt"),
    "an empty corpus": (["corpus", "build", "empty.txt", "--tokenizer", "bytes", "--out", "c"], "no text"),
    "text that is not UTF-8": (["corpus", "build", "latin1.txt", "--tokenizer", "bytes", "--out", "c"], "UTF-8"),
    "a broken line": (["corpus", "build", "broken.jsonl", "--tokenizer", "bytes", "--out", "c"], "broken.jsonl:2"),
    "truncated weights": (["generate", "cut", "hello"], "model.safetensors"),
    "a vocabulary that does not fit": (
        ["pretrain", "--shape", TINY + "-v128", "--corpus", "corpus", "--out", "small"],
        "128 rows of vocabulary",
    ),
    "a corpus that is none": (["pretrain", "--shape", TINY, "--corpus", "run", "--out", "x"], "not a corpus"),
    "a missing model": (["generate", "nowhere", "hello"], "nowhere"),
    "a hub name without a network": (["generate", "google/t5-efficient-tiny", "hello"], "HF_HUB_OFFLINE is set"),
    "an empty text": (["generate", "run", ""], "empty"),
    "an unknown task": (["evaluate", "run", "--task", "sqad"], "did you mean squad"),
    "another config in the same run": (pretraining("run", "--learning-rate", 0.5), "learning_rate"),
    "a wrong flag": (["shapes", "tiny", "--input-lenght", "9"], "--input-length"),
    "a negative number": (pretraining("y", "--dropout", -1), "dropout"),
    "a study without a file": (["study", "none.toml", "--out", "s"], "no such study file"),
    "a report of nothing": (["report", "corpus"], "ledger"),
    "a card of nothing": (["card", "corpus"], "corpus"),
    "a wrong verb": (["pretrian"], "did you mean pretrain"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_loses_nothing(run: Forking, place: Path, mistake: str) -> None:
    command, says = MISTAKES[mistake]
    before = {path: path.stat().st_mtime_ns for path in (place / "run").rglob("*") if path.is_file()}
    done = run(command, place)
    assert done.returncode == 2, done.stderr
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout.strip()
    assert all(path.stat().st_mtime_ns == when for path, when in before.items() if path.name != ".lock")


def test_ctrl_c_saves_and_says_how_to_go_on(run: Forking, place: Path) -> None:
    command = pretraining("stopped", "--steps", 100_000, "--schedule", "constant")
    process = subprocess.Popen(
        [sys.executable, "-m", "deepnarrow", *map(str, command)],
        cwd=place, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(600):
        if (place / "stopped" / "checkpoints.json").exists():
            break
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "deepnarrow pretrain" in said
    again = run(pretraining("stopped", "--schedule", "constant", "--steps", 1), place)
    assert again.returncode in (0, 2)
    assert "Traceback" not in again.stderr
    assert list((place / "stopped" / "checkpoints").glob("step-*"))
