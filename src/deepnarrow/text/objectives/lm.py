"""A language model with nothing to read (Raffel et al. 2020, arXiv:1910.10683, section 3.2): it says the whole text.

    text     Thank you for inviting me to your party last week
    inputs
    targets  Thank you for inviting me to your party last week

The inputs are EOS alone (`t5/data/preprocessors.py`, unsupervised with `objectives/lm.gin`: empty inputs, and EOS on
both sides):

>>> inputs, targets = corrupt(np.arange(10, 14)[None], [], Sentinels(first=99, count=10, eos=1))
>>> inputs.tolist(), targets.tolist()
([[1]], [[10, 11, 12, 13, 1]])
"""

from collections.abc import Sequence

import numpy as np

from deepnarrow.text.objectives import Ids, Sentinels
from deepnarrow.text.objectives._rows import room, with_eos


def lengths(inputs_length: int) -> tuple[int, int]:
    """Targets as long as the inputs of the other objectives, so that the same config gives as much text.

    >>> lengths(512)
    (511, 512)
    """
    return room(inputs_length), inputs_length


def corrupt(rows: np.ndarray, generators: Sequence[np.random.Generator], sentinels: Sentinels) -> Ids:
    """EOS [B, 1], and the rows [B, R] with EOS. Nothing is drawn."""
    return Ids(np.full((len(rows), 1), sentinels.eos, rows.dtype), with_eos(rows, sentinels))


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    return targets[:-1]
