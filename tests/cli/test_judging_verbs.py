"""`evaluate`, `compare`, `errors` and `corpus overlap` from the outside: from a fine-tuned run to a verdict."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.tokenizer import ByteTokenizer

SHAPE = "tiny-nl1-dm32-ff64-nh2-kv16-v384"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`mine` (a folder of own data), two seeds fine-tuned on it in `seeds`, one short run in `short`; and `blank`."""
    here = tmp_path_factory.mktemp("place")
    model = T5(parse(SHAPE))
    initialise(model, seed=0)
    save_model(model, ByteTokenizer(), here / "blank")
    (here / "mine").mkdir()
    for split, start in (("train", 0), ("validation", 200)):
        rows = [
            {"input": f"{'red' if n % 2 else 'blue'} box number {n} stands in the far corner of the old yard today",
             "target": "hot" if n % 2 else "cold"}
            for n in range(start, start + 60)
        ]  # fmt: skip
        (here / "mine" / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sizes = ["--batch", "8", "--no-tensorboard", "--device", "cpu", "--dropout", "0", "--learning-rate", "0.003"]
    common = ["finetune", str(here / "blank"), "--task", str(here / "mine"), *sizes]
    for more in (["--out", str(here / "seeds"), "--seeds", "2", "--steps", "25"],
                 ["--out", str(here / "short"), "--steps", "1"]):  # fmt: skip
        with pytest.raises(SystemExit) as stopped:
            main([*common, *more])
        assert not stopped.value.code
    return here


@pytest.fixture
def run(place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(place)
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        out, error = capsys.readouterr()
        return int(stopped.value.code or 0), out, error

    return call


def as_json(run: Run, *arguments: object) -> Any:
    code, out, error = run(*arguments, "--json")
    assert code == 0, error
    return json.loads(out)


def refused(run: Run, *arguments: object) -> str:
    code, out, error = run(*arguments)
    assert (code, out) == (2, "")
    assert error.count("\n") == 1
    return error


def test_a_run_of_own_data_is_evaluated_without_a_task(run: Run, place: Path) -> None:
    found = as_json(run, "evaluate", "seeds/seed-0", "--again")
    assert (found["task"], found["n"], found["split"], found["reused"]) == ("mine", 60, "validation", False)
    assert set(found["scores"]) == {"accuracy", "macro_f1"}
    assert set(found["more"]) == {"gold_probability", "ece"}
    assert (place / found["kept"] / "predictions.jsonl").is_file()
    assert as_json(run, "evaluate", "seeds/seed-0")["reused"]
    code, out, _ = run("evaluate", "seeds/seed-0")
    assert code == 0
    assert "--again evaluates anew" in out
    assert re.search(r"accuracy\s+\d+\.\d\d\s+\d+\.\d\d to \d+\.\d\d\s+60\s+50\.00", out)
    assert re.search(r"gold probability\s+\d", out)
    more = as_json(run, "evaluate", "seeds/seed-0", "--likelihood", "--as-t5")["more"]
    assert set(more) == {"perplexity", "bits_per_byte"}


def test_where_an_evaluation_is_kept(run: Run, place: Path) -> None:
    found = as_json(run, "evaluate", "short", "--out", "elsewhere", "--limit", 20)
    assert found["kept"] == "elsewhere/mine.validation.limit-20"
    assert found["n"] == 20
    as_json(run, "evaluate", "short", "--out", "only.jsonl")
    assert len((place / "only.jsonl").read_text().splitlines()) == 60


def test_compare_runs_seeds_and_kept_evaluations(run: Run, place: Path) -> None:
    found = as_json(run, "compare", "seeds", "short", "blank", "--metric", "macro_f1")
    assert [(one["name"], one["seeds"]) for one in found["systems"]] == [("seeds", 2), ("short", 1), ("blank", 1)]
    assert len(found["comparisons"]) == 3
    assert found["metric"] == "macro_f1"
    code, out, _ = run("compare", "seeds", "short")
    assert code == 0
    assert "commonest label" in out
    assert re.search(r"(beats|not distinguishable|score the same).* on mine accuracy", out)
    kept = place / "short" / "evaluations" / "mine.validation"
    same = as_json(run, "compare", "seeds/seed-0", kept)
    assert same["systems"][1]["value"] == pytest.approx(
        as_json(run, "evaluate", "short")["scores"]["accuracy"]["value"]
    )
    alone = as_json(run, "compare", "seeds")
    assert alone["comparisons"] == []


def test_compare_mistakes(run: Run, place: Path) -> None:
    as_json(run, "evaluate", "short", "--limit", 10)
    few = place / "short" / "evaluations" / "mine.validation.limit-10"
    as_json(run, "evaluate", "seeds/seed-1")
    full = place / "seeds" / "seed-1" / "evaluations" / "mine.validation"
    assert "different items (10 and 60 items" in refused(run, "compare", few, full)
    assert "named twice" in refused(run, "compare", "short", "short/")
    assert "name one with --task" in refused(run, "compare", "blank", "short")
    assert "no folder" in refused(run, "compare", "./absent", "short")
    assert "did you mean accuracy" in refused(run, "compare", "short", "seeds", "--metric", "acuracy")
    assert "drop --task" in refused(run, "compare", full, "--task", "sst2")
    assert "unknown suite" in refused(run, "compare", "short", "--suite", "gleu")
    assert "not both" in refused(run, "compare", "short", "--suite", "glue", "--task", "sst2")


@pytest.mark.parametrize("columns", ["80", "120"])
def test_errors_for_people(run: Run, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    code, out, _ = run("errors", "short", "--n", 2)
    assert code == 0
    assert max(map(len, out.splitlines())) <= max(int(columns), 100)
    assert "by input length" in out or "tokens" in out
    assert re.search(r"1 cold\s+\d+", out) or re.search(r"1 cold\s+\.", out)
    assert len(re.findall(r"^item \d+", out, re.MULTILINE)) == 2
    assert "\x1b" not in out


def test_errors_for_programs(run: Run) -> None:
    found = as_json(run, "errors", "short", "--n", 3)
    assert sum(map(sum, found["confusion"]["rows_are_true"])) == found["n"] == 60
    assert len(found["worst"]) == 3
    assert found["worst"][0]["score"] == 0
    assert sum(part["n"] for part in found["by_length"]) == 60
    kept = as_json(run, "errors", found["kept"], "--n", 3)
    assert kept["worst"] == found["worst"]


def test_errors_mistakes(run: Run) -> None:
    assert "name one of them" in refused(run, "errors", "seeds")
    assert "name one with --task" in refused(run, "errors", "blank")


def test_the_batch_check(run: Run) -> None:
    code, out, _ = run("evaluate", "short", "--check-batch", "--limit", 12)
    assert code == 0
    assert "the 12 answers do not depend on the batch" in out
    assert as_json(run, "evaluate", "short", "--check-batch", "--limit", 12)["differing"] == 0


def test_a_batch_that_decides_ends_with_1(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from deepnarrow.measure.answerer import ByTorch

    honest = ByTorch.rank

    def moody(model: Any, rows: list, choices: list, *, batch: int | None, progress: bool) -> Any:
        found = honest(model, rows, choices, batch=batch, progress=progress)
        return found if batch == 1 else found[:, ::-1]

    monkeypatch.setattr(ByTorch, "rank", moody)
    code, out, _ = run("evaluate", "short", "--check-batch", "--limit", 12, "--runtime", "torch")
    assert code == 1
    assert "12 of 12 answers depend on the batch" in out


def test_overlap_and_the_score_without_it(run: Run, place: Path) -> None:
    rows = [json.loads(line) for line in (place / "mine" / "validation.jsonl").read_text().splitlines()]
    (place / "corpus.txt").write_text("\n\n".join(row["input"] for row in rows[:15]))
    task = ["--task", "mine", "--data", "mine/validation.jsonl"]
    found = as_json(run, "corpus", "overlap", "corpus.txt", "--task", "mine", "--n", 8, "--out", "dirty.json")
    assert (found["overlapping"], found["items"], found["documents"]) == (60, 60, 1)  # the yard is in all of them
    found = as_json(run, "corpus", "overlap", "corpus.txt", "--task", "mine", "--out", "dirty.json")
    assert sorted(one["number"] for one in found["found"]) == list(range(15))
    assert run("corpus", "build", "corpus.txt", "--tokenizer", "bytes", "--out", "built")[0] == 0
    assert as_json(run, "corpus", "overlap", "built", "--task", "mine")["overlapping"] == 15
    code, out, _ = run("corpus", "overlap", "corpus.txt", "--task", "mine", "--show", 2)
    assert code == 0
    assert "15 of 60 items (25.0 %) share a run" in out
    assert "and 13 more" in out
    clean = as_json(run, "evaluate", "short", "--without", "dirty.json")
    assert clean["without"]["accuracy"]["n"] == 45
    code, out, _ = run("evaluate", "short", "--without", "dirty.json")
    assert re.search(r"without those\s+\d+\.\d\d\s+\d+\.\d\d to \d+\.\d\d\s+45", out)
    assert "other items" in refused(run, "evaluate", "short", "--limit", "9", "--without", "dirty.json")
    assert "should end in .json" in refused(run, "corpus", "overlap", "corpus.txt", "--task", "mine", "--out", "x")
    assert "no such file or folder" in refused(run, "corpus", "overlap", "nowhere", *task)


def test_a_mixture_is_scored_task_by_task(run: Run, place: Path) -> None:
    """A run of two tasks: each has its table, and `errors` asks for one of them."""
    shutil.copytree(place / "short", place / "two", dirs_exist_ok=True)
    shutil.rmtree(place / "two" / "evaluations", ignore_errors=True)
    record = json.loads((place / "two" / "run.json").read_text())
    record["origin"] |= {"task": ["sst2", "nq_open"], "task_spec": [None, None]}
    (place / "two" / "run.json").write_text(json.dumps(record))
    (place / "data").mkdir(exist_ok=True)
    (place / "data" / "sst2.jsonl").write_text('{"sentence": "a", "label": 1}\n{"sentence": "b", "label": 0}\n')
    (place / "data" / "nq_open.jsonl").write_text('{"question": "who", "answer": ["Ada"]}\n')
    found = as_json(run, "evaluate", "two", "--data", "data")
    assert [(one["task"], one["n"]) for one in found["tasks"]] == [("sst2", 2), ("nq_open", 1)]
    assert "name one: --task sst2 or nq_open" in refused(run, "errors", "two", "--data", "data")
    assert "takes the predictions of one task" in refused(run, "evaluate", "two", "--data", "data", "--out", "x.jsonl")
    assert "has no folder mrpc" in refused(run, "evaluate", "two", "--task", "sst2,mrpc", "--data", "data")
