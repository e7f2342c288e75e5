"""Which ids may come next: masks of bits, and what decides them as a sequence grows.

Shape key   V vocabulary   W words, ceil(V / 32)
"""

from collections.abc import Iterable
from functools import lru_cache
from typing import Protocol

import numpy as np

BITS = 32  # of a word
WHOLE = np.uint32(0xFFFFFFFF)


class Constraint(Protocol):
    """What a sequence may still become. A state is never changed: `after` gives the next one."""

    @property
    def fulfilled(self) -> bool:
        """Whether the sequence may end here."""
        ...

    def mask(self, left: int) -> np.ndarray | None:
        """The ids that may follow, uint32 [W], EOS among them where it is `fulfilled`; None: all.

        `left` tokens may still come, the end included: what cannot be finished with so many need not be begun.
        """
        ...

    def after(self, id: int) -> "Constraint":
        """The state behind one more token, which the mask allows. Never asked about EOS."""
        ...


def only(ids: Iterable[int], vocab: int) -> np.ndarray:
    """The mask [W] that allows these ids.

    >>> only([0, 33], 40).tolist()
    [1, 2]
    """
    mask_W = np.zeros(-(-vocab // BITS), np.uint32)
    for id in ids:
        mask_W[id // BITS] |= np.uint32(1 << id % BITS)
    return mask_W


@lru_cache(maxsize=64)
def all_but(ids: tuple[int, ...], vocab: int) -> np.ndarray:
    """The mask [W] that forbids these ids; one that nobody may write to.

    >>> allows(all_but((1,), 40), 1), allows(all_but((1,), 40), 2)
    (False, True)
    """
    mask_W = ~only((id for id in ids if id < vocab), vocab)
    mask_W.flags.writeable = False
    return mask_W


def allows(mask_W: np.ndarray | None, id: int) -> bool:
    return mask_W is None or bool(int(mask_W[id // BITS]) >> id % BITS & 1)


def ids_of(mask_W: np.ndarray) -> np.ndarray:
    """The ids that a mask allows, in order.

    >>> ids_of(only([7, 33], 40)).tolist()
    [7, 33]
    """
    return np.flatnonzero(np.unpackbits(mask_W.astype("<u4").view(np.uint8), bitorder="little"))
