"""Scores of items that are drawn again: what a score is made of, its values on resamples and without each item.

Items are rows, [n] or [n, k]; a score is a function of them (`Combine`). `OfMeans` and `OfSums` are scores that follow
from the columns' means or sums, which makes thousands of resamples cheap.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from deepnarrow.errors import UserError

CELLS = 2**21  # numbers gathered at a time: 16 MiB in float64
SMALL = 2_000  # items up to which any score is jackknifed; beyond, skew no longer matters

Combine = Callable[[np.ndarray], float]


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


def at_least_one(items: np.ndarray) -> np.ndarray:
    found = np.asarray(items, dtype=np.float64)
    if found.ndim not in (1, 2) or not found.size:
        raise UserError(f"a score needs at least one item, in rows [n] or [n, k]; the shape given is {found.shape}")
    return found


def columns(items: np.ndarray) -> np.ndarray:
    """[n] or [n, k] -> [n, k]"""
    return items if items.ndim == 2 else items[:, None]


def width(items: np.ndarray) -> int:
    return columns(items).shape[1]


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


def coins(n: int, columns: int, samples: int, seed: int) -> Iterator[np.ndarray]:
    """Which items to swap: booleans [s, n], in chunks of bounded memory."""
    if samples < 1:
        raise UserError(f"{samples} swaps are none; ask for 1,000 or more")
    generator = np.random.Generator(np.random.Philox(seed))
    chunk = max(1, CELLS // max(n * columns, 1))
    for start in range(0, samples, chunk):
        yield generator.integers(0, 2, size=(min(chunk, samples - start), n), dtype=np.uint8).astype(bool)


def scores(items: np.ndarray, combine: Combine, rows: np.ndarray) -> np.ndarray:
    """The score of each resample, [s, n] row numbers -> [s]: all at once where `combine` knows how (`resampled`)."""
    at_once = getattr(combine, "resampled", None)
    if at_once is not None:
        return at_once(items, rows)
    return np.array([combine(items[row]) for row in rows], dtype=np.float64)


def resampled(
    sides: Sequence[Sequence[np.ndarray]], combine: Combine, samples: int, seed: int
) -> Iterator[list[np.ndarray]]:
    """The scores of each side's runs, [runs, s] a side, for chunks of resamples.

    Where the score follows from means or sums, one product of how often each item was drawn serves all runs.
    """
    n, runs = len(sides[0][0]), [one for side in sides for one in side]
    ends = np.cumsum([len(side) for side in sides])[:-1]
    if not isinstance(combine, OfMeans | OfSums):
        for rows in resamples(n, max(map(width, runs)), samples, seed):
            yield np.split(np.stack([scores(one, combine, rows) for one in runs]), ends)
        return
    table = np.concatenate([columns(one) for one in runs], axis=1) / (n if isinstance(combine, OfMeans) else 1)
    for rows in resamples(n, 1, samples, seed):
        places = rows + n * np.arange(len(rows))[:, None]
        times = np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape)
        summed = (times.astype(np.float64) @ table).reshape(len(rows), len(runs), -1)
        yield np.split(combine.function(summed).T, ends)


def acceleration(items: np.ndarray, combine: Combine) -> float:
    """How fast the score's spread changes with the score, from its values without each item in turn (Efron 1987)."""
    n = len(items)
    if isinstance(combine, OfMeans | OfSums):
        rows = columns(items)
        left = rows.sum(axis=0) - rows
        without = combine.function(left / (n - 1) if isinstance(combine, OfMeans) else left)
    elif n <= SMALL:
        chunk = max(1, CELLS // (n * width(items)))
        others = (
            np.delete(
                np.broadcast_to(np.arange(n), (stop - start, n)).ravel(),
                [i * n + start + i for i in range(stop - start)],
            )
            for start in range(0, n, chunk)
            for stop in [min(start + chunk, n)]
        )
        without = np.concatenate([scores(items, combine, rows.reshape(-1, n - 1)) for rows in others])
    else:
        return 0.0
    off = without.mean() - without
    spread = float((off**2).sum())
    below = 6 * spread**1.5  # 0 also where the square of a tiny spread is too small for a float
    return float((off**3).sum()) / below if below > 0 else 0.0
