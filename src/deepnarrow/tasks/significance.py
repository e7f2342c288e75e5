"""How far a score may be trusted: intervals over the items it was measured on.

An interval here speaks of the choice of items alone: what the score would have been on other items drawn alike. It
knows nothing of training seeds; for those, train again.

The percentile bootstrap is Efron and Tibshirani 1993, chapter 13. Scores whose items are all right or wrong get
Wilson's interval (Wilson 1927) instead: the bootstrap of 0 right answers out of 1,000 is the empty claim [0, 0],
Wilson's is [0, 0.38].
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError

CELLS = 2**21  # numbers gathered at a time: 16 MiB in float64

Combine = Callable[[np.ndarray], float]


class Interval(NamedTuple):
    """A score with the bounds of its interval, and the number of items behind it."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class OfMeans:
    """A score that depends on the items through the means of their columns only.

    Such a score of many resamples is one array operation. `function` takes means [..., k] to scores [...].
    """

    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, items: np.ndarray) -> float:
        return float(self.function(columns(items).mean(axis=0)))

    def resampled(self, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The score of each resample: [s, n] row numbers -> [s]."""
        return self.function(columns(items)[rows].mean(axis=1))


@dataclass(frozen=True)
class OfSums:
    """The same of sums, for a score that also minds how many items there are, as smoothed BLEU does."""

    function: Callable[[np.ndarray], np.ndarray]

    def __call__(self, items: np.ndarray) -> float:
        return float(self.function(columns(items).sum(axis=0)))

    def resampled(self, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        return self.function(columns(items)[rows].sum(axis=1))


def percent(means: np.ndarray) -> np.ndarray:
    """100 times the first column: `percent(np.array([0.25]))` is 25."""
    return 100 * means[..., 0]


MEAN = OfMeans(percent)


def interval(
    items: np.ndarray, combine: Combine = MEAN, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """The interval to print: Wilson's where every item is 0 or 1 and the score is their mean, else the bootstrap.

    Wilson's also serves scores between 0 and 1 that happen to be all 0 or 1: it is then too wide, never too narrow,
    since no variable on [0, 1] varies more than a coin of the same mean.
    """
    items = at_least_one(items)
    if combine == MEAN and items.ndim == 1 and np.isin(items, (0.0, 1.0)).all():
        return wilson(int(items.sum()), len(items), level=level)
    return bootstrap(items, combine, samples=samples, seed=seed, level=level)


def bootstrap(
    items: np.ndarray, combine: Combine = MEAN, *, samples: int = 1000, seed: int = 0, level: float = 0.95
) -> Interval:
    """Percentile bootstrap: score `samples` resamples of the items, drawn with replacement, and take quantiles.

    `items` is [n] or [n, k]; `combine` takes such an array to one score. The same seed gives the same interval. One
    item, or items all alike, give an interval of no width. No items are a `UserError`.

    >>> found = bootstrap(np.array([0.0, 0.5, 1.0, 0.5] * 25))
    >>> found.value, found.low < 50 < found.high, found.n
    (50.0, True, 100)
    """
    items = at_least_one(items)
    value = float(combine(items))
    if (items == items[:1]).all():
        return Interval(value, value, value, len(items))
    drawn = [scores(items, combine, rows) for rows in resamples(len(items), width(items), samples, seed)]
    return Interval(value, *bounds(np.concatenate(drawn), level), len(items))


def difference(
    items_a: np.ndarray,
    items_b: np.ndarray,
    combine: Combine = MEAN,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Paired bootstrap of score a minus score b, where item i of both is the same question.

    What both find hard cancels, so this is sharper than laying two intervals side by side: where it excludes 0, the
    models differ on such items.

    >>> difference(np.array([1.0, 1.0, 1.0]), np.array([0.0, 0.0, 0.0]))
    Interval(value=100.0, low=100.0, high=100.0, n=3)
    """
    a, b = at_least_one(items_a), at_least_one(items_b)
    if len(a) != len(b):
        raise UserError(f"a paired comparison needs the same items on both sides: {len(a)} and {len(b)} were given")
    chunks = resamples(len(a), max(width(a), width(b)), samples, seed)
    drawn = [scores(a, combine, rows) - scores(b, combine, rows) for rows in chunks]
    return Interval(float(combine(a)) - float(combine(b)), *bounds(np.concatenate(drawn), level), len(a))


def wilson(right: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share, in percent.

    >>> round(wilson(0, 1000).high, 2)
    0.38
    """
    if n < 1 or not 0 <= right <= n:
        raise UserError(f"{right} right out of {n} is no share; at least one item is needed")
    z = NormalDist().inv_cdf(0.5 + checked(level) / 2)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if right == 0 else 100 * (centre - half)
    high = 100.0 if right == n else 100 * (centre + half)
    return Interval(100 * share, low, high, n)


def resamples(n: int, columns: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Row numbers of the resamples, in chunks [s, n] of bounded memory; they depend on n, samples and seed alone.

    `columns` is how many numbers each row stands for. Chunking does not change what is drawn.
    """
    if samples < 1:
        raise UserError(f"{samples} resamples are none; ask for 100 or more")
    generator = np.random.Generator(np.random.Philox(seed))
    chunk = max(1, CELLS // (n * columns))
    for start in range(0, samples, chunk):
        yield generator.integers(0, n, size=(min(chunk, samples - start), n))


def scores(items: np.ndarray, combine: Combine, rows: np.ndarray) -> np.ndarray:
    """The score of each resample, [s, n] row numbers -> [s]: all at once where `combine` knows how (`resampled`)."""
    at_once = getattr(combine, "resampled", None)
    if at_once is not None:
        return at_once(items, rows)
    return np.array([combine(items[row]) for row in rows], dtype=np.float64)


def bounds(drawn: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(drawn, [0.5 - checked(level) / 2, 0.5 + level / 2])
    return float(low), float(high)


def checked(level: float) -> float:
    if not 0 < level < 1:
        raise UserError(f"a confidence level lies between 0 and 1, as 0.95 does; {level} was given")
    return level


def columns(items: np.ndarray) -> np.ndarray:
    """[n] or [n, k] -> [n, k]"""
    return items if items.ndim == 2 else items[:, None]


def width(items: np.ndarray) -> int:
    return columns(items).shape[1]


def at_least_one(items: np.ndarray) -> np.ndarray:
    found = np.asarray(items, dtype=np.float64)
    if found.ndim not in (1, 2) or not found.size:
        raise UserError(f"a score needs at least one item, in rows [n] or [n, k]; the shape given is {found.shape}")
    return found
