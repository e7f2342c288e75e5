"""A study from raw text to a ledger, broken off and gone on with, on real prose with real parts."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from deepnarrow.cli import main
from deepnarrow.errors import UserError
from deepnarrow.files import read_json
from deepnarrow.measure.ledger import identity, read
from deepnarrow.measure.study import run_study
from deepnarrow.measure.study_spec import read_study
from deepnarrow.text import builtin

SPEC = """
name = "two shapes"
shapes = ["tiny-dm32-ff64-nh2-kv16-nl1", "tiny-dm16-ff32-nh2-kv8-nl3"]
[corpus]
sources = ["PROSE"]
vocab = 512
[pretrain]
steps = 6
batch = 4
input_length = 64
save_every = 2
[[tasks]]
name = "stdlib_topic"
split = "test"
items = 24
steps = 3
batch = 4
input_length = 32
[bench]
input_length = 16
target_length = 4
repeats = 2
"""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    prose = folder / "prose.txt"  # a twentieth of the built-in text: of all of it a small vocabulary takes long
    prose.write_text("\n\n".join(text for text, _ in islice(builtin.documents(), 0, None, 20)), "utf-8")
    path = folder / "study.toml"
    path.write_text(SPEC.replace("PROSE", str(prose)))
    return path


@pytest.fixture(scope="module")
def finished(spec: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study that was interrupted once while it pretrained, and then ran to its end."""
    out = tmp_path_factory.mktemp("out") / "study"
    words = ["study", str(spec), "--out", str(out)]
    command = [sys.executable, "-m", "deepnarrow", *words]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    for _ in range(600):
        if any(out.glob("runs/*/seed-0/pretrain/checkpoints/step-*")):
            break
        time.sleep(0.1)
    first.send_signal(signal.SIGINT)
    _, said = first.communicate(timeout=60)
    assert first.returncode == 130, said
    assert "Traceback" not in said
    assert "run the same command again to go on" in said.splitlines()[-1]
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 0
    return out


def test_every_number_is_there_once_with_its_record(finished: Path) -> None:
    records = read(finished / "ledger.jsonl")
    assert set(Counter(identity(one) for one in records).values()) == {1}
    shapes = {one.shape for one in records}
    assert shapes == {"tiny-dm32-ff64-kv16-nh2-nl1-v512", "tiny-dm16-ff32-kv8-nh2-nl3-v512"}
    for shape in shapes:
        kinds = {one.kind for one in records if one.shape == shape}
        assert kinds == {"training", "score", "timing"}
    scores = [one for one in records if one.kind == "score"]
    for one in scores:
        assert one.low is not None
        assert one.value is not None
        assert one.low <= one.value <= one.high
        assert one.n == 24
        assert one.date
        assert one.versions["torch"]
        assert (finished / one.model / "run.json").is_file()


def test_predictions_report_and_cards_are_written(finished: Path) -> None:
    assert len(list(finished.glob("predictions/*/seed-0/stdlib_topic.jsonl"))) == 2
    page = (finished / "report.html").read_text()
    assert "tiny-dm32-ff64-kv16-nh2-nl1" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert list((finished / "cards").glob("*.md"))


def test_starting_a_finished_study_again_measures_nothing_new(spec: Path, finished: Path) -> None:
    before = (finished / "ledger.jsonl").read_bytes()
    said: list[str] = []
    run_study(read_study(spec), finished, say=said.append)
    assert (finished / "ledger.jsonl").read_bytes() == before
    assert said == []


def test_another_protocol_in_the_same_folder_is_refused(spec: Path, finished: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(spec.read_text().replace("steps = 6", "steps = 7"))
    with pytest.raises(UserError, match="another pretrain"):
        run_study(read_study(other), finished)
    assert read_json(finished / "study.json")["pretrain"]["steps"] == 6


def test_a_folder_with_something_else_in_it_is_left_alone(spec: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        run_study(read_study(spec), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
