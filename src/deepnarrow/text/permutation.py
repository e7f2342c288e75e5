"""A shuffled order in no memory: a seeded bijection on 0..size-1, computed for the asked indices only.

A Feistel network permutes the smallest power of four that holds `size` (Luby and Rackoff 1988: any round function
gives a bijection). What falls outside is sent through again until it falls inside (cycle walking, Black and Rogaway
2002), which keeps it a bijection; for a size above 4 that takes fewer than four passes on average.
"""

import numpy as np

ROUNDS = 8
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: the increment of splitmix64 (Steele, Lea and Flood 2014)
WORD = 2**64 - 1


def permute(index: np.ndarray, size: int, key: int) -> np.ndarray:
    """Where each of `index` (integers in 0..size-1, any shape) goes in the order that `key` names; int64.

    >>> permute(np.arange(10), 10, key=3).tolist()
    [1, 2, 8, 6, 3, 7, 4, 5, 0, 9]
    """
    index = np.asarray(index)
    if index.size and (index.min() < 0 or index.max() >= size):
        raise IndexError(f"index outside 0..{size - 1}")
    half = max(-(-(size - 1).bit_length() // 2), 2)  # bits in each half of the network's word
    place = index.astype(np.uint64).ravel()
    keys = _round_keys(key)
    outside = np.arange(place.size)
    while outside.size:
        place[outside] = _feistel(place[outside], half, keys)
        outside = outside[place[outside] >= size]
    return place.astype(np.int64).reshape(index.shape)


def _feistel(word: np.ndarray, half: int, keys: np.ndarray) -> np.ndarray:
    low = np.uint64((1 << half) - 1)
    shift = np.uint64(half)
    left, right = word >> shift, word & low
    for key in keys:
        left, right = right, left ^ (_mix(right + key) & low)
    return (left << shift) | right


def _round_keys(key: int) -> np.ndarray:
    return _mix(np.array([(key + GOLDEN * n) & WORD for n in range(1, ROUNDS + 1)], np.uint64))


def _mix(word: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64: every bit of the word stirs every other."""
    word = (word ^ (word >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    word = (word ^ (word >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return word ^ (word >> np.uint64(31))
