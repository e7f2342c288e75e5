"""Comparisons: tests against scipy, what is refused, what a verdict says."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test, ttest_rel

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, metrics
from deepnarrow.tasks.resampling import MEAN
from deepnarrow.tasks.significance import (
    Between,
    Comparison,
    Interval,
    Spread,
    compare,
    difference,
    exact,
    holm,
    interval,
    mcnemar,
    over_seeds,
    paired_shares,
    randomisation,
)  # fmt: skip
from deepnarrow.tasks.verdict import sentence


@pytest.mark.parametrize(("right", "n"), [(0, 1), (1, 1), (0, 1000), (7, 20), (50, 50), (123, 3610)])
def test_exact_intervals_are_scipys(right: int, n: int) -> None:
    theirs = binomtest(right, n).proportion_ci(0.95, method="exact")
    found = exact(right, n)
    assert (found.low, found.high) == pytest.approx((100 * theirs.low, 100 * theirs.high), rel=1e-7)
    assert found.value == 100 * right / n


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 5))
def test_mcnemar_is_the_binomial_test(better: int, worse: int, same: int) -> None:
    a = np.array([1.0] * better + [0.0] * worse + [1.0] * same)
    b = np.array([0.0] * better + [1.0] * worse + [1.0] * same)
    expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(a, b) == pytest.approx(expected)


def test_randomisation_counts_all_swaps_of_a_few_items() -> None:
    """Eight items have 256 ways to swap: the share of those with as large a difference is the exact p."""
    generator = np.random.default_rng(3)
    a, b = generator.random(8), generator.random(8) * 0.6
    gains = a - b
    seen = abs(gains.sum())
    every = np.mean([abs((np.array(signs) * gains).sum()) >= seen - 1e-12 for signs in product([1, -1], repeat=8)])
    assert randomisation(a, b, samples=20_000) == pytest.approx(every, abs=0.01)


def test_randomisation_is_scipys_permutation_test() -> None:
    generator = np.random.default_rng(4)
    a = generator.random(60)
    b = np.where(generator.random(60) < 0.5, a, np.clip(a - generator.normal(0.05, 0.2, 60), 0, 1))
    theirs = permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=9999, rng=np.random.default_rng(0)
    )
    assert randomisation(a, b) == pytest.approx(theirs.pvalue, abs=0.015)
    assert randomisation(a, b, lambda items: 100 * float(items.mean()), samples=2000) == pytest.approx(
        theirs.pvalue, abs=0.03
    )  # one by one, as for any score


def test_randomisation_of_a_score_of_many_columns() -> None:
    """Matthews' correlation: swapping rows is swapping answers."""
    generator = np.random.default_rng(0)
    truth = generator.integers(0, 2, 120)
    good, poor = (np.where(generator.random(120) < rate, truth, 1 - truth) for rate in (0.95, 0.6))
    pairs = [Pair("", [str(one)]) for one in truth]
    a, b = (metrics.matthews.items([str(one) for one in guess], pairs) for guess in (good, poor))
    assert randomisation(a, b, metrics.matthews.combine, samples=999) == 0.001
    assert randomisation(a, a, metrics.matthews.combine, samples=99) == 1


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_as_written(ps: list[float]) -> None:
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    expected = [0.0] * len(ps)
    for rank, place in enumerate(order):
        expected[place] = min(1.0, max((len(ps) - r) * ps[order[r]] for r in range(rank + 1)))
    assert holm(ps) == pytest.approx(expected)


def test_agreement_of_a_few_is_not_certainty() -> None:
    few = paired_shares(np.ones(10), np.ones(10))
    assert few.value == 0
    assert few.low == -few.high < -10
    assert paired_shares(np.ones(10_000), np.ones(10_000)).high < 0.1


def right(generator: np.random.Generator, n: int, share: float) -> np.ndarray:
    return (generator.random(n) < share).astype(float)


def test_which_test_is_used() -> None:
    generator = np.random.default_rng(0)
    a, b = right(generator, 100, 0.8), right(generator, 100, 0.6)
    found = compare({"a": [a], "b": [b]})["a", "b"]
    assert found.test == "exact McNemar"
    assert found.p == found.adjusted == mcnemar(a, b)
    assert found.difference == paired_shares(a, b)
    assert (found.n, found.seeds, found.together) == (100, (1, 1), 1)
    found = compare({"a": [a * 0.5], "b": [b * 0.5]}, samples=500)["a", "b"]
    assert found.test == "approximate randomisation"
    assert found.difference == difference(a * 0.5, b * 0.5, samples=500)
    assert compare({"a": [a, b], "b": [b, a]}, samples=100)["a", "b"].test == "t over seeds and items"


