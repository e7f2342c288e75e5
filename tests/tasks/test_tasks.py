"""Every task entry: it is found, complete, reads real rows and the hub's, and says what is wrong with others."""

import csv
import gzip
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pyarrow
import pytest
from pyarrow import parquet

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Task, answers, load, load_pairs
from deepnarrow.text import tokenizer as tokenizers

SENTENCES = {"sentence1": "It rains. ", "sentence2": "It is wet.", "idx": 0}
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
    "mrpc": (SENTENCES | {"label": 1}, Pair("mrpc sentence1: It rains. sentence2: It is wet.", ["equivalent"])),
    "stsb": (SENTENCES | {"label": 3.75}, Pair("stsb sentence1: It rains. sentence2: It is wet.", ["3.8"])),
    "qqp": (
        {"question1": "Why?", "question2": "How?", "label": 0, "idx": 0},
        Pair("qqp question1: Why? question2: How?", ["not_duplicate"]),
    ),
    "mnli": (
        {"premise": "It rains.", "hypothesis": "It is dry.", "label": 2, "idx": 0},
        Pair("mnli hypothesis: It is dry. premise: It rains.", ["contradiction"]),
    ),
    "mnli_mismatched": (
        {"premise": "It rains.", "hypothesis": "It is late.", "label": 1, "idx": 0},
        Pair("mnli hypothesis: It is late. premise: It rains.", ["neutral"]),
    ),
    "qnli": (
        {"question": "Why?", "sentence": "It rains.", "label": 0, "idx": 0},
        Pair("qnli question: Why? sentence: It rains.", ["entailment"]),
    ),
    "rte": (SENTENCES | {"label": 1}, Pair("rte sentence1: It rains. sentence2: It is wet.", ["not_entailment"])),
    "wnli": (SENTENCES | {"label": 1}, Pair("wnli sentence1: It rains. sentence2: It is wet.", ["entailment"])),
    "boolq": (
        {"question": "does it rain", "passage": "It rains.", "idx": 0, "label": 1},
        Pair("boolq passage: It rains. question: does it rain", ["True"]),
    ),
    "cb": (
        {"premise": "Does it rain?", "hypothesis": "it rains", "idx": 0, "label": 2},
        Pair("cb hypothesis: it rains premise: Does it rain?", ["neutral"]),
    ),
    "copa": (
        {"premise": "It rains.", "choice1": "Go.", "choice2": "Stay.", "question": "effect", "idx": 0, "label": 1},
        Pair("copa choice1: Go. choice2: Stay. premise: It rains. question: effect", ["choice2"]),
    ),
    "multirc": (  # the row of T5's own test
        {
            "paragraph": "<b>Sent 1: </b>Once upon a time, there was a squirrel named Joey.<br>"
            "<b>Sent 2: </b>Joey loved to go outside and play with his cousin Jimmy.",
            "question": "Why was Joey surprised the morning he woke up for breakfast?",
            "answer": "There was only pie to eat",
            "idx": {"paragraph": 5, "question": 1, "answer": 3},
            "label": 1,
        },
        Pair(
            "multirc question: Why was Joey surprised the morning he woke up for breakfast? "
            "answer: There was only pie to eat paragraph: Sent 1: Once upon a time, there was a squirrel named Joey. "
            "Sent 2: Joey loved to go outside and play with his cousin Jimmy.",
            ["True"],
            "5:1",
        ),
    ),
    "record": (  # likewise
        {
            "query": "It was @placeholder.",
            "entities": ["Ada", "Bob", "Cy"],
            "entity_spans": {"text": ["A"], "start": [0], "end": [1]},
            "passage": "This is the passage\n@highlight\nAnother sentence.\n@highlight\nThird sentence.",
            "answers": ["Ada", "Cy"],
            "idx": {"passage": 1, "query": 2},
        },
        Pair(
            "record query: It was @placeholder. entities: Ada, Bob, Cy passage: "
            "This is the passage. Another sentence. Third sentence.",
            ["Ada", "Cy"],
        ),
    ),
    "super_glue_rte": (
        {"premise": "It rains.", "hypothesis": "It is wet.", "idx": 0, "label": 0},
        Pair("rte hypothesis: It is wet. premise: It rains.", ["entailment"]),
    ),
    "wic": (
        {"word": "bed", "sentence1": "A river bed.", "sentence2": "Go to bed!", "start1": 8, "label": 0, "idx": 0},
        Pair("wic sentence1: A river bed. sentence2: Go to bed! word: bed", ["False"]),
    ),
    "wsc": (  # likewise
        {
            "text": "Mitchell asked Tom if he could lend some money.",
            "span1_index": 0,
            "span1_text": "Mitchell",
            "span2_text": "he",
            "span2_index": 4,
            "idx": 1,
            "label": 0,
        },
        Pair("wsc: Mitchell asked Tom if *he* could lend some money.", ["Mitchell"], negated=True),
    ),
    "trivia_qa": (
        {
            "question": "Who wrote it?",
            "question_id": "tc_1",
            "entity_pages": {"title": []},
            "answer": {"value": "Ada", "aliases": ["Lovelace", "Ada"], "normalized_aliases": ["ada", "lovelace"]},
        },
        Pair("trivia_qa question: Who wrote it?", ["Ada", "Lovelace"]),
    ),
    "cnn_dailymail": (
        {"article": "(CNN)One. Two.", "highlights": "One .\nTwo .", "id": "7"},
        Pair("summarize: (CNN)One. Two.", ["One .\nTwo ."]),
    ),
    "xsum": (
        {"document": "One.\nTwo.", "summary": "Both.", "id": "7"},
        Pair("summarize: One.\nTwo.", ["Both."]),
    ),
    "samsum": (
        {"id": "1", "dialogue": "Ann: Hi!\r\nBob: Hi.", "summary": "They greet."},
        Pair("summarize: Ann: Hi!\nBob: Hi.", ["They greet."]),
    ),
    "dialogsum": (
        {"id": "1", "dialogue": "#Person1#: Hi!", "summary": "A greeting.", "topic": "greet"},
        Pair("summarize: #Person1#: Hi!", ["A greeting."]),
    ),
    "scitldr": (
        {"source": ["We test.", "It works."], "source_labels": [0, 1], "target": ["A test.", "It works."]},
        Pair("summarize: We test. It works.", ["A test.", "It works."]),
    ),
    "wmt14_ende": (
        {"translation": {"de": "Das ist gut.", "en": "That is good."}},
        Pair("translate English to German: That is good.", ["Das ist gut."]),
    ),
    "wmt15_enfr": (
        {"translation": {"fr": "Merci bien pour tout.", "en": "Thanks for all."}},
        Pair("translate English to French: Thanks for all.", ["Merci bien pour tout."]),
    ),
    "wmt16_enro": (
        {"translation": {"en": "Yes, it is.", "ro": "Da, asta este."}},
        Pair("translate English to Romanian: Yes, it is.", ["Da, asta este."]),
    ),
    "ag_news": ({"text": "Rates rose.", "label": 2}, Pair("ag_news text: Rates rose.", ["Business"])),
}
SHARED_FILES = {
    "nq_open": ("nq_open/nq_open_dev.jsonl", 1000),
    "web_questions": ("webquestions/validation.jsonl", 1000),
    "squad": ("squad/squad_dev.jsonl", 632),
    "sst2": ("sst2/validation.jsonl", 372),
    "cola": ("cola/validation.jsonl", 527),
    "rte": ("rte/validation.jsonl", 277),
    "super_glue_rte": ("rte/validation.jsonl", 277),
    "boolq": ("boolq/validation.jsonl.gz", 800),
    "ag_news": ("ag_news/validation.jsonl.gz", 1000),
    "xsum": ("xsum/validation.jsonl.gz", 250),
    "samsum": ("samsum/validation.jsonl.gz", 400),
    "dialogsum": ("dialogsum/validation.jsonl.gz", 250),
    "scitldr": ("scitldr/validation.jsonl.gz", 619),
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


def test_every_task_of_the_hub_is_held_to_a_row_of_it() -> None:
    every = [tasks.get(name) for name in tasks.names()]
    assert {task.name for task in every if any("hub:" in one.spec for one in task.sources.values())} == {*HUB_ROWS}


@pytest.mark.parametrize("name", HUB_ROWS)
def test_perfect_empty_and_constant_answers(name: str) -> None:
    """All the labels of a task, or its one row: perfect answers score 100, and nothing that is written crashes."""
    task, row = tasks.get(name), HUB_ROWS[name][0]
    labels: list = list(range(len(task.labels or (0, 0))))
    if name == "stsb":
        labels = [float(score) for score in task.labels or ()]
    pairs = [pair for label in labels if (pair := task.to_pair(row | {"label": label}))]
    accepted = [pair.accepted for pair in pairs]
    assert len(pairs) == len(labels)
    assert not task.labels or [many[0] for many in accepted] == list(task.labels)
    perfect = ["someone else" if pair.negated else pair.accepted[0] for pair in pairs]
    inputs = [pair.inputs for pair in pairs]
    if task.name == "multirc":  # two questions, so that not every one has a wrong answer
        pairs = [pair._replace(group=str(number)) for number, pair in enumerate(pairs)]
    baseline = task.baseline.answers(inputs, accepted)
    assert len(baseline) == len(pairs)
    for metric in task.metrics:
        no_bigram = metric.name == "rouge2" and max(len(many[0].split()) for many in accepted) < 2
        assert metric.score(perfect, pairs) == pytest.approx(0 if no_bigram else 100)
        assert metric.score([""] * len(pairs), pairs) <= (50 if metric.name == "multirc_exact_match" else 1e-6)
        assert -100 <= metric.score(baseline, pairs) <= 100
    assert all(target for _, target in tasks.targets(task, pairs))


@pytest.mark.parametrize(
    "name", ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte", "wnli", "boolq", "cb", "copa", "super_glue_rte"]
)
def test_the_wording_is_t5s_rule(name: str) -> None:
    """The suite's name of the task, then every text field but label and number, by the alphabet (T5's `glue`)."""
    row, pair = HUB_ROWS[name]
    fields = sorted(field for field in row if field not in ("label", "idx"))
    said = " ".join(f"{field}: {row[field].strip()}" for field in fields)
    assert pair.inputs == f"{name.removeprefix('super_glue_')} {said}"


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


@pytest.mark.parametrize("name", [name for name in HUB_ROWS if tasks.get(name).labels or name == "wsc"])
def test_unlabelled_rows_are_left_out(name: str) -> None:
    assert tasks.get(name).to_pair(HUB_ROWS[name][0] | {"label": -1}) is None
    assert tasks.get(name).to_pair(HUB_ROWS[name][0] | {"label": "-1"}) is None


def test_rows_of_hidden_answers_are_left_out() -> None:
    row = HUB_ROWS["record"][0] | {"answers": []}
    assert tasks.get("record").to_pair(row) is None
    row = HUB_ROWS["trivia_qa"][0] | {"answer": {"value": "<unk>", "aliases": []}}
    assert tasks.get("trivia_qa").to_pair(row) is None


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("boolq", {"passage": "It rains.", "question": "does it rain", "label": True}),
        ("boolq", {"passage": "It rains.", "question": "does it rain", "answer": "true"}),
        ("ag_news", {"text": "Rates rose.", "label": "Business"}),
        ("rte", {"premise": "It rains.", "hypothesis": "It is wet.", "label": "not_entailment"}),
        ("super_glue_rte", {"sentence1": "It rains.", "sentence2": "It is wet.", "label": "entailment"}),
        ("stsb", SENTENCES | {"label": "3.80"}),
        ("samsum", {"document": "Ann: Hi!\nBob: Hi.", "summary": "They greet."}),
        ("dialogsum", {"document": "#Person1#: Hi!", "summary": "A.", "references": ["A greeting."]}),
        ("scitldr", {"document": "We test. It works.", "summary": "A.", "references": ["A test.", "It works."]}),
        ("cnn_dailymail", {"document": "(CNN)One. Two.", "summary": "One .\nTwo ."}),
        ("trivia_qa", {"question": "Who wrote it?", "answers": ["Ada", "Lovelace", "Ada"]}),
        ("wmt14_ende", {"en": "That is good.", "de": "Das ist gut."}),
        ("record", HUB_ROWS["record"][0] | {"entities": '["Ada", "Bob", "Cy"]', "answers": '["Ada", "Cy"]'}),
    ],
)
def test_files_make_the_pairs_of_the_hub(name: str, row: dict) -> None:
    assert tasks.get(name).to_pair(row) == HUB_ROWS[name][1]


