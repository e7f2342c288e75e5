"""`deepnarrow report` and `deepnarrow card`, as a person and as a program meet them."""

import json
from pathlib import Path
from typing import Any

import pytest

from deepnarrow.cli import main
from deepnarrow.files import write_json
from deepnarrow.measure.ledger import Record, append
from deepnarrow.train.config import Config
from deepnarrow.train.run_folder import describe

COMMON = {"kind": "score", "task": "squad", "task_version": 1, "split": "validation", "metric": "exact_match",
          "unit": "%", "n": 100, "seed": 0, "date": "2026-11-20T08:00:00Z"}  # fmt: skip


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Any:
    """Call a verb; give its exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[object, str, str]:
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return stopped.value.code, output.out, output.err

    return call


@pytest.fixture
def study(tmp_path: Path) -> Path:
    scores = [
        Record(shape=shape, model=f"runs/{shape}", value=value, low=value - 5, high=value + 5, **COMMON)
        for shape, value in (("tiny-nl2", 30.0), ("tiny", 45.0), ("mini", 50.0))
    ]
    append(tmp_path / "ledger.jsonl", scores)
    config = Config(shape="tiny", steps=10, batch=2, input_length=16)
    write_json(tmp_path / "runs/tiny/run.json", describe(config, "finetune", {"task": "squad"}))
    return tmp_path


def test_report_says_what_it_recommends_and_where_it_wrote(run: Any, study: Path) -> None:
    code, out, err = run("report", study)
    assert (code, err) == (0, "")
    assert "squad:exact_match: tiny\n" in out
    assert "intervals overlap" in out
    assert str(study / "report.html") in out
    assert (study / "report.html").is_file()


def test_report_json_is_all_of_stdout(run: Any, study: Path, tmp_path: Path) -> None:
    code, out, _ = run(
        "report", study, "--json", "--out", tmp_path / "pages", "--cost", "parameters", "--metric", "squad"
    )
    assert code == 0
    found = json.loads(out)
    assert found["page"] == str(tmp_path / "pages" / "report.html")
    assert found["recommended"]["squad:exact_match"]["name"] == "tiny"
    assert found["recommended"]["squad:exact_match"]["settled"] is False
    assert all(Path(plot).is_file() for plot in found["plots"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "no ledger.jsonl in nowhere"),
        (["--metric", "exact"], "did you mean exact_match?"),
        (["--cost", "flop"], "did you mean flops?"),
        (["--cost", "milliseconds"], "choose another --cost"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(run: Any, study: Path, arguments: list[str], words: str) -> None:
    code, out, err = run("report", *([] if arguments == ["nowhere"] else [study]), *arguments)
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_card_finds_the_ledger_above_and_writes_beside_the_run(run: Any, study: Path) -> None:
    code, out, err = run("card", study / "runs/tiny")
    assert (code, err) == (0, "")
    assert out.strip() == str(study / "runs/tiny/README.md")
    assert "**45.00**" in Path(out.strip()).read_text("utf-8")


def test_card_takes_a_name_a_licence_and_a_place(run: Any, study: Path) -> None:
    where = study / "CARD.md"
    code, _, _ = run("card", study / "runs/tiny", "--ledger", study / "ledger.jsonl", "--out", where,
                     "--name", "mine", "--license", "mit")  # fmt: skip
    assert code == 0
    text = where.read_text("utf-8")
    assert 'license: "mit"' in text
    assert "# mine\n" in text


def test_card_of_no_run_teaches(run: Any, study: Path) -> None:
    code, _, err = run("card", study / "nothing")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
