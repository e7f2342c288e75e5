"""Packed rows: every example gives what it gives alone, in value and in gradient."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5, shift_right
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch, padded
from deepnarrow.train import loss

CPU = torch.device("cpu")
BASE = "tiny-nl2-dm32-ff64-kv8-nh4-v120"
SHAPES = [BASE, f"{BASE}-geglu-untied", f"{BASE}-skv", f"{BASE}-kh2", f"{BASE}-kh1-skv", f"{BASE}-sh", f"{BASE}-dl1"]
Pairs = list[tuple[list[int], list[int]]]


def made(shape: str) -> T5:
    model = T5(parse(shape))
    initialise(model, 3)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("table"):
                weight.normal_(0, 1, generator=generator)  # so that a wrong offset shows
    return model.train()


def pairs(lengths: list[tuple[int, int]], seed: int = 0) -> Pairs:
    random = np.random.default_rng(seed)
    return [(random.integers(2, 120, a).tolist(), random.integers(2, 120, b).tolist()) for a, b in lengths]


def pack(rows: list[Pairs], spare: int = 0) -> Batch:
    """Each row's pairs one behind the other, `spare` columns of padding at the end of the longest."""
    sides = []
    for side in (0, 1):
        ids = padded([[id for pair in row for id in pair[side]] + [0] * spare for row in rows])
        numbers = padded([[n for n, pair in enumerate(row, 1) for _ in pair[side]] + [0] * spare for row in rows])
        sides.append((ids, numbers))
    return Batch(sides[0][0], sides[1][0], sides[0][1], sides[1][1])


def alone(row_pairs: Pairs) -> Batch:
    return Batch(padded([inputs for inputs, _ in row_pairs]), padded([targets for _, targets in row_pairs]))


def check(shape: str, rows: list[Pairs], spare: int, tolerance: float = 1e-5) -> None:
    packed, single = made(shape), made(shape)
    found = loss.accumulate(packed, pack(rows, spare), divisor=10, device=CPU, z_loss=0.01)
    expected = loss.accumulate(
        single, alone([pair for row in rows for pair in row]), divisor=10, device=CPU, z_loss=0.01
    )
    assert found.tokens == expected.tokens
    torch.testing.assert_close(found.nll, expected.nll, rtol=tolerance, atol=tolerance)
    theirs = dict(single.named_parameters())
    for name, weight in packed.named_parameters():
        torch.testing.assert_close(
            weight.grad, theirs[name].grad, rtol=1e-4, atol=tolerance, msg=lambda m, n=name: n + m
        )


@pytest.mark.parametrize("spare", [0, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_packed_rows_give_the_loss_and_gradient_of_their_examples_alone(shape: str, spare: int) -> None:
    examples = pairs([(5, 3), (9, 1), (2, 7), (1, 1), (16, 8), (3, 4)])
    check(shape, [examples[:3], examples[3:5], examples[5:]], spare)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 9)), min_size=1, max_size=5), min_size=1, max_size=3
    ),
    st.integers(0, 9),
    st.sampled_from(SHAPES),
)
def test_any_packing(lengths: list[list[tuple[int, int]]], spare: int, shape: str) -> None:
    check(shape, [pairs(row, seed) for seed, row in enumerate(lengths)], spare)


def test_held_out_loss_of_packed_rows() -> None:
    examples = pairs([(5, 3), (9, 1), (2, 7)])
    model = made(BASE)
    model.eval()
    expected, found = (loss.sums(model, data, device=CPU) for data in (alone(examples), pack([examples], 4)))
    assert float(found.nll) == pytest.approx(float(expected.nll), rel=1e-5)
    assert found.tokens == expected.tokens


def test_without_segments_the_same_rows_give_something_else() -> None:
    """So the tests above see whether segments are heeded at all."""
    rows = pack([pairs([(5, 3), (9, 4)])])
    model = made(BASE)
    heeded, blind = (loss.sums(model, batch, device=CPU).nll for batch in (rows, Batch(rows.inputs, rows.targets)))
    assert not torch.allclose(heeded, blind, rtol=1e-3)


def test_every_segment_begins_with_the_first_token() -> None:
    targets, segments = torch.tensor([[7, 8, 1, 9, 1, 0]]), torch.tensor([[1, 1, 1, 2, 2, 0]])
    assert shift_right(targets, segments).tolist() == [[0, 7, 8, 0, 9, 0]]


def test_segments_of_one_side_alone_are_refused() -> None:
    ids = torch.ones(1, 3, dtype=torch.long)
    with pytest.raises(ValueError, match="segments of both"):
        made(BASE).hidden(ids, ids, input_segments=ids)