def test_every_pair_in_order_and_corrected() -> None:
    generator = np.random.default_rng(0)
    systems = {name: [right(generator, 200, share)] for name, share in [("c", 0.9), ("a", 0.6), ("b", 0.55)]}
    found = compare(systems)
    assert list(found) == [("c", "a"), ("c", "b"), ("a", "b")]
    assert [one.adjusted for one in found.values()] == holm([one.p for one in found.values()])
    assert {one.together for one in found.values()} == {3}
    turned = compare(dict(reversed(systems.items())))
    assert turned["b", "a"].difference.value == -found["a", "b"].difference.value
    assert turned["b", "a"].p == pytest.approx(found["a", "b"].p)


def test_many_items_and_alike_seeds_come_to_the_paired_t_test() -> None:
    """Runs that differ by nothing but noise of items leave the seeds no part; what stays is Student's paired t."""
    generator = np.random.default_rng(1)
    a, b = generator.random(400), generator.random(400)
    found = compare({"a": [a, a, a], "b": [b, b, b]}, samples=4000)["a", "b"]
    theirs = ttest_rel(a, b)
    assert found.p == pytest.approx(theirs.pvalue, abs=0.02)
    low, high = (100 * bound for bound in theirs.confidence_interval())
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), abs=0.35)


def test_many_items_and_far_seeds_come_to_welchs_t_over_runs() -> None:
    """Where items say almost nothing new, a comparison is one of six numbers."""
    from scipy.stats import ttest_ind

    scores = {"a": [0.50, 0.62, 0.57], "b": [0.45, 0.41, 0.52]}
    generator = np.random.default_rng(1)
    ease = generator.normal(0, 0.001, 2000)
    found = compare({name: [one + ease for one in many] for name, many in scores.items()}, samples=200)["a", "b"]
    theirs = ttest_ind(scores["a"], scores["b"], equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue, rel=0.01)
    low, high = (100 * bound for bound in theirs.confidence_interval())
    assert (found.difference.low, found.difference.high) == pytest.approx((low, high), rel=0.01)
    assert found.needed is None  # no number of items makes up for seeds
    assert sentence("a", "b", "x", found).endswith("over 3 and 3 seeds; more seeds would be needed, not items")


def test_seeds_widen() -> None:
    generator = np.random.default_rng(2)
    runs = [right(generator, 300, share) for share in (0.5, 0.7, 0.6)]
    assert over_seeds(runs[:1]) == interval(runs[0])
    found, alone = over_seeds(runs), interval(np.mean(runs, axis=0))
    assert found.value == pytest.approx(alone.value)
    assert found.low < alone.low
    assert found.high > alone.high
    sure = over_seeds([np.ones(50)] * 3)
    assert sure == interval(np.ones(50))  # Wilson's: three perfect runs on 50 items do not prove perfection
    assert over_seeds([np.array([1.0] * 9 + [0.0]), np.ones(10)]).high == 100  # a share stays one


def test_a_single_run_is_taken_to_vary_as_the_other_side_does() -> None:
    three, one = Spread(3, 4.0, 1.0), Spread(1, 0.0, 0.0)
    assert Between.of((three,)) == pytest.approx((1.0, 2.0))
    assert Between.of((three, one)) == pytest.approx((3.0 * (1 / 3 + 1), 2.0))
    assert Between.of((three, three)) == pytest.approx((2.0, 4.0))
    assert Between.of((one, one)).variance == 0


def test_p_and_interval_agree() -> None:
    """At p the interval's end would touch 0."""
    between = Between(2.0, 3.5)
    p = between.p(6.0, 4.0, 50)
    from scipy.stats import t

    half = np.sqrt(4.0 * t.isf(p / 2, 49) ** 2 + 2.0 * t.isf(p / 2, 3.5) ** 2)
    assert half == pytest.approx(6.0)
    assert between.p(0.0, 4.0, 50) == 1


def test_the_same_seed_gives_the_same_comparison() -> None:
    generator = np.random.default_rng(0)
    systems = {name: [generator.random(50)] for name in "abc"}
    assert compare(systems, samples=300, seed=4) == compare(systems, samples=300, seed=4)
    assert compare(systems, samples=300, seed=4) != compare(systems, samples=300, seed=5)


