"""Packing: every example whole in one row, numbered, nothing over the edge, and few rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepnarrow.errors import UserError
from deepnarrow.text.batches import WINDOW, PairBatches
from deepnarrow.text.packing import Batch, Pair, pack, pad

SIDE = st.integers(0, 19).map(lambda n: [*range(5, 5 + n), 1])
PAIRS = st.lists(st.tuples(SIDE, SIDE), min_size=1, max_size=40)


def unpacked(batch: Batch) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """The examples of a packed batch, read off its segment numbers."""
    assert batch.input_segments is not None
    assert batch.target_segments is not None
    found = []
    for inputs, targets, ins, outs in zip(
        batch.inputs, batch.targets, batch.input_segments, batch.target_segments, strict=True
    ):
        for segment in range(1, int(ins.max()) + 1):
            found.append((tuple(inputs[ins == segment].tolist()), tuple(targets[outs == segment].tolist())))
    return found


@given(PAIRS)
def test_packing_keeps_every_example_whole(pairs: list[Pair]) -> None:
    batch = pack(pairs, 32, 20)
    assert sorted(unpacked(batch)) == sorted((tuple(i), tuple(t)) for i, t in pairs)
    assert batch.inputs.shape[1] <= 32
    assert batch.targets.shape[1] <= 24  # 20, rounded up to a multiple of 8
    assert batch.input_segments is not None
    assert batch.target_segments is not None
    for side, (ids, segments) in enumerate(
        ((batch.inputs, batch.input_segments), (batch.targets, batch.target_segments))
    ):
        assert ((segments > 0) == (ids > 0)).all()
        assert ((segments > 0).sum(axis=1) <= (32, 20)[side]).all()
        for row in segments:  # one after the other, without a gap, padding last
            real = row[row > 0]
            assert (np.diff(real) >= 0).all()
            assert (np.diff(real) <= 1).all()
            assert not row[len(real) :].any()
    assert batch.tokens == sum(len(i) + len(t) for i, t in pairs)


def test_packing_is_close_to_full() -> None:
    """Lengths of sentences: 128 examples fill their rows to 90 %, where padding leaves less than half."""
    generator = np.random.default_rng(0)
    lengths = np.clip(generator.lognormal(3, 0.6, 128).astype(int), 2, 256)
    pairs: list[Pair] = [(np.full(length, 7), np.full(3, 7)) for length in lengths]
    packed, plain = pack(pairs, 256, 64), pad(pairs)
    assert np.count_nonzero(packed.inputs) / packed.inputs.size > 0.9
    assert np.count_nonzero(plain.inputs) / plain.inputs.size < 0.5


def test_short_examples_leave_little_empty_on_either_side() -> None:
    """Sentences with a label each: both sides of every row are nearly full, where padding fills a third of its places.

    First fit alone, which was tried, left a seventh of such rows empty: equally many labels do not fit equal inputs.
    """
    generator = np.random.default_rng(1)
    pairs = [([7] * int(length) + [1], [7, 1]) for length in np.clip(generator.lognormal(2.9, 0.5, 640), 4, 60)]
    batches = PairBatches(sources=[pairs], seed=0, batch=32, batching="packed", input_length=128, target_length=8)
    found = [batches(n) for n in range(20)]
    assert max(batch.inputs.shape[1] for batch in found) <= 512
    padding = 1 - sum(batch.tokens for batch in found) / sum(batch.places for batch in found)
    assert padding < 0.05


def test_what_does_not_fit_is_told() -> None:
    with pytest.raises(UserError, match="9 and 2 tokens does not fit a row of 8 and 8"):
        pack([([5] * 8 + [1], [5, 1])], 8, 8)


def test_all_layouts_hold_the_same_examples() -> None:
    pairs = [([n + 2] * (1 + n % 13) + [1], [n + 2, 1]) for n in range(2000)]
    batches = {
        kind: PairBatches(sources=[pairs], seed=3, batch=16, batching=kind) for kind in ("padded", "bucketed", "packed")
    }
    padded = [tuple(sorted(batches["padded"](n).targets[:, 0].tolist())) for n in range(WINDOW)]
    packed = [tuple(sorted(first for _, (first, _) in unpacked(batches["packed"](n)))) for n in range(WINDOW)]
    assert packed == padded
    bucketed = [batches["bucketed"](n) for n in range(WINDOW)]
    together = sorted(first for batch in bucketed for first in batch.targets[:, 0].tolist())
    assert together == sorted(first for batch in padded for first in batch)
    padding = [
        sum(batch.places - batch.tokens for batch in (batches[kind](n) for n in range(WINDOW)))
        for kind in ("padded", "bucketed", "packed")
    ]
    assert padding[1] < 0.8 * padding[0]


def test_bucketed_batches_come_in_a_seeded_order_and_any_can_be_asked_for() -> None:
    pairs = [([5] * (1 + n % 50) + [1], [5 + n, 1]) for n in range(5000)]
    one, other = (PairBatches(sources=[pairs], seed=0, batch=8, batching="bucketed") for _ in range(2))
    forward = [one(n) for n in range(3 * WINDOW)]
    widths = [batch.inputs.shape[1] for batch in forward[:WINDOW]]
    assert widths != sorted(widths)
    for n in (150, 3, 70, 0):
        assert np.array_equal(other(n).inputs, forward[n].inputs)
        assert np.array_equal(other(n).targets, forward[n].targets)


def test_unknown_batching() -> None:
    with pytest.raises(UserError, match="did you mean packed"):
        PairBatches(sources=[[([1], [1])]], seed=0, batch=8, batching="pakced")
