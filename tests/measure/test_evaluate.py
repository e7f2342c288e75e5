"""Evaluation: the same scores at every batch size, a model that knows scores 100, and records that say all."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.measure.evaluate import LIKELIHOOD, evaluate
from deepnarrow.measure.ledger import append, read
from deepnarrow.model.decode import Beam, Greedy, generate
from deepnarrow.model.folder import Opened
from deepnarrow.model.init import initialise
from deepnarrow.model.likelihood import score
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair, Task
from deepnarrow.tasks.significance import bootstrap, wilson
from deepnarrow.text.batches import encode_pairs, padded
from deepnarrow.text.tokenizer import ByteTokenizer

SHAPE = parse("tiny-nl1-dm32-ff64-nh2-kv16-v384")
REVIEWS = [
    Pair(f"sst2 sentence: {text}", [label])
    for text, label in [
        ("good", "positive"), ("bad film", "negative"), ("very good indeed", "positive"), ("bad", "negative"),
        ("not so bad a film as they said it was", "positive"),
    ]
]  # fmt: skip
QUESTIONS = [
    Pair("nq question: who", ["Ada", "Lady Lovelace"]),
    Pair("nq question: when was it, and was it so", ["1843"]),
    Pair("nq question: where", ["Turin", "Ada"]),
]


@pytest.fixture(scope="module")
def blank() -> Opened:
    """A model that has learned nothing."""
    model = T5(SHAPE)
    initialise(model, seed=1)
    return Opened(model.eval(), ByteTokenizer(), SHAPE, "nowhere")


@pytest.fixture(scope="module")
def knowing() -> Opened:
    """A model that has learned the items above by heart."""
    torch.manual_seed(0)
    model, tokenizer = T5(SHAPE), ByteTokenizer()
    initialise(model, seed=0)
    pairs = encode_pairs([(pair.inputs, pair.accepted[0]) for pair in REVIEWS + QUESTIONS], tokenizer, 64, 16)
    inputs, targets = (torch.from_numpy(padded(side)) for side in zip(*pairs, strict=True))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(250):
        optimizer.zero_grad()
        logits = model(inputs, targets)
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=0)
        loss.backward()
        optimizer.step()
    return Opened(model.eval(), tokenizer, SHAPE, "by/heart")


def sst2(**changes: object) -> Task:
    return replace(tasks.get("sst2"), **changes)


def nq(**changes: object) -> Task:
    return replace(tasks.get("nq_open"), **changes)


def test_a_model_that_knows_scores_100(knowing: Opened) -> None:
    labels = evaluate(knowing, sst2(), REVIEWS, progress=False)
    answers = evaluate(knowing, nq(), QUESTIONS, progress=False)
    assert [one.prediction for one in labels.predictions] == [pair.accepted[0] for pair in REVIEWS]
    assert [one.prediction for one in answers.predictions] == [pair.accepted[0] for pair in QUESTIONS]
    assert labels.main == labels.scores["accuracy"] == wilson(5, 5)
    assert {name: found.value for name, found in answers.scores.items()} == {"exact_match": 100, "token_f1": 100}


def test_matthews_of_a_model_that_knows(knowing: Opened) -> None:
    task = sst2(metrics=tasks.get("cola").metrics)
    found = evaluate(knowing, task, REVIEWS, progress=False)
    assert found.main.value == pytest.approx(100)
    assert set(found.predictions[0].scores) == {"accuracy"}  # Matthews' is no sum over items
    assert found.baseline["matthews"] == 0


@pytest.mark.parametrize("task", [sst2, nq], ids=["labels", "text"])
@pytest.mark.parametrize("batch", [1, 2, 32, None])
def test_the_batch_does_not_matter(blank: Opened, task: Callable[[], Task], batch: int | None) -> None:
    pairs = REVIEWS + QUESTIONS
    found = evaluate(blank, task(), pairs, batch=batch, progress=False)
    for number, (one, pair) in enumerate(zip(found.predictions, pairs, strict=True)):
        alone = evaluate(blank, task(), [pair], batch=1, progress=False).predictions[0]
        assert (one.number, one.prediction, one.scores) == (number, alone.prediction, alone.scores)
        assert one.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        assert one.probabilities == (alone.probabilities and pytest.approx(alone.probabilities, abs=1e-4))


def test_labels_are_chosen_by_likelihood(blank: Opened) -> None:
    tokenizer, task = ByteTokenizer(), sst2()
    ids = [[*tokenizer.encode(pair.inputs), 1] for pair in REVIEWS]
    table = np.array([score(blank.model, ids, [[*tokenizer.encode(one), 1]] * len(ids)) for one in task.labels])
    expected = [task.labels[place] for place in table.argmax(0)]
    found = evaluate(blank, task, REVIEWS, progress=False)
    assert [one.prediction for one in found.predictions] == expected
    assert found.search == LIKELIHOOD


def test_label_probabilities_are_the_likelihoods_shares(knowing: Opened, blank: Opened) -> None:
    tokenizer, task = ByteTokenizer(), sst2()
    found = evaluate(blank, task, REVIEWS, progress=False)
    ids = [*tokenizer.encode(REVIEWS[1].inputs), 1]
    nats = score(blank.model, [ids, ids], [[*tokenizer.encode(one), 1] for one in task.labels or ()])
    each = np.exp(nats) / np.exp(nats).sum()
    probabilities = found.predictions[1].probabilities
    assert probabilities == pytest.approx(dict(zip(task.labels or (), each, strict=True)), abs=1e-5)
    right = [one.probabilities[one.accepted[0]] for one in found.predictions if one.probabilities]
    assert found.more["gold_probability"].value == pytest.approx(100 * np.mean(right))
    assert found.more["gold_probability"].low < found.more["gold_probability"].value
    sure = evaluate(knowing, task, REVIEWS, progress=False).more
    assert sure["gold_probability"].value > 99
    assert sure["ece"].value == pytest.approx(100 - sure["gold_probability"].value, abs=1e-6)  # all right, all so sure


def test_as_t5_generates_labels(blank: Opened, knowing: Opened) -> None:
    beside = evaluate(blank, sst2(), REVIEWS, as_t5=True, progress=False)
    assert beside.main.value == 0  # what it writes is no label
    assert evaluate(blank, sst2(), REVIEWS, progress=False).main.value > 0
    assert beside.search == repr(Greedy())
    assert beside.predictions[0].probabilities is None
    assert evaluate(knowing, sst2(), REVIEWS, as_t5=True, progress=False).main.value == 100
    wide = evaluate(blank, nq(beam=3), QUESTIONS, as_t5=True, progress=False)
    assert wide.search == repr(Beam(3, length_penalty=0.6, normaliser="wu", early_stopping="never"))
    assert evaluate(blank, nq(beam=3), QUESTIONS, progress=False).search == repr(Greedy())


def test_likelihoods_of_answers(blank: Opened) -> None:
    found = evaluate(blank, nq(), [*QUESTIONS, Pair("x", ["no"], negated=True)], likelihood=True, progress=False)
    tokenizer = ByteTokenizer()
    rows = [[*tokenizer.encode(pair.inputs), 1] for pair in QUESTIONS]
    targets = [[*tokenizer.encode(pair.accepted[0]), 1] for pair in QUESTIONS]
    nats = score(blank.model, rows, targets)
    assert [one.log_likelihood for one in found.predictions] == [*(pytest.approx(one, abs=1e-4) for one in nats), None]
    tokens, size = sum(map(len, targets)), sum(len(pair.accepted[0]) for pair in QUESTIONS)
    assert found.more["perplexity"].value == pytest.approx(np.exp(-sum(nats) / tokens), rel=1e-4)
    assert found.more["bits_per_byte"].value == pytest.approx(-sum(nats) / np.log(2) / size, rel=1e-4)
    assert found.more["perplexity"].n == 3


def test_equal_inputs_are_answered_once(blank: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    encode = T5.encode

    def counted(self: T5, ids: torch.Tensor, *rest: object, **named: object) -> torch.Tensor:
        seen.append(len(ids))
        return encode(self, ids, *rest, **named)

    monkeypatch.setattr(T5, "encode", counted)
    found = evaluate(blank, nq(), [*QUESTIONS, *QUESTIONS], progress=False)
    assert sum(seen) == len(QUESTIONS)
    assert [one.prediction for one in found.predictions[:3]] == [one.prediction for one in found.predictions[3:]]
    assert [one.number for one in found.predictions] == list(range(6))


def test_grouped_and_whole_set_metrics(knowing: Opened) -> None:
    """MultiRC's metrics judge the answers of one question together."""
    pairs = [pair._replace(group="one" if place < 3 else "two") for place, pair in enumerate(REVIEWS)]
    wrong = [*pairs[:4], pairs[4]._replace(accepted=["negative"])]
    task = sst2(metrics=(tasks.get("multirc").metrics[1], tasks.get("sst2").metrics[0]))
    found = evaluate(knowing, task, wrong, progress=False)
    assert found.main.value == 50
    assert found.main.n == 2
    assert found.scores["accuracy"].value == 80
    assert set(found.predictions[0].scores) == {"accuracy"}
    assert found.predictions[4].pair == wrong[4]


