"""Pearson's and Spearman's correlation of predicted with true numbers, in percent, quick enough to be resampled."""

from dataclasses import dataclass

import numpy as np


def moments(pairs: np.ndarray) -> np.ndarray:
    """Rows [x, y, xx, yy, xy] from rows [x, y], counted from the mean of y in its standard deviations.

    Correlation does not mind origin and unit; these keep the squares small. They are y's for both columns, so that
    the rows of two models on the same items may be exchanged.
    """
    if not len(pairs):
        return np.zeros((0, 5))
    truth = pairs[:, 1]
    x, y = ((pairs - truth.mean()) / (truth.std() or 1.0)).T
    return np.stack([x, y, x * x, y * y, x * y], axis=1)


def pearson_percent(means: np.ndarray) -> np.ndarray:
    """100 times Pearson's correlation, of the means of `moments`; 0 where one side does not vary."""
    x, y, xx, yy, xy = np.moveaxis(means, -1, 0)
    var_x, var_y = xx - x * x, yy - y * y
    varies = (var_x > 1e-12 * np.maximum(xx, 1.0)) & (var_y > 1e-12 * np.maximum(yy, 1.0))  # below lies rounding
    product = np.where(varies, var_x, 1.0) * np.where(varies, var_y, 1.0)
    return np.where(varies, 100 * np.clip((xy - x * y) / np.sqrt(product), -1, 1), 0.0)


@dataclass(frozen=True)
class Spearman:
    """100 times Spearman's correlation of rows [x, y]: Pearson's of ranks, where equal numbers share their mean rank.

    Ranks change with every resample. They come from counts, not from sorting: the numbers are numbered once, and a
    number's rank is the count of smaller ones and half of its own.
    """

    def __call__(self, items: np.ndarray) -> float:
        return float(self.resampled(items, np.arange(len(items))[None])[0])

    def resampled(self, items: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """[s, n] row numbers -> [s]"""
        x, y = (centred_ranks(items[:, column], rows) for column in range(2))
        product = (x * x).sum(axis=1) * (y * y).sum(axis=1)
        return np.where(product > 0, 100 * (x * y).sum(axis=1) / np.sqrt(np.where(product > 0, product, 1.0)), 0.0)


RANKS = Spearman()


def centred_ranks(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Mean ranks, less their mean, within each resample: [m] numbers and [s, n] row numbers -> [s, n].

    >>> centred_ranks(np.array([0.5, 7.0, 7.0]), np.array([[0, 1, 2]])).tolist()
    [[-1.0, 0.5, 0.5]]
    """
    values, codes = np.unique(numbers, return_inverse=True)
    drawn = codes[rows]
    samples, n = rows.shape
    counts = np.bincount(
        (drawn + len(values) * np.arange(samples)[:, None]).ravel(), minlength=samples * len(values)
    ).reshape(samples, -1)
    ranks = np.cumsum(counts, axis=1) - counts / 2 - n / 2
    return np.take_along_axis(ranks, drawn, axis=1)
