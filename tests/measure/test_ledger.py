"""The ledger keeps every line whole, refuses what it does not understand, and knows the newest of each."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from deepnarrow.errors import UserError
from deepnarrow.measure import ledger
from deepnarrow.measure.ledger import Record, append, current, latest, read, record, select

ONE = Record(
    kind="score", shape="tiny", model="runs/a", metric="f1", value=41.5, unit="%", task="squad", task_version=1,
    split="validation", low=40.0, high=43.0, n=100, seed=0, date="2026-11-01T00:00:00Z",
)  # fmt: skip


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    append(path, ONE)
    append(path, [replace(ONE, seed=1), replace(ONE, seed=2, extra={"note": "Gr\u00fc\u00dfe"})])
    assert read(path) == [ONE, replace(ONE, seed=1), replace(ONE, seed=2, extra={"note": "Gr\u00fc\u00dfe"})]
    assert len(path.read_text("utf-8").splitlines()) == 3


def test_a_torn_last_line_is_left_out_and_then_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, [ONE, ONE])
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - 20])
    assert read(path) == [ONE]
    append(path, replace(ONE, seed=5))
    assert [one.seed for one in read(path)] == [0, 5]


def test_an_unknown_key_is_refused_with_its_line_and_the_right_name(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, ONE)
    row = asdict(ONE)
    row["metrik"] = row.pop("metric")
    with path.open("a") as file:
        file.write(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"line 2: unknown key 'metrik', did you mean metric\?"):
        read(path)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([1, 2], "is a JSON object"),
        ({"kind": "score"}, "needs shape, model, metric, value, unit"),
        (asdict(ONE) | {"kind": "scores"}, "did you mean score"),
        (asdict(ONE) | {"value": "41"}, "must be a number"),
        (asdict(ONE) | {"low": True}, "must be a number"),
    ],
)
def test_broken_records_teach(tmp_path: Path, row: object, words: str) -> None:
    path = tmp_path / "ledger.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=words):
        read(path)


def test_no_ledger_says_how_to_get_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no ledger at .*deepnarrow bench. with --ledger"):
        read(tmp_path / "none.jsonl")


def test_record_fills_in_where_and_when() -> None:
    one = record(kind="timing", shape="tiny", model="tiny", metric="encode", value=1.5, unit="ms", low=float("nan"))
    assert one.versions["deepnarrow"]
    assert one.machine["cores"]
    assert one.date.endswith("Z")
    assert one.low is None


def test_an_infinite_value_is_an_outcome_and_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    append(path, record(kind="training", shape="tiny", model="a", metric="loss", value=float("inf"), unit="nats"))
    assert json.loads(path.read_text(), parse_constant=pytest.fail)["extra"]["outcome"] == "inf"
    assert read(path)[0].value is None


def test_select_by_equality_and_by_set() -> None:
    records = [replace(ONE, seed=seed, task=task) for seed in range(3) for task in ("squad", "sst2")]
    assert len(select(records, task="squad")) == 3
    assert len(select(records, task="squad", seed={0, 2})) == 2
    assert select(records, task="nq") == []
    with pytest.raises(UserError, match="no field 'taks'; did you mean task"):
        select(records, taks="squad")


def test_latest_is_by_date_then_by_line() -> None:
    old, new = replace(ONE, value=1.0), replace(ONE, value=2.0, date="2026-11-02T00:00:00Z")
    assert latest([new, old]) == new
    assert latest([old, replace(old, value=9.0)]) == replace(old, value=9.0)
    assert latest([old], shape="mini") is None


def test_current_keeps_one_of_each_measurement() -> None:
    again = replace(ONE, value=50.0, date="2026-12-01T00:00:00Z")
    limited = replace(ONE, extra={"conditions": {"limit": 10}})
    assert current([ONE, limited, again]) == [again, limited]
    elsewhere = replace(ONE, machine={"processor": "other"})
    assert len(current([ONE, elsewhere])) == 1, "a score does not depend on the machine"
    timing = replace(ONE, kind="timing")
    assert len(current([timing, replace(timing, machine={"processor": "other"})])) == 2, "a timing does"


def test_the_fields_are_the_written_ones() -> None:
    """A ledger outlives the program: a field may be added with a default, never renamed or dropped."""
    assert ledger.NAMES == (
        "kind", "shape", "model", "metric", "value", "unit", "task", "task_version", "split", "low", "high", "n",
        "seed", "parameters", "commit", "versions", "machine", "date", "extra",
    )  # fmt: skip
