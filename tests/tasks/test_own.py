"""A task of a user's own data: what is found in the rows, how they are split, and what is said of bad ones."""

import csv
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, load, load_pairs, own
from deepnarrow.tasks.own import own_task

SIDES = ("train", "validation", "test")
MOODS = [{"input": f"review {n}", "target": ("good", "bad", "fair")[n % 3]} for n in range(200)]
FACTS = [{"input": f"what is {n} plus one", "target": str(n + 1)} for n in range(200)]


def as_jsonl(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_csv(path: Path, rows: list[dict]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(rows)
    return path


def as_parquet(path: Path, rows: list[dict]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def names_of(task: tasks.Task) -> list[str]:
    return [metric.name for metric in task.metrics]


@pytest.mark.parametrize(
    ("name", "write"),
    [("moods.jsonl", as_jsonl), ("moods.csv", as_csv), ("moods.tsv", as_csv), ("moods.parquet", as_parquet)],
)
def test_a_file_is_a_task_with_labels(tmp_path: Path, name: str, write: Callable[[Path, list[dict]], Path]) -> None:
    task = tasks.get(str(write(tmp_path / name, MOODS)))
    assert (task.name, task.labels) == ("moods", ("bad", "fair", "good"))
    assert names_of(task) == ["accuracy", "macro_f1"]
    assert task.baseline.name == "commonest label"
    parts = {side: load_pairs(task, side) for side in SIDES}
    assert sum(map(len, parts.values())) == 200
    assert parts["train"][0] in [Pair(row["input"], [row["target"]]) for row in MOODS]


def test_one_file_is_split_by_the_input_and_stays_so(tmp_path: Path) -> None:
    rows = [{"input": f"question {n}", "target": f"answer {n}"} for n in range(3000)]
    path = as_jsonl(tmp_path / "asked.jsonl", rows + rows[:500])  # 500 of them twice
    sides = {side: {pair.inputs for pair in load_pairs(own_task(path), side)} for side in SIDES}
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert not sides[one] & sides[other]
    assert sum(map(len, sides.values())) == 3000
    for side, share in (("train", 0.8), ("validation", 0.1), ("test", 0.1)):
        assert abs(len(sides[side]) / 3000 - share) < 0.025  # three standard deviations
    grown = own_task(as_jsonl(tmp_path / "asked.jsonl", [{"input": "new", "target": "x"}, *reversed(rows)]))
    for side in SIDES:
        assert {pair.inputs for pair in load_pairs(grown, side)} - {"new"} == sides[side]
    assert len(load_pairs(grown, "train+validation+test")) == 3001
    worded = own_task(path, inputs="answer me: {input}")
    for side in SIDES:
        assert {pair.inputs.removeprefix("answer me: ") for pair in load_pairs(worded, side)} - {"new"} == sides[side]


def test_rows_drawn_by_a_hash_of_their_text_are_split_as_fairly(shared: Path) -> None:
    """These 5,000 rows were drawn by the SHA-256 of their text; a split by the same hash puts nearly all in train."""
    task = own_task(shared / "data/ag_news/train.jsonl.gz", inputs="{text}", target="{label}")
    counts = [len(load_pairs(task, side)) for side in SIDES]
    assert sum(counts) == 5000
    assert abs(counts[0] - 4000) < 100
    assert all(400 < count < 600 for count in counts[1:])


def test_the_origin_names_content_and_share(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "moods.jsonl", MOODS)
    origin = load(own_task(path), "train+test").origin
    assert origin.startswith("moods.jsonl (sha256 ")
    assert "[train: inputs whose hash is from 0 to 0.8], moods.jsonl (sha256 " in origin
    assert str(tmp_path) not in origin


def test_a_folder_is_read_by_its_files(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "mine/train.jsonl", FACTS[:50])
    as_jsonl(tmp_path / "mine/dev.jsonl", FACTS[50:60])
    as_jsonl(tmp_path / "mine/test.jsonl", FACTS[60:])
    as_jsonl(tmp_path / "mine/._test.jsonl", [{"not": "ours"}])
    task = tasks.get(str(tmp_path / "mine"))
    assert task.name == "mine"
    assert {side: len(load_pairs(task, side)) for side in SIDES} == {"train": 50, "validation": 10, "test": 140}


def test_a_folder_without_a_held_out_part_gives_up_some_of_train(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "mine/train.jsonl", FACTS)
    task = own_task(tmp_path / "mine")
    train, held_out = (load_pairs(task, side) for side in ("train", "validation"))
    assert len(train) + len(held_out) == 200
    assert 5 <= len(held_out) <= 40
    assert not {pair.inputs for pair in train} & {pair.inputs for pair in held_out}
    with pytest.raises(UserError, match="no split 'test'"):
        load(task, "test")


def test_short_answers_and_texts_are_told_apart(tmp_path: Path) -> None:
    short = own_task(as_jsonl(tmp_path / "facts.jsonl", FACTS))
    assert (short.labels, names_of(short)) == (None, ["exact_match", "token_f1", "rougeL"])
    assert short.baseline.name == "commonest answer"
    long = [
        {"input": f"Title. Body {n}.", "target": f"a summary of ten words or more for number {n} here"}
        for n in range(60)
    ]
    texts = own_task(as_jsonl(tmp_path / "texts.jsonl", long), inputs="summarize: {input}")
    assert (texts.labels, names_of(texts)) == (None, ["rougeL", "token_f1", "exact_match"])
    assert texts.baseline.answers(["summarize: Title: one. Body."], [["x"]]) == ["Title: one."]


@pytest.mark.parametrize(
    ("targets", "closed"),
    [
        (["a", "b"] * 5, True),
        (["a", "b"] * 4, False),  # 4 rows of each are too few to be sure
        (["a"] * 30 + ["b"], False),  # a label that occurs once
        ([str(n) for n in range(50)] * 5, True),
        ([str(n) for n in range(51)] * 5, False),
        (["a" * 41, "b"] * 20, False),
        ([1, 2, 3] * 10, True),
        ([True, False] * 10, True),
        ([["a"], ["b"]] * 10, True),
        ([["a", "b"], ["b"]] * 10, False),
    ],
)
def test_which_targets_are_labels(tmp_path: Path, targets: list, closed: bool) -> None:
    rows = [{"input": f"row {n}", "target": target} for n, target in enumerate(targets)]
    task = own_task(as_jsonl(tmp_path / "some.jsonl", rows))
    assert (task.labels is not None) == closed
    assert len(load_pairs(task, "train+validation+test")) == len(rows)


def test_labels_and_lengths_may_be_given(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "moods.jsonl", MOODS)
    assert own_task(path, labels=()).labels is None
    given = own_task(path, labels=("good", "bad", "fair", "odd"), input_tokens=99, target_tokens=7, name="judged")
    assert (given.name, given.labels) == ("judged", ("good", "bad", "fair", "odd"))
    assert (given.input_tokens, given.target_tokens) == (99, 7)
    with pytest.raises(UserError, match=r"row .*: target 'fair' is none of this task's labels; choose from: good, bad"):
        load(own_task(path, labels=("good", "bad")), "train")


def test_lengths_hold_the_text(shared: Path) -> None:
    """The rule knows no tokenizer; T5's own agrees that nearly every row fits."""
    from deepnarrow.text.tokenizer import load as load_tokenizer

    tokenizer = load_tokenizer(shared / "data/t5_tokenizer")
    for file, inputs, target in (
        ("sst2/train.jsonl", "{text}", "{label}"),
        ("webquestions/train.jsonl", "{question}", "{answers}"),
        ("rte/train.jsonl", "{premise} {hypothesis}", "{label}"),
    ):
        task = own_task(shared / "data" / file, inputs=inputs, target=target)
        pairs = load_pairs(task, "train", limit=400)
        asked = sum(len(tokenizer.encode(pair.inputs)) < task.input_tokens for pair in pairs)
        answered = sum(len(tokenizer.encode(pair.accepted[0])) < task.target_tokens for pair in pairs)
        assert min(asked, answered) / len(pairs) > 0.985
        assert task.input_tokens <= 4 * max(len(tokenizer.encode(pair.inputs)) for pair in pairs)


def test_templates_over_columns(tmp_path: Path) -> None:
    rows = [{"question": f"who {n}", "passage": f"Ada {n}", "answers": [f"Ada {n}", f"she {n}"]} for n in range(40)]
    path = as_jsonl(tmp_path / "read.jsonl", rows)
    task = own_task(path, inputs="question: {question} context: {passage}", target="{answers}")
    pairs = load_pairs(task, "train+validation+test")
    assert Pair("question: who 3 context: Ada 3", ["Ada 3", "she 3"]) in pairs
    assert tasks.targets(task, pairs)[0][1].startswith("Ada")
    two = own_task(path, inputs="{question}", target="{passage} ({question})")
    assert Pair("who 3", ["Ada 3 (who 3)"]) in load_pairs(two, "train+validation+test")


@pytest.mark.parametrize(
    ("inputs", "target", "says"),
    [
        ("{questoin}", "{target}", "asks for a column 'questoin'; did you mean question"),
        ("{question}", "{target}", "asks for a column 'target'; choose from: question, answer"),
        ("{question", "{answer}", r"cannot read the template '\{question' .*; write a column's name between braces"),
        ("{}", "{answer}", "cannot read the template"),
        ("{question!r}", "{answer}", "cannot read the template"),
        ("{question:>9}", "{answer}", "cannot read the template"),
        ("question", "{answer}", "names no column"),
        ("{question}", "{more}", "column 'more' holds a dict, which is no text"),
    ],
)
def test_bad_templates(tmp_path: Path, inputs: str, target: str, says: str) -> None:
    path = as_jsonl(tmp_path / "asked.jsonl", [{"question": "a", "answer": "b", "more": {"c": 1}}] * 20)
    with pytest.raises(UserError, match=says):
        own_task(path, inputs=inputs, target=target)


def test_bad_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no such file or folder: .*absent\.jsonl"):
        tasks.get(str(tmp_path / "absent.jsonl"))
    with pytest.raises(UserError, match="holds no table named after its split"):
        tasks.get(str(tmp_path))
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(UserError, match=r"notes.txt is no table of records"):
        tasks.get(str(tmp_path / "notes.txt"))
    path = as_jsonl(tmp_path / "blank.jsonl", [{"input": "a", "target": None}, {"input": " ", "target": "b"}])
    with pytest.raises(UserError, match=r"no row of .*blank.jsonl has both an input and a target"):
        tasks.get(str(path))
    path = as_jsonl(tmp_path / "torn.jsonl", [*FACTS[:30], {"input": "a"}])
    with pytest.raises(UserError, match=r"torn.jsonl, row 31: the template '\{target\}' asks for a column 'target'"):
        tasks.get(str(path))
    short = own_task(as_jsonl(tmp_path / "short.jsonl", FACTS[:1]))
    assert len(load_pairs(short, "train+validation+test")) == 1
    with pytest.raises(UserError, match=r"no row .* in short.jsonl .*0 rows were read; a folder with train.jsonl and"):
        load(short, "validation")  # its one row is in train
    with pytest.raises(UserError, match=r"unknown task 'nothing'.*Or give a file of your own"):
        tasks.get("nothing")


def test_rows_without_target_are_counted(tmp_path: Path) -> None:
    as_jsonl(tmp_path / "mine/train.jsonl", [*FACTS, {"input": "open", "target": ""}, {"input": "", "target": "x"}])
    as_jsonl(tmp_path / "mine/validation.jsonl", FACTS[:5])
    assert load(own_task(tmp_path / "mine"), "train")[2] == 2


def test_a_name_that_is_taken_is_marked(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "squad.jsonl", FACTS)
    assert own_task(path).name == "own-squad"
    with pytest.raises(UserError, match="sst2 is the name of another task"):
        own_task(path, name="sst2")


def test_a_run_keeps_what_the_task_was(tmp_path: Path) -> None:
    path = as_jsonl(tmp_path / "moods.jsonl", MOODS)
    task = own_task(path, inputs="mood: {input}")
    kept = json.loads(json.dumps(own.spec(task)))
    as_jsonl(path, [row for row in MOODS if row["target"] != "fair"])  # a label is gone
    assert own_task(path, inputs="mood: {input}").labels == ("bad", "good")
    again = own.from_spec(kept)
    assert again.labels == task.labels == ("bad", "fair", "good")
    for name in ("name", "version", "metrics", "input_tokens", "target_tokens", "about", "made_from"):
        assert getattr(again, name) == getattr(task, name)
    assert load_pairs(again, "train")[0].inputs.startswith("mood: review")
    path.unlink()
    orphan = own.from_spec(kept)
    with pytest.raises(UserError, match=r"moods.jsonl, which this task was made from, is gone"):
        load(orphan, "validation")
    other = as_jsonl(tmp_path / "other.jsonl", MOODS[:9])
    assert len(load_pairs(orphan, "validation", data=other)) == 9


def test_a_spec_that_is_none_is_refused(tmp_path: Path) -> None:
    assert own.spec(tasks.get("sst2")) is None
    kept = own.spec(own_task(as_jsonl(tmp_path / "moods.jsonl", MOODS)))
    assert kept is not None
    with pytest.raises(UserError, match=r"does not describe a task of own data \(wrong: labels, seed\)"):
        own.from_spec({key: value for key, value in kept.items() if key != "labels"} | {"seed": 1})
    with pytest.raises(UserError, match="version 9 cannot be read"):
        own.from_spec(kept | {"version": 9})
    with pytest.raises(UserError, match="wrong: kind 'poems'"):
        own.from_spec(kept | {"kind": "poems"})


@pytest.mark.skipif(sys.platform == "win32", reason="names of files there know no case")
def test_capitals_of_a_file_name_stay(tmp_path: Path) -> None:
    assert own_task(as_jsonl(tmp_path / "My.Task.JSONL", MOODS)).name == "My.Task"
