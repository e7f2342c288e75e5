"""Sampling: the distribution is the one asked for, and each answer has a generator of its own."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.decode import Greedy, Sample, generate
from deepnarrow.model.inference import pad
from deepnarrow.model.init import initialise
from deepnarrow.model.sample import draw, nucleus_edge, shares
from deepnarrow.model.t5 import T5
from deepnarrow.shapes.shape import parse

DRAWS = 3000


@pytest.fixture(scope="module")
def model() -> T5:
    model = T5(parse("tiny-nl1-dm32-ff64-kv8-v40-untied"))
    initialise(model, seed=1)
    return model.eval()


def texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [[*rng.integers(3, 40, rng.integers(1, 9)).tolist(), 1] for _ in range(count)]


def first_logits(model: T5, source: list[int]) -> Tensor:
    with torch.no_grad():
        return model(torch.tensor([source]), torch.zeros(1, 1, dtype=torch.long))[:, 0]


def first_tokens(model: T5, search: Sample) -> np.ndarray:
    """How often each id came first in many answers to one input."""
    [outputs] = generate(model, [[7, 8, 1]], search, max_tokens=1)
    return np.bincount([output.ids[0] if output.ids else 1 for output in outputs], minlength=40)


def chi_square(counts: np.ndarray, expected: np.ndarray) -> float:
    """Pearson's statistic less its mean, in its own standard deviations."""
    common = expected * counts.sum() >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum()) * counts.sum()
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    freedom = len(wanted) - 1
    return (((observed - wanted) ** 2 / wanted).sum() - freedom) / math.sqrt(2 * max(freedom, 1))


@pytest.mark.parametrize(
    "search",
    [
        Sample(num_return=DRAWS),
        Sample(temperature=0.5, num_return=DRAWS),
        Sample(temperature=3.0, num_return=DRAWS, seed=4),
        Sample(top_k=5, num_return=DRAWS),
        Sample(top_p=0.6, num_return=DRAWS),
        Sample(temperature=1.5, top_k=9, top_p=0.7, num_return=DRAWS),
    ],
    ids=str,
)
def test_ids_come_as_often_as_they_should(model: T5, search: Sample) -> None:
    share = torch.softmax(first_logits(model, [7, 8, 1])[0].double() / search.temperature, -1).numpy()
    order = np.argsort(-share)
    kept = order[: search.top_k]
    if search.top_p is not None:
        within = share[kept] / share[kept].sum()
        kept = kept[np.cumsum(within) - within < search.top_p]
    expected = np.zeros(40)
    expected[kept] = share[kept] / share[kept].sum()
    counts = first_tokens(model, search)
    assert counts[expected == 0].sum() == 0
    assert chi_square(counts, expected) < 4
    if search.top_p is not None or search.top_k is not None:
        assert set(np.flatnonzero(counts)) == set(kept), "every id inside the cut is met"


def test_the_statistic_notices_a_wrong_temperature(model: T5) -> None:
    share = torch.softmax(first_logits(model, [7, 8, 1])[0].double(), -1).numpy()
    assert chi_square(first_tokens(model, Sample(temperature=1.2, num_return=DRAWS)), share) > 6


@pytest.mark.parametrize("vocab", [7, 40, 2000])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [
        (1.0, 3, None),
        (0.7, None, 0.9),
        (2.0, 50, 0.5),
        (1.0, None, 1e-9),
        (1.0, 1, 0.3),
        (1.0, None, 0.9999),
        (1, 600, 1),
    ],
)
def test_the_cut_is_that_of_transformers(vocab: int, temperature: float, top_k: int | None, top_p: float) -> None:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(20, vocab, generator=torch.Generator().manual_seed(vocab)) * 3
    theirs = TemperatureLogitsWarper(float(temperature))(None, logits)
    if top_k is not None:
        theirs = TopKLogitsWarper(top_k)(None, theirs)
    if top_p is not None:
        theirs = TopPLogitsWarper(float(top_p))(None, theirs)
    ours = shares(logits, temperature, top_k, top_p)
    torch.testing.assert_close(ours / ours.sum(-1, keepdim=True), theirs.softmax(-1), rtol=1e-4, atol=1e-6)
    # In each row an id on the very edge may fall to either side by rounding; more may not.
    assert ((ours > 0) != theirs.isfinite()).sum(dim=-1).max() <= 1


def test_the_nucleus_is_the_smallest_that_holds_enough() -> None:
    """Flat and peaked rows together in one batch."""
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.01, 6, 12)[:, None]
    share = logits.double().softmax(-1)
    for top_p in (0.1, 0.5, 0.95):
        kept = share >= nucleus_edge(share, top_p)
        held = (share * kept).sum(-1)
        least = share.where(kept, 2.0).amin(-1)
        assert (held >= top_p).all()
        assert (held - least < top_p).all()
        alone = torch.cat([nucleus_edge(row[None], top_p) for row in share])
        assert (alone == nucleus_edge(share, top_p)).all()


