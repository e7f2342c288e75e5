"""How the angles between texts' vectors follow what people find alike. Whatever made the vectors; no torch.

Shape key   N pairs of texts   D width of a vector
"""

from collections.abc import Sequence

import numpy as np

from deepnarrow.tasks.correlation import RANKS
from deepnarrow.tasks.significance import Interval, interval


def similarity(
    firsts_ND: np.ndarray, seconds_ND: np.ndarray, scores: Sequence[float], *, seed: int = 0, samples: int = 1000
) -> Interval:
    """Spearman's correlation, in percent, of the cosines of pairs of vectors of length 1 with people's scores."""
    cosines_N = (firsts_ND.astype(np.float64) * seconds_ND).sum(axis=1)
    rows = np.stack([cosines_N, np.asarray(scores, np.float64)], axis=1)
    return interval(rows, RANKS, samples=samples, seed=seed)
