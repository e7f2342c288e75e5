"""`deepnarrow finetune` from the outside."""

import json
from pathlib import Path

import pytest

from deepnarrow.cli import main
from deepnarrow.files import read_json, read_json_lines
from deepnarrow.model.folder import open_model, save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import load

QUICK = ("--batch", "8", "--input-length", "40", "--learning-rate", "0.02", "--no-tensorboard", "--device", "cpu")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = T5(parse("tiny-dm32-ff64-kv16-nh2-nl2-v384"))
    initialise(made, 0)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(made, load("bytes"), folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 80), ("validation", 20)):
        rows = [{"sentence": f"{'good' if n % 2 else 'bad'} film {n}", "label": n % 2} for n in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(["finetune", *map(str, arguments)])
    return int(stopped.value.code or 0)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert run(*arguments) == 2
    out, error = capsys.readouterr()
    assert not out
    assert error.count("\n") == 1
    return error


def test_learns_and_marks_the_best_by_the_main_metric(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    command = (model, "--task", "sst2", "--data", data, "--out", out, "--steps", 60, "--eval-every", 20, *QUICK)
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert "accuracy 100.00" in said
    assert f"next: deepnarrow evaluate {out} --task sst2 --data {data}" in said
    rows = [row for row in read_json_lines(out / "log.jsonl") if "accuracy" in row]
    assert [row["step"] for row in rows] == [20, 40, 60]
    assert all("held_out_loss" in row for row in rows)
    best = max(rows, key=lambda row: (row["accuracy"], -row["step"]))["step"]
    assert open_model(out).origin.endswith(f"step-{best:08d}")
    assert run(*command, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["best"] == {"step": best, "metric": "accuracy", "value": 100.0}


def test_a_single_file_and_a_limit(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = (model, "--task", "sst2", "--data", data / "train.jsonl", "--out", out, "--steps", 2, *QUICK)
    assert run(*command, "--limit", 10) == 0
    found = read_json(out / "run.json")
    assert found["origin"]["pairs"] == 10
    assert read_json(out / "checkpoints.json")["best"] is None


def test_a_validation_file(model: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    files = ("--data", data / "train.jsonl", "--validation", data / "validation.jsonl")
    assert run(model, "--task", "sst2", *files, "--out", out, "--steps", 2, "--eval-every", 1, *QUICK) == 0
    assert len([row for row in read_json_lines(out / "log.jsonl") if "accuracy" in row]) == 2


def test_lengths_are_the_tasks_own_unless_given(model: Path, data: Path, tmp_path: Path) -> None:
    from deepnarrow import tasks

    out = tmp_path / "run"
    words = ("--data", data, "--out", out, "--steps", 1, "--batch", 2, "--no-tensorboard")
    assert run(model, "--task", "sst2", *words) == 0
    config = read_json(out / "run.json")["config"]
    task = tasks.get("sst2")
    assert (config["input_length"], config["target_length"]) == (task.input_tokens, task.target_tokens)


def test_mistakes_take_one_line(model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ("--out", tmp_path / "run")
    task = ("--task", "sst2", "--data", data)
    assert "did you mean" in refused(capsys, model, "--task", "sst", "--data", data, *out)
    assert "no folder" in refused(capsys, "./nowhere", *task, *out)
    assert "is a shape, which has no weights" in refused(capsys, "tiny-dl2", *task, *out)
    assert "steps must be from 1" in refused(capsys, model, *task, *out, "--steps", 0)
    assert "unknown recipe" in refused(capsys, model, *task, *out, "--recipe", "t5_efficient")
    assert "holds no dev.jsonl" in refused(capsys, model, *task, *out, "--split", "dev")
    lone = ("--task", "sst2", "--data", data / "train.jsonl")
    assert "other examples than those of" in refused(capsys, model, *lone, *out, "--eval-every", 2)
    assert not (tmp_path / "run" / "run.json").exists()
