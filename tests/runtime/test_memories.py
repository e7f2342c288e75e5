"""The cache of encoded inputs: what is kept, what goes, and what two threads do to it."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.model.engine import TorchEngine
from deepnarrow.runtime.memories import Memories


class Sized:
    def __init__(self, bytes: int) -> None:
        self.bytes, self.length = bytes, 1


class Encoder:
    """Memories that know their size, in place of an engine's large ones."""

    def __init__(self) -> None:
        self.encoded: list[list[int]] = []

    def encode(self, inputs: Sequence[Sequence[int]], prompts: object = None) -> list[Sized]:
        self.encoded += [list(row) for row in inputs]
        return [Sized(10 * len(row)) for row in inputs]


def test_the_least_recently_used_goes_first() -> None:
    kept = Memories(50)
    memories = [Sized(20) for _ in range(3)]
    kept.put([1], None, memories[0])
    kept.put([2], None, memories[1])
    assert kept.get([1]) is memories[0]
    kept.put([3], None, memories[2])
    assert kept.get([2]) is None
    assert kept.get([1]) is memories[0]
    assert kept.get([3]) is memories[2]
    assert (kept.bytes, len(kept), kept.hits, kept.misses) == (40, 2, 3, 1)


def test_the_limit_holds_and_sizes_are_counted_once() -> None:
    kept = Memories(50)
    kept.put([1], None, Sized(51))
    assert (kept.bytes, len(kept)) == (0, 0)
    for size in (10, 30, 20):
        kept.put([2], None, Sized(size))
    assert (kept.bytes, len(kept)) == (20, 1)
    kept.clear()
    assert (kept.bytes, len(kept)) == (0, 0)
    with pytest.raises(UserError, match="0 or more bytes"):
        Memories(-1)


def test_a_prompt_makes_another_input() -> None:
    kept, prompt = Memories(), np.ones((2, 4), np.float32)
    memory = Sized(1)
    kept.put([5, 1], prompt, memory)
    assert kept.get([5, 1]) is None
    assert kept.get([5, 1], prompt * 2) is None
    assert kept.get([5, 1], prompt.reshape(4, 2)) is None
    assert kept.get([5, 1], prompt.copy()) is memory


def test_only_what_is_missing_is_encoded_and_once() -> None:
    kept, encoder = Memories(), Encoder()
    first = kept.encode(encoder, [[5, 1], [6, 1], [5, 1]])
    assert first[0] is first[2]
    again = kept.encode(encoder, [[6, 1], [7, 1], [5, 1]])
    assert again[0] is first[1]
    assert again[2] is first[0]
    assert encoder.encoded == [[5, 1], [6, 1], [7, 1]]
    nothing = Memories(0)
    one, two = nothing.encode(encoder, [[8, 1], [8, 1]])
    assert one is two, "within a call a repeated input is encoded once even where nothing can be kept"


def test_many_threads() -> None:
    kept, encoder = Memories(200), Encoder()

    def work(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        right = True
        for _ in range(300):
            row = [int(rng.integers(2, 30))] * int(rng.integers(1, 5))
            [memory] = kept.encode(encoder, [row])
            right &= memory.bytes == 10 * len(row)
        return right

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(work, range(8)))
    assert kept.bytes == sum(size for _, size in kept._kept.values()) <= 200
    assert kept.hits + kept.misses == 8 * 300


def test_an_engines_memories_are_its_own_sizes(untrained) -> None:
    engine = TorchEngine(untrained("tiny-nl1-dm32-ff64-kv8-v50"))
    kept = Memories()
    [memory] = kept.encode(engine, [[5, 6, 1]])
    assert kept.bytes == memory.bytes > 0