def test_text_is_generated_as_asked(blank: Opened) -> None:
    tokenizer, task = ByteTokenizer(), nq()
    ids = [[*tokenizer.encode(pair.inputs), 1] for pair in QUESTIONS]
    for search in (Greedy(), Beam(3)):
        outputs = generate(blank.model, ids, search, max_tokens=7, vocab_limit=tokenizer.size)
        found = evaluate(blank, task, QUESTIONS, search=search, max_tokens=7, progress=False)
        assert [one.prediction for one in found.predictions] == [tokenizer.decode(many[0].ids) for many in outputs]
        assert found.search == repr(search)


def test_long_inputs_are_cut_and_counted(blank: Opened) -> None:
    pairs = [Pair("x" * 15, ["a"]), Pair("x" * 16, ["a"]), Pair("x" * 40, ["a"])]
    found = evaluate(blank, nq(input_tokens=16), pairs, progress=False)
    assert found.truncated == 2  # 15 letters and EOS are 16
    assert found.predictions[1].prediction == found.predictions[0].prediction == found.predictions[2].prediction
    assert found.predictions[2].inputs == "x" * 40


def test_baselines_stand_beside(blank: Opened) -> None:
    labels = evaluate(blank, sst2(), REVIEWS, progress=False)
    assert (labels.baseline_name, labels.baseline) == ("commonest label", {"accuracy": 60})
    answers = evaluate(blank, nq(), QUESTIONS, progress=False)
    assert answers.baseline["exact_match"] == pytest.approx(200 / 3)  # "Ada" is right twice
    assert answers.scores["exact_match"] == wilson(0, 3)