def test_nonsense_is_refused() -> None:
    with pytest.raises(UserError, match="two systems"):
        compare({"a": [np.ones(3)]})
    with pytest.raises(UserError, match="a 3, b 4"):
        compare({"a": [np.ones(3)], "b": [np.ones(4)]})
    with pytest.raises(UserError, match="same items in all runs of a"):
        compare({"a": [np.ones(3), np.ones(4)], "b": [np.ones(4)]})
    with pytest.raises(UserError, match="none"):
        over_seeds([])
    with pytest.raises(UserError, match="swaps"):
        randomisation(np.ones(3), np.zeros(3), samples=0)
    with pytest.raises(UserError, match="share"):
        exact(3, 2)


def judged(value: float, p: float, *, adjusted: float | None = None, needed: int | None = None) -> Comparison:
    found = Interval(value, value - 2, value + 2, 500)
    return Comparison(found, p, p if adjusted is None else adjusted, "exact McNemar", 500, (1, 1), needed)


def test_verdicts() -> None:
    assert sentence("A", "B", "rte accuracy", judged(3.0, 0.002)) == (
        "A beats B on rte accuracy by 3.0 [1.0, 5.0], p = 0.002, n = 500"
    )
    assert sentence("A", "B", "rte accuracy", judged(-3.0, 0.0001)) == (
        "B beats A on rte accuracy by 3.0 [1.0, 5.0], p < 0.001, n = 500"
    )
    assert sentence("A", "B", "rte accuracy", judged(-1.0, 0.33, needed=4123)) == (
        "B and A are not distinguishable on rte accuracy: 1.0 [-1.0, 3.0], p = 0.33, n = 500; "
        "about 4,100 items would be needed"
    )
    assert sentence("A", "B", "rte accuracy", judged(0.0, 1.0)) == (
        "A and B score the same on rte accuracy: 0.0 [-2.0, 2.0], p = 1.00, n = 500"
    )
    found = judged(3.0, 0.02, adjusted=0.12)._replace(together=6, seeds=(3, 3), needed=900)
    assert sentence("A", "B", "rte accuracy", found) == (
        "A and B are not distinguishable on rte accuracy: 3.0 [1.0, 5.0], p = 0.12 (corrected for 6 comparisons), "
        "n = 500 over 3 and 3 seeds; about 900 items would be needed"
    )


def test_identical_answers_are_said_to_be() -> None:
    answers = right(np.random.default_rng(0), 40, 0.7)
    found = compare({"A": [answers], "B": [answers.copy()]})["A", "B"]
    assert found.needed is None
    assert found.p == 1
    assert sentence("A", "B", "rte accuracy", found) == "A and B score every item alike on rte accuracy, n = 40"
    other = compare({"A": [answers / 2], "B": [answers / 2]}, samples=50)["A", "B"]
    assert sentence("A", "B", "f1", other) == "A and B score every item alike on f1, n = 40"
    even = compare({"A": [np.array([1.0, 0.0] * 20)], "B": [np.array([0.0, 1.0] * 20)]})["A", "B"]
    assert sentence("A", "B", "rte accuracy", even).startswith("A and B score the same on rte accuracy: 0.0 [-")


def test_the_mean_is_the_default() -> None:
    a, b = np.array([0.5, 0.25]), np.array([0.0, 0.25])
    assert compare({"a": [a], "b": [b]}, samples=50)["a", "b"].difference.value == MEAN(a) - MEAN(b) == 25


@pytest.mark.parametrize("items", [[1.0], [0.3], [0.0, 1.0], [0.5] * 5, [[0.0, 0.0, 0.0]] * 3])
@pytest.mark.parametrize("seeds", [1, 3])
def test_few_items_and_items_alike_do_not_crash(items: list, seeds: int) -> None:
    combine = metrics.binary_f1("x").combine if isinstance(items[0], list) else MEAN
    one = np.array(items)
    other = one if one.ndim == 2 else 1 - one
    for b in (one, other):
        found = compare({"a": [one] * seeds, "b": [b] * seeds}, combine, samples=50)["a", "b"]
        assert found.difference.low <= found.difference.value <= found.difference.high
        assert 0.5 ** (len(one) - 1) <= found.p <= 1  # no test may claim more of so few items
        assert np.isfinite(over_seeds([one] * seeds, combine, samples=50)).all()
        assert sentence("a", "b", "x", found)
