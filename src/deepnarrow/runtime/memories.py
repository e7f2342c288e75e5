"""Encoder outputs kept for inputs that come again.

A document that is asked several questions by soft prompts, a few-shot prefix, a page that is reloaded: the same ids
need not be encoded twice. What is kept is bounded in bytes; what was not used for the longest time goes first.
"""

import threading
from collections import OrderedDict
from collections.abc import Sequence

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.runtime.engine import Engine, Memory

Key = tuple[bytes, bytes]


class Memories:
    """At most `limit` bytes of one engine's memories, by the content of input and prompt. For any number of threads.

    Two threads that miss the same input at once both encode it; the later keeps its memory. A memory in use outlives
    its place here, so the limit bounds what is kept, not what is running.
    """

    def __init__(self, limit: int = 256 * 2**20) -> None:
        if limit < 0:
            raise UserError(f"the cache of encoded inputs has 0 or more bytes, not {limit}")
        self.limit = limit
        self.bytes = self.hits = self.misses = 0
        self._kept: OrderedDict[Key, tuple[Memory, int]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Sequence[int], prompt: np.ndarray | None = None) -> Memory | None:
        """What is kept of an input, which counts as used now; None where nothing is."""
        key = content(ids, prompt)
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                self.misses += 1
                return None
            self.hits += 1
            self._kept.move_to_end(key)
            return found[0]

    def put(self, ids: Sequence[int], prompt: np.ndarray | None, memory: Memory) -> None:
        """Keep a memory, if it fits at all, and let go of the oldest until all fit."""
        key, size = content(ids, prompt), memory.bytes
        gone = []  # freed outside the lock: an engine may take its time
        with self._lock:
            if key in self._kept:
                gone.append(self._kept.pop(key))
                self.bytes -= gone[-1][1]
            if size <= self.limit:
                self._kept[key] = memory, size
                self.bytes += size
            while self.bytes > self.limit:
                gone.append(self._kept.popitem(last=False)[1])
                self.bytes -= gone[-1][1]
        del gone

    def encode(
        self, engine: Engine, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> list[Memory]:
        """As `engine.encode`, but what is kept is not encoded again, nor what stands twice among `inputs`."""
        fronts = [None] * len(inputs) if prompts is None else list(prompts)
        keys = [content(ids, prompt) for ids, prompt in zip(inputs, fronts, strict=True)]
        found: dict[Key, Memory] = {}
        missing: dict[Key, int] = {}
        for place, key in enumerate(keys):
            if key in found or key in missing:
                with self._lock:
                    self.hits += 1
                continue
            memory = self.get(inputs[place], fronts[place])
            if memory is None:
                missing[key] = place
            else:
                found[key] = memory
        if missing:
            places = list(missing.values())
            chosen = None if prompts is None else [fronts[place] for place in places]
            made = engine.encode([inputs[place] for place in places], chosen)
            for (key, place), memory in zip(missing.items(), made, strict=True):
                found[key] = memory
                self.put(inputs[place], fronts[place], memory)
        return [found[key] for key in keys]

    def clear(self) -> None:
        with self._lock:
            gone = self._kept
            self._kept, self.bytes = OrderedDict(), 0
        del gone

    def __len__(self) -> int:
        return len(self._kept)


def content(ids: Sequence[int], prompt: np.ndarray | None) -> Key:
    """What makes two inputs the same.

    >>> content([5, 1], None) == content((5, 1), None), content([5, 1], None) == content([1, 5], None)
    (True, False)
    """
    front = b"" if prompt is None else str(prompt.shape).encode() + np.ascontiguousarray(prompt, "<f4").tobytes()
    return np.asarray(ids, "<i4").tobytes(), front
