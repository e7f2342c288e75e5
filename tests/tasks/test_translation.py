"""BLEU and chrF: our formulas over resamples equal sacrebleu's over the same texts, and its tools are fetched late."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from deepnarrow.tasks import Pair, metrics, translation
from deepnarrow.tasks.significance import bootstrap, compare

SENTENCE = st.lists(st.sampled_from(["the", "cat", "sat", "on", "a", "mat", "3.5", "-", "it's", "U.S."]), max_size=12)
TEXT = SENTENCE.map(" ".join)
CORPUS = st.lists(st.tuples(TEXT, st.lists(TEXT, min_size=1, max_size=3)), min_size=1, max_size=6)
SCORERS = {
    "bleu": lambda: BLEU(tokenize="intl", force=True),
    "bleu_13a": lambda: BLEU(force=True),  # sacrebleu's default
    "chrf": lambda: CHRF(),
}


def theirs(name: str, predictions: list[str], references: list[list[str]]) -> tuple[float, str]:
    most = max(map(len, references))
    padded = [[*many, *[None] * (most - len(many))] for many in references]
    scorer = SCORERS[name]()
    score = scorer.corpus_score(predictions, [list(stream) for stream in zip(*padded, strict=True)]).score
    return score, str(scorer.get_signature())


@pytest.mark.parametrize("name", SCORERS)
@settings(max_examples=60, deadline=None)
@given(CORPUS)
def test_score_and_signature_are_sacrebleus(name: str, corpus: list[tuple[str, list[str]]]) -> None:
    predictions, references = map(list, zip(*corpus, strict=True))
    metric, pairs = getattr(metrics, name), [Pair("", many) for many in references]
    score, signature = theirs(name, predictions, references)
    assert metric.score(predictions, references) == pytest.approx(score, abs=1e-9)
    assert metric.signature(pairs) == signature


@pytest.fixture(scope="module")
def corpus() -> tuple[list[str], list[list[str]]]:
    """Forty segments of Zipfian words, predictions with a third of the words drawn anew."""
    generator = np.random.default_rng(0)
    words = np.array([f"w{number}" for number in range(60)])
    share = 1 / np.arange(1, 61)
    references, predictions = [], []
    for _ in range(40):
        n = generator.integers(6, 25)
        reference = generator.choice(words, n, p=share / share.sum())
        other = generator.choice(words, n, p=share / share.sum())
        references.append([" ".join(reference)])
        predictions.append(" ".join(np.where(generator.random(n) < 0.33, other, reference)))
    return predictions, references


@pytest.mark.parametrize("name", SCORERS)
def test_every_resample_is_scored_as_sacrebleu_would(name: str, corpus: tuple[list[str], list[list[str]]]) -> None:
    predictions, references = corpus
    metric = getattr(metrics, name)
    items = metric.items(predictions, [Pair("", many) for many in references])
    rows = np.random.default_rng(1).integers(0, len(items), size=(12, len(items)))
    for row, score in zip(rows, metric.combine.resampled(items, rows), strict=True):
        expected, _ = theirs(name, [predictions[i] for i in row], [references[i] for i in row])
        assert score == pytest.approx(expected, abs=1e-9)


def test_smoothing_minds_the_number_of_segments() -> None:
    """No 4-gram in common: the smoothed precision falls with the size of the corpus, so means would not do."""
    one = [("a b c x e f", ["a b c y e f"])]
    for many in (one, one * 7):
        predictions, references = map(list, zip(*many, strict=True))
        assert metrics.bleu.score(predictions, references) == pytest.approx(theirs("bleu", predictions, references)[0])
    assert metrics.bleu.score(*map(list, zip(*one, strict=True))) > metrics.bleu.score(
        *map(list, zip(*(one * 7), strict=True))
    )


def test_intervals_and_comparisons_are_of_the_corpus_score(corpus: tuple[list[str], list[list[str]]]) -> None:
    predictions, references = corpus
    pairs = [Pair("", many) for many in references]
    good = metrics.bleu.items(predictions, pairs)
    poor = metrics.bleu.items([" ".join(reversed(text.split())) for text in predictions], pairs)
    found = bootstrap(good, metrics.bleu.combine)
    assert found.value == pytest.approx(metrics.bleu.score(predictions, pairs))
    assert found.low < found.value < found.high
    verdict = compare({"good": [good], "poor": [poor]}, metrics.bleu.combine, samples=500)["good", "poor"]
    assert verdict.p == pytest.approx(1 / 501)
    assert verdict.difference.low > 0


def test_no_reference_and_no_prediction() -> None:
    assert metrics.bleu.score([""], [["a b c d"]]) == metrics.bleu.score(["a b c d"], [[]]) == 0
    assert translation.chrf_rows([], []).shape == (0, 18)
    with pytest.raises(ValueError, match="longer"):
        translation.bleu_rows(["a"], [], "intl")


def test_sacrebleu_is_imported_only_where_it_is_wanted() -> None:
    script = "import sys; from deepnarrow.tasks import names; names(); print('sacrebleu' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
