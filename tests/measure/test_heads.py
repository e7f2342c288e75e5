"""Scores of encoders with a head: the same metrics as any model's, and retrieval by vectors."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from deepnarrow import tasks
from deepnarrow.errors import UserError
from deepnarrow.measure.heads import evaluate_head, ranked
from deepnarrow.measure.likeness import similarity
from deepnarrow.model.encoding import embed, probabilities, tags
from deepnarrow.model.heads import Head, OpenedHead, with_head
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.tasks import Pair
from deepnarrow.text.tokenizer import load

TEXTS = [f"sst2 sentence: {words}" for words in ("so good", "so bad", "a film", "an old film about nothing", "x", "y")]


@pytest.fixture
def made() -> Callable[[Head], OpenedHead]:
    def build(head: Head) -> OpenedHead:
        torch.manual_seed(0)
        model = T5(parse("tiny-nl1-dm32-ff64-kv8-nh4-v384"))
        initialise(model, 4)
        headed = with_head(model, head, seed=1).eval()
        return OpenedHead(headed, load("bytes"), head, headed.shape, "made here")

    return build


def test_a_classifier_by_its_likeliest_label(made: Callable) -> None:
    opened = made(Head(kind="classify", labels=("negative", "positive"), input_tokens=30))
    pairs = [Pair(text, ["positive" if n % 2 else "negative"]) for n, text in enumerate(TEXTS)]
    found = evaluate_head(opened, tasks.get("sst2"), pairs, progress=False)
    shares = probabilities(opened, TEXTS)
    right = [pair.accepted[0] == opened.head.labels[best] for pair, best in zip(pairs, shares.argmax(1), strict=True)]
    assert found.main.value == pytest.approx(100 * np.mean(right))
    assert found.main.low < found.main.value < found.main.high or found.main.value in (0, 100)
    assert found.baseline["accuracy"] == 50
    assert found.truncated == 1
    for one, row in zip(found.predictions, shares, strict=True):
        assert list(one.probabilities or {}) == ["negative", "positive"]
        assert list((one.probabilities or {}).values()) == pytest.approx(row.tolist())
        assert one.log_probability == pytest.approx(float(np.log(row.max())))
    assert found.more["gold_probability"].n == len(pairs)


def test_a_tagger_by_its_tags(made: Callable) -> None:
    opened = made(Head(kind="tag", labels=("O", "B-NAME", "I-NAME"), input_tokens=16))
    pairs = [Pair("Ada wrote to Charles Babbage again", ["B-NAME O O B-NAME I-NAME O"]), Pair("so it is", ["O O O"])]
    found = evaluate_head(opened, tasks.get("stdlib_names"), pairs, progress=False)
    wanted = [" ".join(one.tags) for one in tags(opened, [pair.inputs.split(" ") for pair in pairs])]
    assert [one.prediction for one in found.predictions] == wanted
    assert {*found.scores} == {"entity_f1", "entity_precision", "entity_recall", "token_accuracy"}
    assert found.baseline["token_accuracy"] == pytest.approx(100 * 6 / 9)


def test_vectors_by_retrieval(made: Callable) -> None:
    opened = made(Head(kind="embed"))
    same = [Pair(text, [text]) for text in TEXTS]
    perfect = evaluate_head(opened, tasks.get("nq_open"), same, progress=False)
    assert [score.value for score in perfect.scores.values()] == [100, 100]
    assert perfect.baseline["retrieval_accuracy"] == pytest.approx(100 / 6)
    assert perfect.baseline["mrr"] == pytest.approx(100 * np.mean([1 / rank for rank in range(1, 7)]))
    shifted = [Pair(text, [TEXTS[n - 1]]) for n, text in enumerate(TEXTS)]
    found = evaluate_head(opened, tasks.get("nq_open"), shifted, progress=False)
    vectors = embed(opened, TEXTS, normalise=True)
    ranks = [1 + int((vectors @ row >= vectors[n - 1] @ row - 1e-7).sum()) - 1 for n, row in enumerate(vectors)]
    assert found.scores["retrieval_accuracy"].value == 0
    assert found.scores["mrr"].value == pytest.approx(100 * np.mean([1 / rank for rank in ranks]))
    assert [one.prediction for one in found.predictions] == TEXTS  # each text is nearest to itself


def test_an_answer_that_is_accepted_twice_counts_once() -> None:
    kept = np.eye(4)
    nearest, ranks = ranked(np.array([[0.5, 0.9, 0.8, 0.1]]), kept, [[2, 3]])
    assert (nearest.tolist(), ranks.tolist()) == ([1], [2])
    assert ranked(np.ones((1, 4)), kept, [[0]])[1].tolist() == [4]  # all alike: the last of them


def test_similarity_is_spearmans(made: Callable) -> None:
    opened = made(Head(kind="embed"))
    seconds, gold = TEXTS[::-1], [0.0, 3.5, 2.0, 5.0, 1.0, 4.0]
    a, b = (embed(opened, texts, normalise=True) for texts in (TEXTS, seconds))
    found = similarity(a, b, gold, samples=50)
    cosines = (a.astype(np.float64) * b).sum(1)
    assert found.value == pytest.approx(100 * spearmanr(cosines, gold).statistic)
    assert found.low <= found.value <= found.high


def test_mistakes(made: Callable) -> None:
    opened = made(Head(kind="classify", labels=("negative", "positive"), task="sst2"))
    with pytest.raises(UserError, match="none of which answers task rte; it was trained on sst2"):
        evaluate_head(opened, tasks.get("rte"), [Pair("rte", ["entailment"])], progress=False)
    with pytest.raises(UserError, match="there are no pairs"):
        evaluate_head(opened, tasks.get("sst2"), [], progress=False)
    with pytest.raises(UserError, match="two different answers"):
        evaluate_head(made(Head(kind="embed")), tasks.get("sst2"), [Pair("a", ["b"])], progress=False)