def test_answers_of_one_question_are_a_group_without_numbers_too() -> None:
    row = {key: value for key, value in HUB_ROWS["multirc"][0].items() if key != "idx"}
    one, two, other = (
        tasks.get("multirc").to_pair(row | more) for more in ({}, {"answer": "A cat"}, {"question": "Who was it?"})
    )
    assert isinstance(one, Pair)
    assert isinstance(two, Pair)
    assert isinstance(other, Pair)
    assert one.group == two.group != other.group


def test_similarities_go_to_the_nearest_fifth() -> None:
    to_pair = tasks.get("stsb").to_pair
    for score, written in ((1.66, "1.6"), (2.8, "2.8"), (0, "0.0"), (5, "5.0"), (4.95, "5.0"), (0.09, "0.0")):
        pair = to_pair(SENTENCES | {"label": score})
        assert pair
        assert pair.accepted == [written]
    for wrong in (5.1, -0.2, "high", "nan"):
        with pytest.raises(UserError, match="a similarity is a number from 0 to 5"):
            to_pair(SENTENCES | {"label": wrong})


@pytest.mark.parametrize(
    ("sentence", "pronoun", "place", "starred"),
    [  # the last two, T5's own exceptions: a place that is another word's, and a comma joined to the pronoun
        (
            "Mitchell asked Tom if he could lend some money.",
            "he",
            4,
            "Mitchell asked Tom if *he* could lend some money.",
        ),
        ("He saw him.", "him", 2, "He saw *him* ."),
        ("It was late", "It", 0, "*It* was late"),
        ("so it is that it is", "it", 4, "so it is that *it* is"),
        ("the item is it", "it", 3, "the item is *it*"),
        ("They might want to use it , but for now", "it", 4, "They might want to use *it* , but for now"),
        ('out loud. "Good for him," he said. ', "him", 4, 'out loud. "Good for *him* ," he said.'),
    ],
)
def test_a_pronoun_stands_between_stars(sentence: str, pronoun: str, place: int, starred: str) -> None:
    row = {"text": sentence, "span1_text": "Tom", "span2_text": pronoun, "span2_index": place, "label": 1}
    assert tasks.get("wsc").to_pair(row) == Pair(f"wsc: {starred}", ["Tom"])


