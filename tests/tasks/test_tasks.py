"""Every task entry: it is found, complete, reads real rows and the hub's, and says what is wrong with others."""

import csv
import gzip
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Task, answers, load, load_pairs

HUB_ROWS = {  # one row as the hub gives it, and the pair it must make
    "nq_open": (
        {"question": "who wrote it", "answer": ["Ada", "Lovelace"]},
        Pair("nq question: who wrote it", ["Ada", "Lovelace"]),
    ),
    "web_questions": (
        {"url": "u", "question": "where?", "answers": ["London"]},
        Pair("wq question: where?", ["London"]),
    ),
    "squad": (
        {"id": "1", "question": "Who?", "context": "Ada, 36.", "answers": {"text": ["Ada"], "answer_start": [0]}},
        Pair("question: Who ? context: Ada , 36 .", ["Ada"]),
    ),
    "sst2": ({"sentence": "fine ", "label": 1, "idx": 0}, Pair("sst2 sentence: fine", ["positive"])),
    "cola": ({"sentence": "Is it?", "label": 1, "idx": 0}, Pair("cola sentence: Is it?", ["acceptable"])),
    "xsum": (
        {"document": "One.\nTwo.", "summary": "Both.", "id": "7"},
        Pair("summarize: One.\nTwo.", ["Both."]),
    ),
}
SHARED_FILES = {
    "nq_open": ("nq_open/nq_open_dev.jsonl", 1000),
    "web_questions": ("webquestions/validation.jsonl", 1000),
    "squad": ("squad/squad_dev.jsonl", 632),
    "sst2": ("sst2/validation.jsonl", 372),
    "cola": ("cola/validation.jsonl", 527),
    "xsum": ("xsum/validation.jsonl.gz", 250),
}
ROWS = [{"question": f"q{n}", "answers": [f"a{n}", "b, c"]} for n in range(5)]
PAIRS = [Pair(f"nq question: q{n}", [f"a{n}", "b, c"]) for n in range(5)]


@pytest.fixture
def nq() -> Task:
    return tasks.get("nq_open")


def test_tasks_are_found_without_importing_them() -> None:
    assert {*HUB_ROWS, "stdlib_topic", "stdlib_summary"} <= set(tasks.names())
    with pytest.raises(UserError, match="unknown task 'nqopen'; did you mean nq_open"):
        tasks.get("nqopen")
    with pytest.raises(ValueError, match="already defined"):
        tasks.add(tasks.get("squad"))


@pytest.mark.parametrize("name", tasks.names())
def test_entries_are_complete(name: str) -> None:
    task = tasks.get(name)
    assert task.name == name
    assert task.version >= 1
    assert task.main_metric == task.metrics[0].name
    assert {"train", "validation"} <= set(task.sources)
    assert task.to_pair.__doc__, "an example of the pair stands in its docstring"
    assert ">>>" in task.to_pair.__doc__
    assert not task.labels or len(set(task.labels)) == len(task.labels) > 1
    assert json.loads(json.dumps(tasks.describe(task)))["metrics"]


@pytest.mark.parametrize("name", HUB_ROWS)
def test_the_hubs_rows(name: str) -> None:
    row, pair = HUB_ROWS[name]
    assert tasks.get(name).to_pair(row) == pair


@pytest.mark.parametrize("name", SHARED_FILES)
def test_real_files_and_perfect_answers(shared: Path, name: str) -> None:
    task, (file, count) = tasks.get(name), SHARED_FILES[name]
    loaded = load(task, "validation", data=shared / "data" / file)
    assert (len(loaded.pairs), loaded.skipped) == (count, 0)
    assert loaded.origin.startswith(Path(file).name)
    accepted = [pair.accepted for pair in loaded.pairs]
    perfect, empty = [many[0] for many in accepted], [""] * count
    baseline = task.baseline.answers([pair.inputs for pair in loaded.pairs], accepted)
    for metric in task.metrics:
        wanted = {"rouge2": 99, "token_f1": 99.8}.get(metric.name, 100)  # no pair in one word, no word in "A"
        assert metric.score(perfect, accepted) >= wanted - 1e-9
        assert metric.score(empty, accepted) <= 0.1  # of one answer, "A", the normal form is empty
        assert metric.score(empty, accepted) <= metric.score(baseline, accepted) < 100
    if task.labels:
        assert {label for many in accepted for label in many} == set(task.labels)


def test_the_baseline_of_reading_finds_the_sentence(shared: Path) -> None:
    """Word overlap alone finds the right sentence of SQuAD often enough to matter: a model has to beat that."""
    task = tasks.get("squad")
    pairs = load_pairs(task, "validation", data=shared / "data/squad/squad_dev.jsonl")
    found = task.baseline.answers([pair.inputs for pair in pairs], [pair.accepted for pair in pairs])
    hits = sum(pair.accepted[0] in sentence for pair, sentence in zip(pairs, found, strict=True))
    assert 0.4 < hits / len(pairs) < 0.95


def as_jsonl(path: Path) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def as_gzip(path: Path) -> Path:
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in ROWS).encode()))
    return path


def as_csv(path: Path) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "answers"])
        writer.writerows([row["question"], json.dumps(row["answers"])] for row in ROWS)
    return path


def as_parquet(path: Path) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize(
    ("name", "write"),
    [("test.jsonl", as_jsonl), ("test.jsonl.gz", as_gzip), ("test.csv", as_csv), ("test.parquet", as_parquet)],
)
def test_a_file_or_a_folder_of_any_kind(nq: Task, tmp_path: Path, name: str, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path / name)
    assert load_pairs(nq, "anything", data=path) == PAIRS
    assert load_pairs(nq, "test", data=tmp_path) == PAIRS
    assert load_pairs(nq, "test", data=tmp_path, limit=2) == PAIRS[:2]


