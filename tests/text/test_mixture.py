"""The law by which examples are dealt to sources: exact shares in every block, each source in its own order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.text.mixture import BLOCK, Mixture, quotas, shares

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20)


@given(WEIGHTS)
def test_quotas_add_up_and_keep_to_the_shares(weights: list[float]) -> None:
    found = np.array(quotas(weights))
    assert found.sum() == BLOCK
    assert found.min() >= 1
    exact = np.array(weights) / sum(weights) * BLOCK
    # A share is off by less than one, or by what the smallest sources' one example took away.
    assert (np.abs(found - exact) < 1 + len(weights)).all()


@given(st.lists(st.floats(0.05, 1), min_size=2, max_size=6), st.integers(0, 2**32))
def test_every_block_is_exact_and_every_source_in_order(weights: list[float], seed: int) -> None:
    mixture = Mixture(tuple(weights), seed)
    source, number = mixture.deal(np.arange(3 * BLOCK))
    for block in range(3):
        here = source[block * BLOCK : (block + 1) * BLOCK]
        assert np.bincount(here, minlength=len(weights)).tolist() == list(mixture.quotas)
    for index in range(len(weights)):
        mine = number[source == index]
        assert (mine == np.arange(len(mine))).all()


def test_any_example_can_be_asked_for() -> None:
    mixture = Mixture((0.5, 0.3, 0.2), seed=7)
    whole = mixture.deal(np.arange(4 * BLOCK))
    some = np.random.default_rng(0).integers(0, 4 * BLOCK, 500)
    for one, other in zip(mixture.deal(some), whole, strict=True):
        assert (one == other[some]).all()
    assert (Mixture((0.5, 0.3, 0.2), seed=8).deal(some)[0] != mixture.deal(some)[0]).any()


def test_short_stretches_follow_the_shares_too() -> None:
    """Counts in stretches of 64 examples: their variance is that of drawing without replacement from a block."""
    share, length = 0.3, 64
    source, _ = Mixture((share, 1 - share), seed=1).deal(np.arange(50 * BLOCK))
    counts = (source == 0).reshape(-1, length).sum(axis=1)
    expected = length * share * (1 - share) * (BLOCK - length) / (BLOCK - 1)
    assert abs(counts.mean() - length * share) < 0.05
    assert abs(counts.var() / expected - 1) < 0.1  # 3,200 stretches: a standard error of 2.5 %


def test_rules() -> None:
    assert shares("size", [300, 100]) == (0.75, 0.25)
    assert shares("equal", [300, 100]) == (0.5, 0.5)
    assert shares("0.2,0.6", [300, 100]) == pytest.approx((0.25, 0.75))
    assert shares("temperature=1", [300, 100]) == (0.75, 0.25)
    flat = shares("temperature=1000", [300, 100])
    assert flat == pytest.approx((0.5, 0.5), abs=1e-3)


@pytest.mark.parametrize("rule", ["sise", "temperature=", "temperature=0", "0.5,-1", "0.5,nan", "1,2,3"])
def test_mistakes(rule: str) -> None:
    with pytest.raises(UserError, match=r"mixture '"):
        shares(rule, [1, 2])
