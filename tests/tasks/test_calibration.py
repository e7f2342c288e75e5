"""Calibration: the published formula, written out, and an interval that holds the truth where percentiles do not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.tasks.calibration import ERROR, ece, gap_rows
from deepnarrow.tasks.resampling import resampled


def by_hand(probabilities: np.ndarray, right: np.ndarray, bins: int) -> float:
    """Guo et al. 2017, equation 5, as it stands there: a loop over bins, each open below and closed above."""
    sure, total = probabilities.max(axis=1), 0.0
    for m in range(bins):
        inside = (sure > m / bins) & (sure <= (m + 1) / bins)
        if inside.any():
            total += inside.sum() / len(sure) * abs(right[inside].mean() - sure[inside].mean())
    return 100 * total


@given(st.integers(0, 10_000), st.integers(1, 40), st.integers(2, 5), st.integers(1, 20))
def test_the_formula(seed: int, n: int, labels: int, bins: int) -> None:
    generator = np.random.default_rng(seed)
    probabilities = generator.dirichlet(np.ones(labels), n)
    right = (generator.random(n) < 0.6).astype(float)
    found = ece(probabilities, right, bins, samples=20)
    assert found.value == pytest.approx(by_hand(probabilities, right, bins), abs=1e-9)
    assert 0 <= found.low <= found.value <= found.high
    assert found.n == n


def answers(generator: np.random.Generator, n: int, too_sure: float) -> tuple[np.ndarray, np.ndarray]:
    sure = 0.55 + 0.4 * generator.beta(2, 1.2, n)
    return np.stack([sure, 1 - sure], axis=1), (generator.random(n) < sure - too_sure).astype(float)


@pytest.mark.parametrize("too_sure", [0.0, 0.05, 0.12])
@pytest.mark.parametrize("n", [300, pytest.param(1500, marks=pytest.mark.slow)])
def test_the_interval_holds_the_truth(too_sure: float, n: int) -> None:
    """All answers are too sure by the same number of points, so that is the true error; percentiles miss it."""
    generator = np.random.default_rng(3)
    held, plain, runs = 0, 0, 100
    for run in range(runs):
        probabilities, right = answers(generator, n, too_sure)
        found = ece(probabilities, right, samples=200, seed=run)
        held += found.low <= 100 * too_sure + 1e-9 <= found.high + 1e-9
        gaps = gap_rows(probabilities.max(axis=1), right)
        drawn = np.concatenate([scored[0] for (scored,) in resampled(((gaps,),), ERROR, 200, run)])
        plain += np.quantile(drawn, 0.025) <= 100 * too_sure
    assert held >= 0.9 * runs
    if too_sure == 0:
        assert plain == 0


def test_nonsense_is_refused() -> None:
    good = np.array([[0.5, 0.5]])
    for probabilities, right, bins in [(good, np.ones(2), 15), (good[0], np.ones(2), 15), (good, np.ones(1), 0)]:
        with pytest.raises(UserError, match="needs probabilities"):
            ece(probabilities, right, bins)
    for wrong in (np.log(good), good / 3):
        with pytest.raises(UserError, match="adds up to 1"):
            ece(wrong, np.ones(1))