def test_equal_logits_are_kept_together() -> None:
    """So an answer cannot depend on the order in which a sort leaves them."""
    logits = torch.tensor([[1.0, 2.0, 1.0, 1.0, 0.0]])
    assert (shares(logits, 1.0, 2, None) > 0).tolist() == [[True, True, True, True, False]]
    assert (shares(logits, 1.0, None, 0.5) > 0).tolist() == [[True, True, True, True, False]]


def test_a_draw_is_never_one_without_share() -> None:
    share = torch.tensor([[0.0, 1e-30, 0.0, 0.5, 0.0]]).repeat(3, 1)
    ends = torch.tensor([0.0, 0.5, 1 - 2**-40], dtype=torch.float64)
    assert draw(share, ends).tolist() == [1, 3, 3]
    flat = torch.full((1, 32128), 1 / 32128)
    assert draw(flat, ends[2:]).tolist() == [32127]


@pytest.mark.parametrize("top_p", [None, 0.9])
def test_an_answer_does_not_depend_on_its_neighbours(model: T5, top_p: float | None) -> None:
    inputs = texts(20)
    search = Sample(temperature=1.3, top_p=top_p, seed=11)
    found = generate(model, inputs, search, max_tokens=9, batch=16)
    assert len({len(outputs[0].ids) for outputs in found}) > 1
    for batch in (1, 3, 20):
        again = generate(model, inputs, search, max_tokens=9, batch=batch)
        assert [outputs[0].ids for outputs in again] == [outputs[0].ids for outputs in found]
    others = texts(20, seed=1)
    mixed = [inputs[row] if row % 2 else others[row] for row in range(20)]
    again = generate(model, mixed, search, max_tokens=9, batch=5)
    assert [outputs[0].ids for outputs in again][1::2] == [outputs[0].ids for outputs in found][1::2]
    assert [outputs[0].ids for outputs in generate(model, inputs[:3], search, max_tokens=9)] == [
        outputs[0].ids for outputs in found[:3]
    ]


def test_seeds_rows_and_answers_differ(model: T5) -> None:
    same = [[7, 8, 1]] * 6
    first = generate(model, same, Sample(seed=0, num_return=3), max_tokens=9)
    assert first == generate(model, same, Sample(seed=0, num_return=3), max_tokens=9)
    assert len({tuple(output.ids) for outputs in first for output in outputs}) > 15
    assert first != generate(model, same, Sample(seed=1, num_return=3), max_tokens=9)
    fewer = generate(model, same, Sample(seed=0), max_tokens=9)
    assert [outputs[0].ids for outputs in fewer] == [outputs[0].ids for outputs in first]
    shorter = generate(model, same, Sample(seed=0), max_tokens=4)
    assert [outputs[0].ids for outputs in shorter] == [outputs[0].ids[:4] for outputs in fewer]


@pytest.mark.parametrize("temperature", [0.0, 1e-9, 1e-5])
def test_cold_sampling_is_greedy(model: T5, temperature: float) -> None:
    inputs = texts(12)
    greedy = generate(model, inputs, Greedy(), max_tokens=9)
    for search in (Sample(temperature), Sample(temperature, top_k=4, top_p=0.9), Sample(5.0, top_k=1)):
        found = generate(model, inputs, search, max_tokens=9)
        assert [outputs[0].ids for outputs in found] == [outputs[0].ids for outputs in greedy]


def test_the_score_is_before_temperature_and_cut(model: T5) -> None:
    [[output]] = generate(model, [[7, 8, 1]], Sample(temperature=4.0, top_k=3), max_tokens=1)
    logs = first_logits(model, [7, 8, 1]).log_softmax(-1)[0]
    assert output.score == pytest.approx(logs[output.ids[0] if output.ids else 1].item(), abs=1e-5)


def test_min_tokens_keeps_the_end_away(model: T5) -> None:
    found = generate(model, texts(30), Sample(temperature=9.0), max_tokens=30, min_tokens=7)
    assert min(len(outputs[0].ids) for outputs in found) >= 7
    assert pad([outputs[0].ids for outputs in found]).shape[1] <= 30


def test_mistakes_teach() -> None:
    for wrong, message in [
        ({"temperature": -1.0}, "temperature must be 0 or more"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, "top_p must be above 0"),
        ({"top_p": 1.5}, "at most 1"),
        ({"seed": -1}, "seed"),
        ({"num_return": 0}, "num_return"),
    ]:
        with pytest.raises(UserError, match=message):
            Sample(**wrong)
