"""Beta's and Student's distributions against scipy's."""

import numpy as np
import pytest
from scipy import stats

from deepnarrow.tasks.distributions import beta_below, beta_quantile, root, student_beyond, student_quantile


def test_beta_is_scipys() -> None:
    generator = np.random.default_rng(0)
    for _ in range(300):
        a, b = 10 ** generator.uniform(-1, 5, 2)
        x = generator.beta(a, b)
        assert beta_below(x, a, b) == pytest.approx(stats.beta.cdf(x, a, b), abs=1e-9)
    assert beta_below(0.0, 2, 3) == 0
    assert beta_below(1.0, 2, 3) == 1


@pytest.mark.parametrize(("right", "n"), [(1, 2), (3, 50), (500, 1000), (999, 1000), (12_000, 40_000)])
@pytest.mark.parametrize("share", [0.001, 0.025, 0.5, 0.975])
def test_beta_quantiles_are_scipys(right: int, n: int, share: float) -> None:
    expected = stats.beta.ppf(share, right, n - right + 1)
    assert beta_quantile(share, right, n - right + 1) == pytest.approx(expected, rel=1e-8)


def test_student_is_scipys() -> None:
    generator = np.random.default_rng(1)
    for _ in range(200):
        p, df = 10 ** generator.uniform(-9, -0.01), 10 ** generator.uniform(-0.3, 6)
        t = stats.t.isf(p / 2, df)
        assert student_quantile(p, df) == pytest.approx(t, rel=1e-7)
        assert student_beyond(t, df) == pytest.approx(p, rel=1e-7)


def test_root_of_awkward_functions() -> None:
    assert root(lambda x: x**9 - 1e-9, -1.0, 1.0) == pytest.approx(0.1, rel=1e-9)
    assert root(lambda x: -1.0 if x < 0.3 else 1.0, 0.0, 1.0) == pytest.approx(0.3, rel=1e-9)
    assert root(lambda x: x + 5, 0.0, 1.0) == 0.0
    assert root(lambda x: x - 5, 0.0, 1.0) == 1.0
