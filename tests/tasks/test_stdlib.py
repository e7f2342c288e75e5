"""The tasks made of Python's own library: large enough, balanced, the same every time, nothing on both sides."""

from collections import Counter

import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.tasks import get, load, load_pairs, stdlib
from deepnarrow.text.sources import documents

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module", params=["stdlib_topic", "stdlib_summary"])
def task(request: pytest.FixtureRequest) -> tasks.Task:
    return tasks.get(request.param)


def test_no_text_is_on_two_sides(task: tasks.Task) -> None:
    seen: dict[str, str] = {}
    for split in SPLITS:
        for pair in load_pairs(task, split):
            for said in [pair.inputs] if task.labels else [pair.inputs, pair.accepted[0]]:
                assert seen.setdefault(said.lower(), split) == split, f"{said!r} is in {seen[said.lower()]} and {split}"


def test_both_tasks_test_on_the_same_side() -> None:
    """A docstring tested on in one task is not trained on in the other."""
    sides: dict[str, str] = {}
    for name in ("stdlib_topic", "stdlib_summary"):
        for split in SPLITS:
            for row in tasks.get(name).sources[split].rows():
                assert sides.setdefault(row["name"], split) == split


def test_order_and_content_are_fixed(task: tasks.Task) -> None:
    assert load_pairs(task, "test") == load_pairs(task, "test")
    assert load_pairs(task, "train", limit=20) == load_pairs(task, "train")[:20]


def test_sizes(task: tasks.Task) -> None:
    sizes = {split: len(load_pairs(task, split)) for split in SPLITS}
    least = {"stdlib_topic": (1500, 300, 300), "stdlib_summary": (700, 150, 150)}[task.name]
    assert all(size >= wanted for size, wanted in zip(sizes.values(), least, strict=True)), sizes
    assert 0.6 < sizes["train"] / sum(sizes.values()) < 0.8


def test_topics_are_balanced_and_mixed() -> None:
    task = tasks.get("stdlib_topic")
    counts = Counter(pair.accepted[0] for split in SPLITS for pair in load_pairs(task, split))
    assert set(counts) == set(task.labels or ())
    assert max(counts.values()) <= 1.5 * min(counts.values())
    assert len({pair.accepted[0] for pair in load_pairs(task, "train", limit=40)}) >= 6  # a limit is a fair sample


def test_topics_can_be_learned() -> None:
    """Words alone tell most topics: a linear model is the second line a network has to cross, after the baseline."""
    task = tasks.get("stdlib_topic")
    train, test = load_pairs(task, "train"), load_pairs(task, "test")
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2))
    model = LogisticRegression(C=20, max_iter=500)
    model.fit(words.fit_transform([pair.inputs for pair in train]), [pair.accepted[0] for pair in train])
    found = model.predict(words.transform([pair.inputs for pair in test]))
    assert task.metrics[0].score(found.tolist(), [pair.accepted for pair in test]) > 70


def test_no_package_is_in_two_areas() -> None:
    listed = [package for packages in stdlib.PACKAGES.values() for package in packages.split()]
    assert len(listed) == len(set(listed))


def test_the_split_is_the_names_alone() -> None:
    names = [f"module{n}:function" for n in range(20_000)]
    counts = Counter(map(stdlib.split_of, names))
    for split, share in stdlib.SHARES.items():
        assert counts[split] / len(names) == pytest.approx(share / 100, abs=0.01)
    assert sum(stdlib.SHARES.values()) == 100


def test_origins_name_the_python(task: tasks.Task) -> None:
    assert load(task, "test", limit=1).origin.startswith("builtin:python[test] of Python 3.")


def test_a_label_beside_the_set_is_refused() -> None:
    with pytest.raises(UserError, match="'windows' is not one of concurrency, files"):
        stdlib.topic_pair({"text": "a", "label": "windows"})


def test_what_is_tested_on_is_not_in_the_training_prose() -> None:
    """But for the few texts whose one sentence also stands inside a longer text of the same family (os.execvp)."""
    read = " ".join(" ".join(document.text.split()) for document in documents("builtin:python-train"))
    bodies = [
        pair.inputs.split(": ", 1)[1]
        for task in ("stdlib_topic", "stdlib_summary")
        for split in ("validation", "test")
        for pair in load_pairs(get(task), split)
    ]
    assert sum(len(body) >= 60 and body in read for body in bodies) < len(bodies) / 100
