"""`deepnarrow pretrain` from the outside."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deepnarrow.cli import main
from deepnarrow.files import read_json
from deepnarrow.text.building import build
from deepnarrow.text.tokenizer import load

SHAPE = "tiny-dm32-ff64-kv16-nh2-nl2"
QUICK = ("--batch", "4", "--input-length", "64", "--no-tensorboard", "--device", "cpu")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    rows = [{"text": f"the cat number {n} sat on the mat and saw {n * n} dogs. "} for n in range(800)]
    (folder / "text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    build([folder / "text.jsonl"], load("bytes"), folder / "corpus", held_out=0.05)
    return folder / "corpus"


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["pretrain", *map(str, arguments)])
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    return error


def test_says_what_it_does_and_what_is_next(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "run"
    assert run("--shape", SHAPE, "--corpus", corpus, "--out", out, "--steps", 10, *QUICK) == 0
    said, told = capsys.readouterr()
    assert "the vocabulary gets 384 rows, for the 384 ids of the corpus" in told
    assert "from step 0 to 10, 4 x 64 tokens in, adafactor, linear 0.03" in told
    assert said.splitlines()[0].startswith(f"{out}: {SHAPE}-v384, step 10: loss ")
    assert "held-out loss" in said
    assert f"next: deepnarrow finetune {out} --task TASK" in said


def test_json_and_going_on(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = (
        "--shape",
        SHAPE,
        "--corpus",
        corpus,
        "--out",
        tmp_path / "run",
        "--schedule",
        "constant",
        "--json",
        *QUICK,
    )
    assert run(*command, "--steps", 10) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["step"], first["shape"]) == (10, f"{SHAPE}-v384")
    assert set(first) >= {"run", "checkpoint", "loss", "held_out_loss", "scores", "tokens_per_second", "best"}
    assert run(*command, "--steps", 40) == 0  # the recipe's warmup would differ; a prolonged run keeps its own
    assert json.loads(capsys.readouterr().out)["step"] == 40
    assert run(*command, "--steps", 40) == 0
    said, told = capsys.readouterr()
    assert json.loads(said)["step"] == 40
    assert "all 40 steps are done" in told


def test_flags_reach_the_config(corpus: Path, tmp_path: Path) -> None:
    flags = {
        "--steps": 3, "--batch": 6, "--accumulate": 3, "--input-length": 48, "--density": 0.2, "--mean-span": 2,
        "--optimizer": "adamw_scale", "--learning-rate": 0.003, "--schedule": "cosine", "--warmup": 1, "--clip": 0.5,
        "--weight-decay": 0.1, "--dropout": 0.2, "--z-loss": 0.001, "--normaliser": "positions", "--dtype": "bfloat16",
        "--seed": 7, "--save-every": 2, "--keep": 3, "--eval-every": 2, "--eval-examples": 4, "--log-every": 1,
    }  # fmt: skip
    words = [word for pair in flags.items() for word in pair]
    assert run("--shape", SHAPE, "--corpus", corpus, "--out", tmp_path / "run", "--no-tensorboard", *words) == 0
    config = read_json(tmp_path / "run" / "run.json")["config"]
    assert {name: config[name.strip("-").replace("-", "_")] for name in flags} == flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--shape", "smal"), "did you mean small"),
        ((), "name a shape"),
        (("--shape", SHAPE, "--recipe", "minature"), "did you mean miniature"),
        (("--shape", SHAPE, "--steps", "0"), "steps must be from 1"),
        (("--shape", SHAPE, "--learning-rate", "-1"), "learning_rate must be"),
        (("--shape", SHAPE, "--batch", "1000000000"), "batch must be from 1"),
        (("--shape", SHAPE, "--schedule", "cosin"), "did you mean cosine"),
        (("--shape", SHAPE, "--dtype", "float16"), "unknown dtype 'float16'"),
        (("--shape", f"{SHAPE}-v128", "--steps", "2"), "has 128 rows of vocabulary"),
        (("--shape", SHAPE, "--input-length", "100000"), "the vocabulary has 125 sentinels"),
        (("--shape", SHAPE, "--device", "tpu"), "unknown device 'tpu'"),
        (("--shape", SHAPE, "--init-from", "nowhere/at/all"), "no folder nowhere/at/all"),
    ],
)
def test_mistakes_take_one_line(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    assert message in refused(capsys, "--corpus", corpus, "--out", tmp_path / "run", *arguments)
    assert not (tmp_path / "run" / "run.json").exists()


def test_another_config_takes_one_line(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ("--shape", SHAPE, "--corpus", corpus, "--out", tmp_path / "run", "--steps", 4, *QUICK)
    assert run(*command) == 0
    capsys.readouterr()
    assert "dropout (was 0.0, now 0.3)" in refused(capsys, *command, "--dropout", 0.3)
    assert "schedule was laid out for them" in refused(capsys, *command, "--steps", 8, "--warmup", 0)


def start(*arguments: object) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "deepnarrow", *map(str, arguments)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_interrupt_saves_and_the_printed_command_goes_on(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "a run"
    process = start("pretrain", "--shape", SHAPE, "--corpus", corpus, "--out", out, "--steps", 20_000, *QUICK)
    deadline = time.monotonic() + 60
    while not (out / "log.jsonl").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "finishing this step, then saving" in told
    assert not said
    command = shlex.split(told.strip().splitlines()[-1])
    assert command[:2] == ["deepnarrow", "pretrain"]
    assert str(out) in command
    marks = read_json(out / "checkpoints.json")
    again = start(*command[1:], "--json")
    time.sleep(0.1)
    while f"going on from step {int(marks['last'].split('-')[1])}" not in (line := again.stderr.readline()):
        assert line, "ended without going on"
    again.send_signal(signal.SIGTERM)
    said, told = again.communicate(timeout=60)
    assert again.returncode == 130, told
