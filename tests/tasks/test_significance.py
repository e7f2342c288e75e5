"""Intervals: where they must be exact, where they must cover, and what they refuse."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, metrics, resampling
from deepnarrow.tasks.resampling import MEAN
from deepnarrow.tasks.significance import bootstrap, difference, interval, wilson


def median(items: np.ndarray) -> float:
    return float(np.median(items))


def slow_mean(items: np.ndarray) -> float:
    return 100 * float(items.mean())


def test_the_seed_decides() -> None:
    items = np.random.default_rng(0).random(50)
    assert bootstrap(items, seed=1) == bootstrap(items, seed=1)
    assert bootstrap(items, seed=1) != bootstrap(items, seed=2)


def test_array_and_loop_give_the_same_interval() -> None:
    items = np.random.default_rng(0).random(40)
    assert bootstrap(items) == pytest.approx(bootstrap(items, slow_mean))


def test_memory_bounds_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    items = np.random.default_rng(0).random((30, 3))
    before = bootstrap(items), difference(items, items[::-1])
    monkeypatch.setattr(resampling, "CELLS", 200)
    assert bootstrap(items) == before[0]
    assert difference(items, items[::-1]) == pytest.approx(before[1], rel=1e-12)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_the_value_is_the_score_and_lies_inside(numbers: list[float]) -> None:
    items = np.array(numbers)
    for found in (bootstrap(items, samples=200), interval(items, samples=200)):
        assert found.value == MEAN(items) == pytest.approx(100 * items.mean())
        assert found.low <= found.value + 1e-9
        assert found.high >= found.value - 1e-9 or items.std() > 0
        assert found.n == len(numbers)


@pytest.mark.parametrize("items", [[0.3], [0.1] * 7, [[0.1, 1.0]] * 7])
def test_items_alike_give_no_width(items: list) -> None:
    found = bootstrap(np.array(items))
    assert found.low == found.value == found.high


def test_any_score_can_be_resampled() -> None:
    items = np.random.default_rng(0).normal(size=200)
    found = bootstrap(items, median, samples=300)
    assert found.low < found.value == np.median(items) < found.high


def test_matthews_is_resampled_as_itself() -> None:
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 60)
    guess = np.where(generator.random(60) < 0.7, truth, 1 - truth)
    items = metrics.matthews.items([str(x) for x in guess], [Pair("", [str(x)]) for x in truth])
    fast = bootstrap(items, metrics.matthews.combine, samples=200)
    slow = bootstrap(items, lambda rows: metrics.matthews.combine(rows), samples=200)
    assert fast == pytest.approx(slow)


def test_resamples_of_the_bootstrap_have_the_right_spread() -> None:
    """The standard deviation of a mean is known: s / sqrt(n). Percentiles of 95 % lie 1.96 of it off, nearly."""
    items = np.random.default_rng(3).random(400)
    found = bootstrap(items, samples=4000)
    half = 1.96 * 100 * items.std() / 20
    assert found.high - found.value == pytest.approx(half, rel=0.08)
    assert found.value - found.low == pytest.approx(half, rel=0.08)


@pytest.mark.parametrize("kind", ["bootstrap", "wilson", "difference"])
def test_intervals_cover_the_truth_about_as_often_as_they_say(kind: str) -> None:
    """200 samples of 80 items with a known mean: 95 % intervals hold it in 90 to 99 % of them."""
    generator = np.random.default_rng(11)
    covered = 0
    for run in range(200):
        if kind == "bootstrap":
            found, truth = bootstrap(generator.beta(2, 3, 80), samples=400, seed=run), 40.0
        elif kind == "wilson":
            found, truth = interval((generator.random(80) < 0.3).astype(float)), 30.0
        else:
            hard = generator.random(80)  # what the two models share
            a, b = hard * generator.random(80), hard * generator.random(80) * 0.8
            found, truth = difference(a, b, samples=400, seed=run), 100 * (0.25 - 0.2)
        covered += found.low <= truth <= found.high
    assert 180 <= covered <= 198


def test_pairing_sharpens() -> None:
    generator = np.random.default_rng(5)
    hard = generator.random(300)
    a, b = hard, np.clip(hard - 0.02, 0, 1)
    found = difference(a, b)
    assert found.low > 0
    assert found.value == pytest.approx(bootstrap(a).value - bootstrap(b).value)
    assert bootstrap(a).low < bootstrap(b).high  # side by side, the two overlap


def test_a_model_does_not_differ_from_itself() -> None:
    items = np.random.default_rng(0).random(30)
    assert difference(items, items)[:3] == (0, 0, 0)


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 1000), (7, 20), (50, 50), (123, 3610)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_wilson_is_scipys(right: int, n: int, level: float) -> None:
    theirs = binomtest(right, n).proportion_ci(level, method="wilson")
    found = wilson(right, n, level=level)
    assert (found.low, found.high) == (pytest.approx(100 * theirs.low, abs=1e-9), pytest.approx(100 * theirs.high))


def test_wilson_covers_small_shares() -> None:
    """Exact coverage at n = 100, p = 3 %, where the bootstrap's is far too low."""
    n, p = 100, 0.03
    chance = [comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(n + 1)]
    held = sum(chance[k] for k in range(n + 1) if wilson(k, n).low <= 100 * p <= wilson(k, n).high)
    assert 0.93 < held < 0.99


def test_which_interval_is_printed() -> None:
    right = np.array([1.0, 0.0, 0.0, 0.0])
    assert interval(right) == wilson(1, 4)
    assert interval(np.zeros(5)) == wilson(0, 5)  # also an F1 of nothing but zeros
    assert interval(right / 2) == bootstrap(right / 2)
    assert interval(right, median) == bootstrap(right, median)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="at least one item"):
        bootstrap(np.zeros(0))
    with pytest.raises(UserError, match="at least one item"):
        interval(np.zeros((0, 3)))
    with pytest.raises(UserError, match="same items"):
        difference(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="level"):
        bootstrap(np.arange(3.0), level=95)
    with pytest.raises(UserError, match="resamples"):
        bootstrap(np.arange(3.0), samples=0)
    with pytest.raises(UserError, match="share"):
        wilson(3, 2)
