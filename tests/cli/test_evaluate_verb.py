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
from deepnarrow.runtime.native import NotBuiltError, usable
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import ByteTokenizer

SHAPE = "tiny-nl1-dm32-ff64-nh2-kv16-v384"
RUNTIMES = ("native", "torch")
built = pytest.mark.skipif(not usable(), reason="needs the native library, which was not built here")


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


def answers(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text("utf-8").splitlines()]


def scored(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict:
    ended(*arguments, "--json")
    return json.loads(capsys.readouterr().out)


@built
@pytest.mark.parametrize("how", [(), ("--beam", "3"), ("--likelihood",)], ids=["greedy", "beam", "likelihood"])
@pytest.mark.parametrize("task", ["nq_open", "sst2"])
def test_the_native_runtime_answers_as_pytorch(
    folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], task: str, how: tuple[str, ...]
) -> None:
    if task == "sst2" and "--beam" in how:
        how = (*how, "--as-t5")
    split = "test" if task == "nq_open" else "validation"
    common = (str(folder), "--task", task, "--data", str(rows), "--split", split, "--device", "cpu", *how)
    ours, theirs = (
        scored(capsys, *common, "--runtime", runtime, "--out", str(tmp_path / runtime)) for runtime in RUNTIMES
    )
    assert ours["runtime"].startswith("native float32 ")
    assert theirs["runtime"] == "torch float32 cpu"
    differ = {"runtime", "kept", "seconds", "more"}
    assert {name: ours[name] for name in {*ours} - differ} == {name: theirs[name] for name in {*theirs} - differ}
    for mine, wanted in zip(answers(Path(ours["kept"])), answers(Path(theirs["kept"])), strict=True):
        assert mine["prediction"] == wanted["prediction"]
        assert mine == {
            name: {label: pytest.approx(share, abs=1e-4) for label, share in value.items()}
            if name == "probabilities"
            else pytest.approx(value, abs=1e-3)
            if isinstance(value, float)
            else value
            for name, value in wanted.items()
        }


@built
def test_which_runtime_answered_is_kept_and_heeded(
    folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    common = (str(folder), "--task", "sst2", "--data", str(rows), "--device", "cpu")
    by_itself = scored(capsys, *common, "--ledger", str(tmp_path / "ledger.jsonl"))
    assert by_itself["runtime"].startswith("native float32 ")
    about = json.loads((Path(by_itself["kept"]) / "scores.json").read_text())
    [record] = read(tmp_path / "ledger.jsonl")
    assert about["runtime"] == record.extra["runtime"] == by_itself["runtime"]
    assert about["dtype"] == record.extra["dtype"] == "float32"
    parameters = sum(weight.numel() for weight in T5(parse(SHAPE)).parameters())
    assert about["model"]["parameters"] == parameters

    assert scored(capsys, *common, "--runtime", "native")["reused"]
    assert not scored(capsys, *common, "--runtime", "torch")["reused"]  # it was asked for by name
    again = scored(capsys, *common)
    assert (again["reused"], again["runtime"]) == (True, "torch float32 cpu")  # either will do

    small = scored(capsys, *common, "--dtype", "int8", "--ledger", str(tmp_path / "ledger.jsonl"))
    assert small["runtime"].startswith("native int8 ")
    assert Path(small["kept"]).name == "sst2.validation.native-int8"
    assert dict(read(tmp_path / "ledger.jsonl")[-1].conditions) == {"dtype": "native int8"}
    wide = scored(capsys, *common, "--dtype", "bfloat16")
    assert wide["runtime"] == "torch bfloat16 cpu"  # where the runtimes may differ, only as asked for
    wide = scored(capsys, *common, "--dtype", "bfloat16", "--runtime", "native")
    assert (wide["reused"], wide["runtime"].split()[:2]) == (False, ["native", "bfloat16"])


@built
def test_a_converted_folder_is_judged_as_it_will_answer(
    folder: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "small"
    with pytest.raises(SystemExit):
        main(["export", str(folder), "--to", "native", "--precision", "int8", "--out", str(out)])
    capsys.readouterr()
    common = (str(out), "--task", "sst2", "--data", str(rows))
    assert scored(capsys, *common)["runtime"].startswith("native int8 ")
    assert scored(capsys, *common, "--runtime", "torch")["runtime"].startswith("torch float32 ")
    assert "was converted to int8" in refused(capsys, *common, "--runtime", "native", "--dtype", "float32")
    ended(*common, "--check-batch", "--runtime", "native")


def test_without_the_library_pytorch_judges_and_one_line_says_so(
    folder: Path, rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise NotBuiltError("it was not built")

    monkeypatch.setattr("deepnarrow.runtime.native.library", missing)
    common = (str(folder), "--task", "sst2", "--data", str(rows), "--device", "cpu")
    ended(*common, "--json")
    out, err = capsys.readouterr()
    assert json.loads(out)["runtime"] == "torch float32 cpu"
    assert err == "deepnarrow: evaluating with PyTorch, since the native runtime is not there: it was not built\n"
    assert "the native runtime is not there" in refused(capsys, *common, "--runtime", "native")


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
    assert "did you mean native" in refused(capsys, model, "--task", "sst2", "--runtime", "nativ", *data)
    assert "int8 is a precision of the native runtime" in refused(
        capsys, model, "--task", "sst2", "--runtime", "torch", "--dtype", "int8", *data
    )
    assert "a corpus is predicted by PyTorch" in refused(capsys, model, "--corpus", model, "--runtime", "native")
    assert "unknown device" in refused(capsys, model, "--task", "sst2", "--device", "gpu", *data)