def test_winograd_is_learned_from_the_right_nouns_and_judged_on_all() -> None:
    task, row = tasks.get("wsc"), HUB_ROWS["wsc"][0]
    pairs = [task.to_pair(row | more) for more in ({"span1_text": "Tom", "label": 1}, {"label": 0})]
    right, wrong = (pair for pair in pairs if pair)
    assert tasks.targets(task, [right, wrong]) == [(right.inputs, "Tom")]
    metric = task.metrics[0]
    for answer, score in (("Tom", 100), ("the Tom", 100), ("Mitchell", 0), ("", 0), ("the", 0), ("nobody", 50)):
        assert metric.score([answer] * 2, [right, wrong]) == score


def test_what_is_learned_is_the_first_answer_or_every_one() -> None:
    pairs = [Pair("a", ["1", "2"]), Pair("b", ["3"])]
    assert tasks.targets(tasks.get("nq_open"), pairs) == [("a", "1"), ("b", "3")]
    assert tasks.targets(tasks.get("record"), pairs) == [("a", "1"), ("a", "2"), ("b", "3")]


def test_labels_fit_their_length_in_t5s_tokens(shared: Path) -> None:
    tokenizer = tokenizers.load(shared / "data/t5_tokenizer")
    for task in map(tasks.get, tasks.names()):
        assert max((len(tokenizer.encode(label)) + 1 for label in task.labels or ()), default=0) <= task.target_tokens


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
        ("mnli", {"premise": "a", "label": 0}, "a column hypothesis is needed"),
        ("cb", {"premise": "a", "hypothesis": "b", "label": "yes"}, "label 'yes' is neither a number from 0 to 2 nor"),
        ("wsc", HUB_ROWS["wsc"][0] | {"span2_text": "it"}, "the pronoun 'it' does not stand in"),
        ("wsc", HUB_ROWS["wsc"][0] | {"span2_index": "x"}, "column span2_index must be a number, not 'x'"),
        ("wmt14_ende", {"translation": "Ja."}, "column translation must hold the texts under en and de"),
        ("wmt14_ende", {"translation": {"en": "Yes."}}, "a column de is needed; the row has en"),
        ("trivia_qa", {"question": "a", "answer": {"value": "b"}}, "column answers or answer must hold texts"),
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


