"""Adafactor against T5's formulas, re-stated in float64 as mesh-TF's `optimize.py` has them."""

import numpy as np
import pytest
import torch
from torch import nn

from deepnarrow.train import adafactor
from deepnarrow.train.adafactor import Adafactor


class MeshAdafactor:
    """One parameter, in the order of mesh-TF's `apply_grad`; the two largest sides are factored from 128 up."""

    def __init__(self, value: np.ndarray) -> None:
        self.value, self.step = value.astype(np.float64), 0
        large, small = sorted(range(value.ndim), key=lambda side: -value.shape[side])[:2] if value.ndim > 1 else (0, 0)
        self.sides = (large, small) if value.ndim > 1 and value.shape[small] >= 128 else None
        self.row = self.column = self.whole = np.zeros(())

    def apply(self, gradient: np.ndarray, rate: float) -> None:
        decay = 1 - (self.step + 1.0) ** -0.8
        self.step += 1
        gradient = gradient.astype(np.float64)
        squares = gradient**2 + 1e-30
        scale = max(rms(self.value), 1e-3)
        if self.sides:
            large, small = self.sides
            self.row = self.row * decay + squares.mean(large, keepdims=True) * (1 - decay)
            self.column = self.column * decay + squares.mean(small, keepdims=True) * (1 - decay)
            update = gradient / np.sqrt(self.row / self.row.mean(small, keepdims=True)) / np.sqrt(self.column)
        else:
            self.whole = self.whole * decay + squares * (1 - decay)
            update = gradient / np.sqrt(self.whole)
        self.value = self.value - rate * scale * update / max(1.0, rms(update))


def rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))


@pytest.mark.parametrize("size", [(128, 200), (300, 128), (127, 300), (32, 12), (64,)])
def test_two_hundred_steps_are_those_of_mesh_tensorflow(size: tuple[int, ...]) -> None:
    """Gradients from 1e-6 to 1e3 and of few directions, a rate that falls, a parameter that is not small."""
    source = np.random.default_rng(size[0])
    start = source.normal(size=size).astype(np.float32) * 0.3
    oracle, parameter = MeshAdafactor(start), nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = Adafactor([parameter], lr=1.0)
    columns = source.normal(size=size[-1:]) ** 2
    for step in range(200):
        gradient = (source.normal(size=size) * columns * 10 ** source.uniform(-6, 3)).astype(np.float32)
        rate = 0.05 / np.sqrt(max(step, 10))
        oracle.apply(gradient, rate)
        optimizer.param_groups[0]["lr"] = rate
        parameter.grad = torch.from_numpy(gradient)
        optimizer.step()
    moved = oracle.value - start
    assert rms(moved) > 0.01  # so that the comparison is of something
    assert rms(parameter.detach().numpy() - oracle.value) < 1e-4 * rms(moved)
    kinds = set(optimizer.state[parameter]) - {"step"}
    assert kinds == ({"row", "column"} if oracle.sides else {"moment"})


def test_two_factored_steps_by_hand() -> None:
    """[[a, b], [c, d]] with a rate of 0.1; every quantity is written out."""
    parameter = nn.Parameter(torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    optimizer = Adafactor([parameter], lr=0.1, factored_from=2)
    parameter.grad = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    optimizer.step()
    # squares [[1, 9], [1, 9]]: rows 5, 5, columns 1, 9; the update [[1, 1], [1, 1]] is not clipped, the size is 1
    assert parameter.flatten().tolist() == pytest.approx([0.9, -1.1, 0.9, -1.1], rel=1e-6)
    parameter.grad = torch.tensor([[2.0, 2.0], [0.0, 0.0]])
    optimizer.step()
    keep = 1 - 2**-0.8  # 0.42565
    row = [keep * 5 + (1 - keep) * 4, keep * 5]
    column = [keep * 1 + (1 - keep) * 2, keep * 9 + (1 - keep) * 2]
    mean = (row[0] + row[1]) / 2
    update = [2 / (row[0] / mean * column[0]) ** 0.5, 2 / (row[0] / mean * column[1]) ** 0.5]
    length = ((update[0] ** 2 + update[1] ** 2) / 4) ** 0.5
    assert length < 1
    size = ((0.9**2 + 1.1**2) / 2) ** 0.5
    expected = [0.9 - 0.1 * size * update[0], -1.1 - 0.1 * size * update[1], 0.9, -1.1]
    assert parameter.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_slabs_change_nothing_but_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """A large matrix is worked on some rows at a time, the last ones fewer."""
    found = []
    for slab in (2**30, 130 * 37):
        monkeypatch.setattr(adafactor, "SLAB", slab)
        parameter = nn.Parameter(torch.randn(256, 130, generator=torch.Generator().manual_seed(0)))
        optimizer = Adafactor([parameter], lr=0.1, weight_decay=0.01)
        for step in range(3):
            parameter.grad = torch.randn(256, 130, generator=torch.Generator().manual_seed(step))
            optimizer.step()
        found.append((parameter.detach(), optimizer.state[parameter]))
    assert len(adafactor._slabs(parameter)) == 7
    (one, one_state), (two, two_state) = found
    torch.testing.assert_close(one, two, rtol=2e-6, atol=1e-6)
    for key in ("row", "column"):
        torch.testing.assert_close(one_state[key], two_state[key], rtol=2e-6, atol=0)


def test_unscaled_steps_are_of_the_learning_rate() -> None:
    """RMS 1 of the update whatever the parameter's size, zero too; decay by hand."""
    for size in (100.0, 1.0, 0.0):
        parameter = nn.Parameter(torch.full((4,), size))
        optimizer = Adafactor([parameter], lr=0.3, weight_decay=0.1, scaled=False)
        parameter.grad = torch.tensor([2.0, -2.0, 2.0, -2.0])
        optimizer.step()
        wanted = [size * 0.97 - 0.3 * sign for sign in (1, -1, 1, -1)]
        assert parameter.tolist() == pytest.approx(wanted, rel=1e-6)


def test_a_gradient_of_zeros_moves_nothing() -> None:
    """1e-30 under the root keeps the update 0 and not 0 / 0."""
    for size in ((130, 130), (5,)):
        parameter = nn.Parameter(torch.ones(size))
        parameter.grad = torch.zeros(size)
        Adafactor([parameter], lr=1.0).step()
        assert torch.equal(parameter, torch.ones(size))
