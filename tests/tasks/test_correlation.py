"""Correlations against scipy, also of every resample, with ties and with answers that are no numbers."""

import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, metrics
from deepnarrow.tasks.correlation import RANKS, centred_ranks
from deepnarrow.tasks.significance import bootstrap, compare

STS = st.integers(0, 25).map(lambda fifths: fifths / 5)  # STS-B's answers, which tie all the time


@given(st.lists(st.tuples(STS | st.floats(-1e4, 1e4), STS), min_size=2, max_size=30))
def test_as_scipy(rows: list[tuple[float, float]]) -> None:
    x, y = (np.array(column) for column in zip(*rows, strict=True))
    predictions, truth = [repr(float(one)) for one in x], [[repr(float(one))] for one in y]
    found = metrics.pearson.score(predictions, truth), metrics.spearman.score(predictions, truth)
    if np.ptp(x) < 1e-5 * max(1.0, np.abs(x).max()) or np.ptp(y) == 0:  # nearly constant: scipy warns of lost digits
        assert all(np.isfinite(found))
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == pytest.approx((100 * pearsonr(x, y)[0], 100 * spearmanr(x, y)[0]), abs=1e-3)


@pytest.mark.parametrize("metric", [metrics.pearson, metrics.spearman], ids=lambda metric: metric.name)
def test_every_resample_as_scipy(metric: metrics.Metric) -> None:
    generator = np.random.default_rng(0)
    y = generator.integers(0, 26, 50) / 5
    x = np.round(y + generator.normal(0, 1, 50), 1)
    items = metric.items([str(one) for one in x], [Pair("", [str(one)]) for one in y])
    rows = generator.integers(0, 50, size=(20, 50))
    theirs = pearsonr if metric is metrics.pearson else spearmanr
    expected = [100 * theirs(x[row], y[row])[0] for row in rows]
    assert metric.combine.resampled(items, rows) == pytest.approx(expected)


def test_what_is_no_number_counts_as_minus_one() -> None:
    truth = [["1.0"], ["2.0"], ["4.0"]]
    for wrong in ("very similar", "", "nan", "inf", "-Infinity", "1e300"):
        for metric in (metrics.pearson, metrics.spearman):
            assert metric.score(["1", wrong, "4"], truth) == metric.score(["1", "-1", "4"], truth)
    with pytest.raises(UserError, match="numbers"):
        metrics.pearson.score(["1"], [["alike"]])


def test_no_spread_is_no_correlation() -> None:
    truth = [["1.0"], ["2.0"], ["4.0"]]
    assert metrics.pearson.score(["3"] * 3, truth) == metrics.spearman.score(["3"] * 3, truth) == 0
    assert metrics.pearson.score(["1", "2"], [["3"], ["3"]]) == metrics.spearman.score(["1", "2"], [["3"], ["3"]]) == 0


def test_ranks_within_each_resample() -> None:
    found = centred_ranks(np.array([5.0, 1.0, 1.0, 9.0]), np.array([[0, 1, 2, 3], [3, 3, 1, 1]]))
    assert found.tolist() == [[0.5, -1, -1, 1.5], [1, 1, -1, -1]]


def test_rows_of_two_models_may_be_exchanged() -> None:
    """As approximate randomisation does; moments are therefore counted from the truth's mean, not each model's own."""
    generator = np.random.default_rng(2)
    y = generator.normal(0, 1, 40)
    one, other = (y + generator.normal(0, spread, 40) for spread in (0.5, 2.0))
    pairs = [Pair("", [repr(float(value))]) for value in y]
    swap = generator.random(40) < 0.5
    mixed = np.where(swap, other, one)
    rows = [metrics.pearson.items([repr(float(value)) for value in x], pairs) for x in (one, other, mixed)]
    assert np.where(swap[:, None], rows[1], rows[0]) == pytest.approx(rows[2])


def test_intervals_and_comparisons() -> None:
    generator = np.random.default_rng(1)
    y = generator.normal(0, 1, 200)
    good, poor = (np.stack([y + generator.normal(0, spread, 200), y], axis=1) for spread in (0.3, 1.5))
    found = bootstrap(good, RANKS, samples=300)
    assert found.low < found.value < found.high < 100
    assert compare({"good": [good], "poor": [poor]}, RANKS, samples=400)["good", "poor"].p == pytest.approx(1 / 401)
