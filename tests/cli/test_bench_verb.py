"""`deepnarrow bench`, as a person and as a program meet it. No speed is asserted."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.measure.ledger import read
from deepnarrow.model.folder import save_model
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse

SMALL = "tiny-dm32-ff64-nh2-nl1-v128"
QUICK = ("--input-length", "8", "--target-length", "3", "--repeats", "1")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """Call the verb; give its exit code, standard output and standard error."""
    monkeypatch.setenv("COLUMNS", "100")

    def call(*arguments: object) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main(["bench", *map(str, arguments)])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


def test_a_table_then_json_as_the_last_line(run: Any) -> None:
    code, out, err = run(SMALL, "xxl-nl48", *QUICK)
    assert (code, err) == (0, "")
    *table, last = out.rstrip("\n").split("\n")
    assert max(map(len, table)) <= 100
    for words in ("8 tokens in, 3 out, batch 1, float32, cpu", "each further token", "OOM", "of GEMM", "GFLOP/s"):
        assert any(words in line for line in table), words
    found = json.loads(last)
    assert [one["shape"] for one in found["timings"]] == [str(parse(SMALL)), str(parse("xxl-nl48"))]
    assert found["ceilings"]["gemm_float32_gflops"] > 0


def test_json_is_all_of_stdout_and_the_ledger_has_every_part(run: Any, tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    code, out, _ = run(SMALL, *QUICK, "--json", "--ledger", path, "--batch", "2", "--dtype", "bfloat16")
    assert code == 0
    (timing,) = json.loads(out)["timings"]
    assert timing["conditions"]["dtype"] == "bfloat16"
    records = read(path)
    assert {one.metric for one in records} >= {"encode", "per_token", "end_to_end", "train_step", "peak_memory"}
    assert all(one.conditions["batch"] == 2 for one in records)


def test_a_model_folder_is_timed_under_its_name(run: Any, tmp_path: Path) -> None:
    model = T5(parse(SMALL))
    initialise(model, 0)
    save_model(model, None, tmp_path / "mine")
    code, out, _ = run(tmp_path / "mine", *QUICK, "--no-train", "--json")
    assert code == 0
    (timing,) = json.loads(out)["timings"]
    assert (timing["name"], timing["shape"]) == (str(tmp_path / "mine"), str(parse(SMALL)))
    assert "train_step" not in timing


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["smal"], "neither a folder nor a shape"),
        ([SMALL, "--dtype", "float16"], "float16"),
        ([SMALL, "--target-length", "1"], "target length must be at least 2"),
        ([SMALL, "--repeats", "0"], "repeats must be at least 1"),
        ([SMALL, "--device", "tpu"], "unknown device"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run: Any, arguments: list[str], words: str) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1
