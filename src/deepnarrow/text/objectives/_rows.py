"""What the objectives share: uniform choices from raw random words, and rows that end in EOS.

Only raw words are drawn: NumPy keeps a bit generator's stream over its versions, but not what a Generator makes of it,
and a resumed run must see the noise that its first part saw.
"""

from collections.abc import Sequence

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Sentinels

FIRST_PIECE = 3  # the ids below are padding, EOS and unknown


def words(generators: Sequence[np.random.Generator], count: int) -> np.ndarray:
    """`count` raw words of 64 random bits from each generator: uint64 [B, count]."""
    drawn = np.empty((len(generators), count), np.uint64)
    for row, generator in zip(drawn, generators, strict=True):
        row[:] = generator.bit_generator.random_raw(count)
    return drawn


def chance(drawn: np.ndarray, share: float) -> np.ndarray:
    """True with probability `share`, to 2^-53 of it, for each word independently."""
    return drawn < np.uint64(min(int(share * 2**64), 2**64 - 1))


def below(drawn: np.ndarray, bound: int) -> np.ndarray:
    """A number from 0 to bound - 1 for each word, int64; no number is likelier than another by bound / 2^32.

    >>> below(np.array([0, 2**63, 2**64 - 1], np.uint64), 6).tolist()
    [0, 3, 5]
    """
    # The product's high half (Lemire 2019, arXiv:1805.10941, section 3), without his rejection step.
    return ((drawn >> np.uint64(32)) * np.uint64(bound) >> np.uint64(32)).astype(np.int64)


def room(inputs_length: int) -> int:
    """Tokens that fit beside EOS."""
    if inputs_length < 2:
        raise UserError(f"inputs of {inputs_length} token(s) cannot hold a token and EOS; use at least 2")
    return inputs_length - 1


def check_share(name: str, share: float, meaning: str) -> None:
    if not 0 < share < 1:
        raise UserError(f"{name} is {meaning}; it must lie between 0 and 1, not {share}")


def with_eos(rows: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """Rows [B, R] with EOS behind each: [B, R + 1]."""
    return np.concatenate([rows, np.full((len(rows), 1), sentinels.eos, rows.dtype)], axis=1)


def squeeze(rows: np.ndarray, keep: np.ndarray) -> np.ndarray:
    """The tokens of each row under a mask [B, R] moved to its front, 0 behind: as wide as the longest.

    >>> squeeze(np.array([[5, 6, 7], [8, 9, 10]]), np.array([[1, 0, 1], [0, 0, 1]], bool)).tolist()
    [[5, 7], [10, 0]]
    """
    widths = np.count_nonzero(keep, axis=1)
    kept = rows[keep]
    if not np.any(widths != widths[:1]):  # always so for span corruption, and then nothing has to be moved
        return kept.reshape(len(rows), -1)
    out = np.zeros((len(rows), widths.max()), rows.dtype)
    out[np.arange(out.shape[1]) < widths[:, None]] = kept
    return out