def test_split_parts_are_joined_in_order(nq: Task, tmp_path: Path) -> None:
    for place in (1, 0):
        parquet.write_table(pyarrow.Table.from_pylist([ROWS[place]]), tmp_path / f"train-0000{place}-of-00002.parquet")
    assert load_pairs(nq, "train", data=tmp_path) == PAIRS[:2]


def test_the_origin_names_the_content(nq: Task, tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "dev.jsonl")
    first = load(nq, "dev", data=path).origin
    path.write_text(path.read_text() + json.dumps(ROWS[0]) + "\n")
    assert first.startswith("dev.jsonl (sha256 ")
    assert load(nq, "dev", data=path).origin != first


def test_rows_without_an_answer_are_counted(nq: Task, tmp_path: Path) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text('{"question": "a", "answers": []}\n{"question": "b", "answers": [" ", "x "]}\n')
    assert load(nq, "dev", data=path)[::2] == ([Pair("nq question: b", ["x"])], 1)
    path.write_text('{"question": "a", "answers": []}\n')
    with pytest.raises(UserError, match=r"no row with an answer for task nq_open in dev.jsonl .*: 1 rows were read"):
        load(nq, "dev", data=path)


def test_unlabelled_rows_are_left_out() -> None:
    assert tasks.get("sst2").to_pair({"sentence": "a", "label": -1}) is None


@pytest.mark.parametrize(
    ("name", "row", "says"),
    [
        ("nq_open", {"query": "a", "answers": ["b"]}, "row 1, .*: a column question is needed; the row has query, a"),
        ("nq_open", {"question": None, "answers": ["b"]}, "a column question is needed"),
        ("nq_open", {"question": ["a"], "answers": ["b"]}, r'column question must be text, not \["a"\]'),
        ("nq_open", {"question": "a", "answers": [1]}, "column answers or answer must hold texts, not"),
        ("nq_open", {"question": "a", "answers": {"value": "b"}}, "column answers or answer must hold texts, not"),
        ("sst2", {"sentence": "a", "label": 2}, "label 2 is neither a number from 0 to 1 nor one of neg"),
        ("cola", {"sentence": "a", "label": "good"}, "label 'good' is neither"),
        ("cola", {"label": 1}, "a column sentence or text is needed"),
        ("squad", {"question": "a", "answers": ["b"]}, "a column context is needed"),
        ("xsum", {"document": "a"}, "a column references or summary is needed"),
    ],
)  # fmt: skip
def test_rows_of_another_kind_are_explained(tmp_path: Path, name: str, row: dict, says: str) -> None:
    path = tmp_path / "dev.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=says) as caught:
        load(tasks.get(name), "dev", data=path)
    assert str(path) in str(caught.value)


def test_missing_files_name_those_there(nq: Task, tmp_path: Path) -> None:
    as_jsonl(tmp_path / "nq_open_dev.jsonl")
    with pytest.raises(UserError, match=r"holds no validation.jsonl .*; it holds nq_open_dev.jsonl; name one file"):
        load_pairs(nq, "validation", data=tmp_path)
    as_jsonl(tmp_path / "dev.jsonl")
    as_csv(tmp_path / "dev.csv")
    with pytest.raises(UserError, match="the split dev more than once"):
        load_pairs(nq, "dev", data=tmp_path)
    with pytest.raises(UserError, match="no such file"):
        load_pairs(nq, "dev", data=tmp_path / "absent.jsonl")


def test_splits_and_limits_are_checked(nq: Task, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'valid'; did you mean validation"):
        load_pairs(nq, "valid")
    with pytest.raises(UserError, match="limit of 0"):
        load_pairs(nq, "dev", data=as_jsonl(tmp_path / "dev.jsonl"), limit=0)


def test_answers_in_every_shape() -> None:
    for value in (["a", "b"], {"text": ["a", "b"]}, '["a", "b"]', '{"text": ["a", "b"], "answer_start": [1, 2]}'):
        assert answers({"answers": value}, "answers") == ["a", "b"]
    for value in ("[sic", "[1]", '{"a": 1}', "12"):
        assert answers({"answers": value}, "answers") == [value]


def test_the_hub_is_read_by_split_and_cut(nq: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub's library, with a stand-in for it; the revision is the one the hub states."""
    asked: list[tuple] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict]:
        asked.append((name, config, split, streaming))
        return [{"question": f"q{n}", "answer": ["a"]} for n in range(79_170)]

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name: SimpleNamespace(sha="0f1e2d"))
    loaded = load(nq, "validation")
    assert [pair.inputs for pair in loaded.pairs] == ["nq question: q79168", "nq question: q79169"]
    assert loaded.origin == "hub:google-research-datasets/nq_open:train[79168:] at 0f1e2d"
    assert len(load_pairs(nq, "train", limit=3)) == 3
    assert asked == [("google-research-datasets/nq_open", None, "train", True)] * 2
    library.load_dataset = lambda name, config, **_: asked.append((name, config)) or [HUB_ROWS["cola"][0]]  # type: ignore[attr-defined]
    assert load_pairs(tasks.get("cola"), "train") == [HUB_ROWS["cola"][1]]
    assert asked[-1] == ("nyu-mll/glue", "cola")


def test_without_the_hub_one_line_says_so(nq: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"nq_open:train needs the package `datasets`.*local file"):
        load_pairs(nq, "train")
