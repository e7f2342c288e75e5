"""A permutation in no memory: a bijection for every size and key, the same for ever, and well mixed."""

from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare, spearmanr

from deepnarrow.text.permutation import permute


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_bijection(size: int, key: int) -> None:
    assert np.array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@settings(deadline=None)
@given(st.integers(1, 2**62), st.integers(0, 2**64 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_indices_alone_and_together_agree(size: int, key: int, wanted: list[int]) -> None:
    index = np.unique([value % size for value in wanted])
    together = permute(index, size, key)
    assert together.min() >= 0
    assert together.max() < size
    assert len(np.unique(together)) == len(index)
    assert [permute(np.array(value), size, key).item() for value in index] == together.tolist()


def test_one_row() -> None:
    assert permute(np.zeros(3, int), 1, key=5).tolist() == [0, 0, 0]


def test_shape_is_kept() -> None:
    assert permute(np.arange(6).reshape(2, 3), 6, key=1).shape == (2, 3)
    assert permute(np.array([], int), 6, key=1).shape == (0,)


@pytest.mark.parametrize("index", [-1, 10])
def test_outside(index: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.9"):
        permute(np.array([index]), 10, key=1)


def test_golden() -> None:
    """Stored runs depend on these: an order that changes would repeat some rows and skip others after a resume."""
    assert permute(np.arange(10), 10, key=3).tolist() == [1, 2, 8, 6, 3, 7, 4, 5, 0, 9]
    assert permute(np.arange(4), 10**12, key=2**64 - 1).tolist() == [
        958358442345,
        403149525981,
        742261324172,
        177815507945,
    ]


def test_small_orders_are_equally_likely() -> None:
    orders = Counter(tuple(permute(np.arange(4), 4, key).tolist()) for key in range(24 * 200))
    assert set(orders) == set(permutations(range(4)))
    assert chisquare(list(orders.values())).pvalue > 1e-3


@pytest.mark.parametrize("size", [100, 4096, 100_003])
def test_no_trace_of_the_old_order(size: int) -> None:
    first, second = (permute(np.arange(size), size, key) for key in (1, 2))
    bound = 4.5 / size**0.5
    assert abs(spearmanr(np.arange(size), first)[0]) < bound
    assert abs(spearmanr(first, second)[0]) < bound
    assert abs(spearmanr(first[:-1], first[1:])[0]) < bound
    assert (first == second).sum() < 10  # about one is expected
