"""Calibration: does a model that says 80 % turn out right 8 times in 10? For tasks with a closed set of labels.

The expected calibration error (Guo et al. 2017, arXiv:1706.04599, section 2) sorts answers by the probability of the
label chosen and takes the mean distance, over bins of equal width, between how sure and how right the model was there.

It is a sum of absolute values, so chance alone makes it larger: a perfectly calibrated model of 300 answers in 15 bins
shows 3 to 5 points of error, and resampling adds as much again. Plain percentiles of the bootstrap then never hold the
truth. The interval here takes that surplus off its lower end twice (once for the sample, once for its resamples), and
begins at 0 where calibrated answers would often err as much. Its upper end stays where the resamples put it.
"""

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.tasks.resampling import CELLS, OfMeans, resampled
from deepnarrow.tasks.significance import Interval, checked

BINS = 15


def ece(
    probabilities: np.ndarray,
    right: np.ndarray,
    bins: int = BINS,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Expected calibration error in points, with an interval over items.

    probabilities  [n, labels], of each label; the largest of a row is how sure the model was
    right          [n], 1 where that label was the true one

    >>> ece(np.array([[0.75, 0.25]] * 4), np.array([1, 1, 1, 0])).value
    0.0
    >>> ece(np.array([[0.75, 0.25]] * 4), np.array([1, 1, 0, 0])).value
    25.0
    """
    sure, right = np.asarray(probabilities, dtype=float), np.asarray(right, dtype=float)
    if sure.ndim != 2 or not sure.size or right.shape != sure.shape[:1] or bins < 1:
        raise UserError(
            f"a calibration error needs probabilities [n, labels], [n] right and 1 bin or more;"
            f" given are {sure.shape}, {right.shape} and {bins}"
        )
    if not ((sure >= 0) & (sure <= 1 + 1e-6)).all() or (abs(sure.sum(axis=1) - 1) > 1e-3).any():
        raise UserError("probabilities lie between 0 and 1 and each row of them adds up to 1; give no logarithms")
    sure = sure.max(axis=1)
    gaps = gap_rows(sure, right, bins)
    value = ERROR(gaps)
    drawn = np.concatenate([scored[0] for (scored,) in resampled(((gaps,),), ERROR, samples, seed)])
    outside = (1 - checked(level)) / 2
    low, high = (float(bound) for bound in np.quantile(drawn, (outside, 1 - outside)))
    low -= 2 * (float(drawn.mean()) - value)
    if value <= np.quantile(calibrated(sure, bins, samples, seed), 1 - outside):
        low = 0.0
    return Interval(value, min(max(low, 0.0), value), max(high, value), len(sure))


def gap_rows(sure: np.ndarray, right: np.ndarray, bins: int = BINS) -> np.ndarray:
    """[n, bins]: in the bin of a row's confidence, which is open below, how much more right it was than sure.

    >>> gap_rows(np.array([0.5, 0.75]), np.array([1.0, 0.0]), bins=2).tolist()
    [[0.5, 0.0], [-0.0, -0.75]]
    """
    return (right - sure)[:, None] * np.eye(bins)[bin_of(sure, bins)]


def bin_of(sure: np.ndarray, bins: int) -> np.ndarray:
    return np.clip(np.ceil(sure * bins).astype(int) - 1, 0, bins - 1)


def error_percent(means: np.ndarray) -> np.ndarray:
    """Of the means of `gap_rows`: a bin's share of the items times its gap is its column's mean."""
    return 100 * np.abs(means).sum(-1)


ERROR = OfMeans(error_percent)


def calibrated(sure: np.ndarray, bins: int, samples: int, seed: int) -> np.ndarray:
    """[samples] errors that perfectly calibrated answers, as sure as these, would show (Broecker and Smith 2007)."""
    generator = np.random.Generator(np.random.Philox([seed, 1]))
    places = np.eye(bins)[bin_of(sure, bins)] / len(sure)
    chunk = max(1, CELLS // len(sure))
    return np.concatenate(
        [
            error_percent(((generator.random((min(chunk, samples - start), len(sure))) < sure) - sure) @ places)
            for start in range(0, samples, chunk)
        ]
    )