def test_the_seed_and_samples_make_the_interval(blank: Opened) -> None:
    task = nq(metrics=tasks.get("xsum").metrics)
    pairs = [Pair(f"summarize: {word}", [f"{word} a b c"]) for word in "pqrstuvw"]
    tokens = {pair.accepted[0]: place / 7 for place, pair in enumerate(pairs)}
    graded = replace(
        task.metrics[0], items=lambda predictions, pairs: np.array([tokens[pair.accepted[0]] for pair in pairs])
    )
    task = replace(task, metrics=(graded,))
    found = evaluate(blank, task, pairs, seed=5, samples=50, progress=False)
    assert found.main == bootstrap(np.arange(8) / 7, samples=50, seed=5)
    assert found.main != evaluate(blank, task, pairs, seed=6, samples=50, progress=False).main


def test_predictions_are_written_whole(knowing: Opened, tmp_path: Path) -> None:
    found = evaluate(knowing, nq(), QUESTIONS, progress=False)
    path = tmp_path / "new" / "predictions.jsonl"
    found.write_predictions(path)
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert rows[1] | {"log_probability": 0} == {
        "number": 1, "inputs": QUESTIONS[1].inputs, "accepted": ["1843"], "prediction": "1843",
        "scores": {"exact_match": 1.0, "token_f1": 1.0}, "input_tokens": 40, "log_probability": 0, "negated": False,
    }  # fmt: skip
    assert len(rows) == found.n == 3


def test_records_say_what_was_measured(knowing: Opened, tmp_path: Path) -> None:
    found = evaluate(knowing, sst2(metrics=tasks.get("cola").metrics), REVIEWS, progress=False)
    records = found.records(
        model="by/heart", shape=str(SHAPE), split="test", seed=3, parameters=7,
        conditions={"limit": 5}, extra={"data": "here"},
    )  # fmt: skip
    append(tmp_path / "ledger.jsonl", records)
    first, second = read(tmp_path / "ledger.jsonl")
    assert (first.kind, first.metric, first.value, first.unit) == ("score", "matthews", pytest.approx(100), "%")
    assert (second.low, second.high, second.n) == (wilson(5, 5).low, 100, 5)
    assert (first.task, first.task_version, first.split, first.seed, first.parameters) == ("sst2", 1, "test", 3, 7)
    assert first.conditions == {"limit": 5}
    assert second.extra["baseline"] == 60
    assert second.extra["data"] == "here"
    assert first.versions
    assert first.machine


def test_what_cannot_be_scored_is_refused(blank: Opened) -> None:
    with pytest.raises(UserError, match="no tokenizer"):
        evaluate(blank._replace(tokenizer=None), nq(), QUESTIONS, progress=False)
    with pytest.raises(UserError, match="no pairs"):
        evaluate(blank, nq(), [], progress=False)
