"""`deepnarrow evaluate` from the outside: tables, JSON, files, and one line for each mistake."""

import json
import re
from pathlib import Path

import pytest

from deepnarrow.cli import main
from deepnarrow.measure.ledger import read
from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import ByteTokenizer

SHAPE = "tiny-nl1-dm32-ff64-nh2-kv16-v384"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder that has learned nothing."""
    path = tmp_path_factory.mktemp("model") / "blank"
    model = T5(parse(SHAPE))
    initialise(model, seed=0)
    save_model(model, ByteTokenizer(), path)
    return path


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations of a model that is no run are kept below the current folder."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A folder with a split of SST-2 and one of NQ."""
    reviews = [{"sentence": f"film {n}", "label": int(n % 3 > 0)} for n in range(9)] + [{"sentence": "?", "label": -1}]
    questions = [{"question": f"what is {n}" + "?" * 9 * n, "answers": [str(n)]} for n in range(9)]
    (tmp_path / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in reviews))
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in questions))
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    assert stopped.value.code == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    return error


def ended(*arguments: str) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", *arguments])
    assert not stopped.value.code


def test_a_table_for_people(folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(str(folder), "--task", "sst2", "--data", str(rows))
    out = capsys.readouterr().out
    assert re.search(r"metric\s+score\s+95 % interval\s+n\s+commonest label", out)
    assert re.search(r"accuracy\s+\d+\.\d\d\s+\d+\.\d\d to \d+\.\d\d\s+9\s+66\.67", out)
    assert "validation.jsonl (sha256" in out
    assert "rows without an answer, left out: 1" in out
    assert "likelihood" in out


def test_json_for_programs(folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(str(folder), "--task", "nq_open", "--data", str(rows), "--split", "test", "--json", "--batch", "4")
    found = json.loads(capsys.readouterr().out)
    assert set(found["scores"]) == {"exact_match", "token_f1"}
    score = found["scores"]["exact_match"]
    assert score["low"] <= score["value"] <= score["high"]
    assert score["baseline"] == pytest.approx(100 / 9)
    assert (found["task"], found["split"], found["n"], found["shape"]) == ("nq_open", "test", 9, str(parse(SHAPE)))
    assert found["truncated"] == 4
    assert found["model"] == str(folder)


def test_predictions_and_ledger(folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, ledger = tmp_path / "out.jsonl", tmp_path / "ledger.jsonl"
    common = [str(folder), "--task", "nq_open", "--data", str(rows / "test.jsonl"), "--ledger", str(ledger)]
    ended(*common, "--out", str(out))
    assert str(out) in capsys.readouterr().out
    ended(*common, "--limit", "4", "--beam", "2", "--json")
    predictions = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    assert [one["accepted"] for one in predictions] == [[str(n)] for n in range(9)]
    records = read(ledger)
    assert [(one.metric, one.n, dict(one.conditions)) for one in records] == [
        ("exact_match", 9, {}), ("token_f1", 9, {}),
        ("exact_match", 4, {"limit": 4, "beam": 2}), ("token_f1", 4, {"limit": 4, "beam": 2}),
    ]  # fmt: skip
    assert records[0].shape == str(parse(SHAPE))
    assert records[0].parameters == sum(weight.numel() for weight in T5(parse(SHAPE)).parameters())
    assert "sha256" in records[0].extra["data"]


def test_bfloat16_runs(folder: Path, rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ended(str(folder), "--task", "sst2", "--data", str(rows), "--dtype", "bfloat16", "--device", "cpu", "--json")
    assert json.loads(capsys.readouterr().out)["n"] == 9


def test_the_list(capsys: pytest.CaptureFixture[str]) -> None:
    ended("--list")
    out = capsys.readouterr().out
    for name in ("nq_open", "squad", "sst2", "cola", "xsum", "stdlib_topic", "stdlib_summary"):
        assert name in out
    ended("--list", "--json")
    found = {task["name"]: task for task in json.loads(capsys.readouterr().out)}
    assert found["cola"]["labels"] == ["unacceptable", "acceptable"]
    assert found["squad"]["splits"]["train"] == "hub:rajpurkar/squad:train"


def test_mistakes(folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = str(folder), ["--data", str(rows)]
    assert "name a model and a task" in refused(capsys)
    assert "was not fine-tuned on a task here" in refused(capsys, model)
    assert "did you mean squad" in refused(capsys, model, "--task", "sqaud")
    assert "holds no dev.jsonl" in refused(capsys, model, "--task", "sst2", "--split", "dev", *data)
    assert "no folder" in refused(capsys, str(tmp_path / "absent"), "--task", "sst2", *data)
    assert "drop --beam" in refused(capsys, model, "--task", "sst2", "--beam", "2", *data)
    assert "at least 1" in refused(capsys, model, "--task", "nq_open", "--split", "test", "--beam", "0", *data)
    assert "batch" in refused(capsys, model, "--task", "sst2", "--batch", "0", *data)
    assert "limit" in refused(capsys, model, "--task", "sst2", "--limit", "0", *data)
    assert "column answers or answer" in refused(capsys, model, "--task", "nq_open", *data)
    assert "unknown device" in refused(capsys, model, "--task", "sst2", "--device", "gpu", *data)
