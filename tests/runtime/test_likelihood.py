"""Likelihoods over an engine are those of model/likelihood.py, and what choices have in common is read once."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.model import likelihood
from deepnarrow.model.t5 import T5
from deepnarrow.runtime.engine import Chosen, Engine
from deepnarrow.runtime.likelihood import probabilities, rank, score
from deepnarrow.runtime.memories import Memories


@pytest.fixture(scope="session")
def model(trained: Callable[..., T5]) -> T5:
    return trained()


@pytest.fixture(scope="session")
def engine(engine_of: Callable[..., Engine], model: T5) -> Engine:
    return engine_of(model)


@pytest.fixture(scope="session")
def inputs(texts: Callable[..., list[list[int]]], model: T5) -> list[list[int]]:
    return texts(model)


def test_likelihoods_equal_the_models(engine: Engine, model: T5, inputs: list[list[int]]) -> None:
    targets = [[*row[: 1 + number % 5], 1] for number, row in enumerate(reversed(inputs))]
    for normalise in (False, True):
        np.testing.assert_allclose(
            score(engine, inputs, targets, normalise=normalise),
            likelihood.score(model, inputs, targets, normalise=normalise),
            rtol=1e-4,
            atol=1e-4,
        )
    choices = [[5, 1], [5, 6, 1], [5, 6, 7, 8, 1], [9, 1], [1], [5, 6, 9, 1], [40, 41, 42, 1], [5, 1]]
    for normalise in (False, True):
        found = rank(engine, inputs, choices, normalise=normalise)
        expected = likelihood.rank(model, inputs, choices, normalise=normalise)
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert rank(engine, [], choices).shape == (0, 8)


def test_likelihood_of_ids_that_are_never_generated(engine_of: Callable[..., Engine], model: T5) -> None:
    engine = engine_of(model, vocab_limit=50)
    targets = [[60, 7, 95, 1]]
    np.testing.assert_allclose(score(engine, [[5, 1]], targets), likelihood.score(model, [[5, 1]], targets), rtol=1e-4)
    np.testing.assert_allclose(
        rank(engine, [[5, 1]], [*targets, [7, 1]]), likelihood.rank(model, [[5, 1]], [*targets, [7, 1]]), rtol=1e-4
    )


class Counting:
    """An engine that notes how many tokens its rows read."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.tokens = engine, 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.engine, name)

    def step(self, rows: Sequence[object], tokens: Sequence[Sequence[int]], **options: object) -> Chosen:
        self.tokens += sum(map(len, tokens))
        return self.engine.step(rows, tokens, **options)


def test_what_choices_have_in_common_is_read_once(engine: Engine) -> None:
    counting = Counting(engine)
    rank(counting, [[5, 1], [6, 7, 1]], [[10, 11, 12, 13, 1], [10, 11, 12, 14, 1], [10, 11, 12, 1]])
    assert counting.tokens == 2 * 6, "the start, three in common, one of each; the EOS is never read"


def test_many_choices_take_whole_rows_of_logits(engine: Engine, model: T5) -> None:
    choices = [[id, 1] for id in range(3, 90)]
    counting = Counting(engine)
    found = rank(counting, [[5, 1]], choices)
    np.testing.assert_allclose(found, likelihood.rank(model, [[5, 1]], choices), rtol=1e-4, atol=1e-4)
    assert counting.tokens == len(choices), "the first of each choice by logits, what follows by a mask"


def test_kept_memories_serve(engine: Engine) -> None:
    kept = Memories()
    first = score(engine, [[5, 1]], [[7, 1]], memories=kept)
    assert rank(engine, [[5, 1]], [[7, 1]], memories=kept)[0] == pytest.approx(first, rel=1e-4)
    assert (kept.hits, kept.misses) == (1, 1)


def test_shares_add_up_however_unlikely_all_are() -> None:
    np.testing.assert_allclose(probabilities(np.array([[-1000.0, -1000.0], [0.0, -900.0]])), [[0.5, 0.5], [1.0, 0.0]])


def test_mistakes_teach(engine: Engine) -> None:
    for call, message in [
        (lambda: rank(engine, [[5, 1]], []), "at least one choice"),
        (lambda: rank(engine, [[5, 1]], [[]]), "choice 1 has no tokens"),
        (lambda: rank(engine, [[96, 1]], [[5, 1]]), "input 1 holds token id 96"),
        (lambda: score(engine, [[5, 1]], []), "each input needs one target"),
        (lambda: score(engine, [[5, 1]], [[5, 96]]), "target 1 holds token id 96"),
        (lambda: score(engine, [[5, 1]], [[5, 1]], batch=0), "at least 1"),
    ]:
        with pytest.raises(UserError, match=message):
            call()