def test_splits_are_joined_in_the_order_given(nq: Task, tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[:2]), tmp_path / "train.parquet")
    parquet.write_table(pyarrow.Table.from_pylist(ROWS[2:]), tmp_path / "validation.parquet")
    whole = load(nq, "train+validation", data=tmp_path)
    assert whole.pairs == PAIRS
    assert whole.origin.startswith("train.parquet (sha256 ")
    assert ", validation.parquet (sha256 " in whole.origin
    assert load_pairs(nq, "validation + train", data=tmp_path) == PAIRS[2:] + PAIRS[:2]
    assert load_pairs(nq, "train+validation", data=tmp_path / "train.parquet") == PAIRS[:2]  # the one file, once
    assert "validation" not in load(nq, "train+validation", data=tmp_path, limit=2).origin  # it was not opened
    with pytest.raises(UserError, match="holds no dev"):
        load(nq, "train+dev", data=tmp_path)


@pytest.mark.parametrize("name", HUB_ROWS)
def test_every_split_of_the_hub_is_asked_for_and_its_revision_recorded(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for the hub's libraries: what they are asked for, and that what they serve is written down."""
    asked: list[tuple] = []

    def load_dataset(dataset: str, config: str | None, **how: object) -> Iterator[dict]:
        asked.append((dataset, config, how))
        return itertools.repeat(HUB_ROWS[name][0], 110_000)

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    revisions = {None: "0f1e2d", "refs/convert/parquet": "a1b2c3"}
    monkeypatch.setattr(
        "huggingface_hub.dataset_info",
        lambda dataset, revision: SimpleNamespace(sha=f"{dataset} {revisions[revision]}"),
    )
    task = tasks.get(name)
    for split, source in task.sources.items():
        asked.clear()
        loaded = load(task, split, limit=1)
        assert loaded.pairs == [HUB_ROWS[name][1]]
        [(dataset, config, how)] = asked
        wanted = revisions[how.get("revision")]  # type: ignore[index]
        assert loaded.origin == f"{source.spec} at {dataset} {wanted}"
        part = str(how["split"])
        assert source.spec.removeprefix("hub:").startswith(dataset)
        assert (config or how.get("data_dir") or part) in source.spec
        assert part in {"train", "test"} or part.startswith("validation")
    assert len({source.spec for source in task.sources.values()}) == len(task.sources)


def test_the_hub_is_read_by_split_and_cut(nq: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is asked of the hub's library, with a stand-in for it; the revision is the one the hub states."""
    asked: list[tuple] = []

    def load_dataset(name: str, config: str | None, *, split: str, streaming: bool) -> list[dict]:
        asked.append((name, config, split, streaming))
        return [{"question": f"q{n}", "answer": ["a"]} for n in range(79_170)]

    library = ModuleType("datasets")
    library.load_dataset = load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, revision: SimpleNamespace(sha="0f1e2d"))
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
