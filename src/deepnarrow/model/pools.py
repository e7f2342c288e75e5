"""Where an engine of PyTorch keeps keys and values: pools of places, and the memories and rows that hold one each.

Shape key   Y layers   S places for sequences   C places for tokens   G key/value heads   K d_kv   M memory length
"""

from bisect import insort
from collections import deque
from collections.abc import Callable

from torch import Tensor

from deepnarrow.model.layers import KeysValues


class Pool:
    """Keys and values of sequences of at most `tokens` tokens, [Y, 2 or 1, S, G, C, K]: 1 where they are tied.

    Places are given from the lowest, so that those in use stay together at the front. Those given back by rows that
    Python frees, which may happen anywhere, are collected before the next is given.
    """

    def __init__(self, tokens: int, like: Callable[[int, int], Tensor]) -> None:
        self.tokens, self._like = tokens, like
        self.all = like(0, tokens)
        self.used: set[int] = set()
        self._free: list[int] = []
        self._returned: deque[int] = deque()

    @property
    def extent(self) -> int:
        """One more than the highest place in use."""
        return max(self.used, default=-1) + 1

    @property
    def bytes_each(self) -> int:
        return self.all.nbytes // max(1, self.all.shape[2])

    def take(self) -> int:
        self.collect()
        if not self._free:
            have = self.all.shape[2]
            more = max(4, have)
            wider = self._like(have + more, self.tokens)
            wider[:, :, :have] = self.all
            self.all = wider
            self._free = list(range(have, have + more))
        place = self._free.pop(0)
        self.used.add(place)
        return place

    def give_back(self, place: int) -> None:
        self._returned.append(place)

    def collect(self) -> None:
        while self._returned:
            place = self._returned.popleft()
            self.used.discard(place)
            insort(self._free, place)
        if not self.used and self.all.shape[2]:  # nothing is kept for a crowd that has gone
            self.all, self._free = self._like(0, self.tokens), []

    def put(self, place: int, source: Tensor, tokens: int) -> None:
        """Copy the first `tokens` tokens of [Y, 2 or 1, G, *, K]."""
        self.all[:, :, place, :, :tokens] = source[:, :, :, :tokens]

    def layer(self, number: int, places: slice | Tensor, tokens: int) -> KeysValues:
        both = self.all[number]
        key = both[0, places, :, :tokens]
        return KeysValues(key, key if len(both) == 1 else both[1, places, :, :tokens])


class TorchMemory:
    """One encoded input: every layer's keys and values, [Y, 2 or 1, G, M, K]. In a pool only while rows look at it."""

    def __init__(self, keys_values: Tensor) -> None:
        self.keys_values = keys_values
        self.pool: Pool | None = None
        self.place = self.rows = 0

    @property
    def length(self) -> int:
        return self.keys_values.shape[3]

    @property
    def bytes(self) -> int:
        return self.keys_values.nbytes

    def release(self) -> None:
        self.rows -= 1
        if not self.rows and self.pool is not None:
            self.pool.give_back(self.place)
            self.pool = None


class TorchRow:
    """One sequence: its memory, its place among the sequences' pools, how much of it is filled."""

    def __init__(self, memory: TorchMemory, pool: Pool, place: int, length: int = 0) -> None:
        self.memory, self.pool, self.place, self._length = memory, pool, place, length
        memory.rows += 1

    @property
    def length(self) -> int:
        return self._length

    @property
    def bytes(self) -> int:
        return self.pool.bytes_each

    def __del__(self) -> None:
        self.pool.give_back(self.place)
        self.memory.release()
