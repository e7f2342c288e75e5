"""Muon against torch's own, and what makes it Muon."""

import math

import pytest
import torch
from torch import nn

from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.train import optim
from deepnarrow.train.config import Config
from deepnarrow.train.muon import ITERATIONS, Muon, orthogonal

SIZES = [(48, 16), (16, 48), (24, 24)]


def random(size: tuple[int, ...], seed: int) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_in_bfloat16_the_iteration_is_that_of_torch(size: tuple[int, ...]) -> None:
    """torch's optimizer, given a fresh matrix, moves it by exactly the orthogonal matrix."""
    gradient = random(size, 1)
    parameter = nn.Parameter(torch.zeros(size))
    parameter.grad = gradient.clone()
    oracle = torch.optim.Muon([parameter], lr=1.0, momentum=0.0, weight_decay=0.0, adjust_lr_fn="original")
    oracle.step()
    shape_rule = math.sqrt(max(1.0, size[0] / size[1]))
    torch.testing.assert_close(
        -parameter.detach() / shape_rule, orthogonal(gradient, torch.bfloat16).float(), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("size", SIZES)
def test_many_steps_are_those_of_torch(size: tuple[int, ...]) -> None:
    """Up to the roundings of bfloat16, which torch's uses: its steps and ours point the same way and are as long."""
    ours, theirs = nn.Parameter(random(size, 0)), nn.Parameter(random(size, 0))
    mine = Muon([{"params": [ours], "matrices": True, "weight_decay": 0.1}], lr=0.01)
    oracle = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    start = random(size, 0)
    for step in range(12):
        for parameter, optimizer in ((ours, mine), (theirs, oracle)):
            parameter.grad = random(size, 10 + step)
            optimizer.step()
    moved, expected = (ours.detach() - start).flatten(), (theirs.detach() - start).flatten()
    assert torch.nn.functional.cosine_similarity(moved, expected, dim=0) > 0.9995
    assert moved.norm() / expected.norm() == pytest.approx(1, abs=0.01)


def test_the_iteration_by_hand() -> None:
    """Of a 1 x 1 matrix: normed to 1, then the polynomial five times over."""
    value = 1.0
    for _ in range(ITERATIONS):
        value = 3.4445 * value - 4.7750 * value**3 + 2.0315 * value**5
    assert orthogonal(torch.tensor([[7.0]])).item() == pytest.approx(value, rel=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_singular_values_come_near_one_and_directions_stay(size: tuple[int, ...]) -> None:
    """Sum of products with the matrix of singular directions is the sum of the new values, so none is turned."""
    matrix = random(size, 2)
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    found = torch.diag(left.T @ orthogonal(matrix) @ right.T)
    assert found.min() > 0.3  # of singular values near 0, five steps lift what they can
    assert found.max() < 1.25
    assert found.square().sum() == pytest.approx(orthogonal(matrix).square().sum().item(), rel=1e-3)


def test_a_step_is_about_as_long_as_that_of_adamw() -> None:
    for size in ((64, 256), (256, 64), (128, 128)):
        parameter = nn.Parameter(torch.zeros(size))
        parameter.grad = random(size, 3)
        Muon([{"params": [parameter], "matrices": True}], lr=0.5).step()
        assert parameter.square().mean().sqrt().item() / 0.5 == pytest.approx(0.2, rel=0.15)


def test_no_gradient_no_move_and_a_zero_gradient_is_no_accident() -> None:
    still, zero = nn.Parameter(random((8, 8), 0)), nn.Parameter(random((8, 8), 1))
    zero.grad = torch.zeros(8, 8)
    Muon([{"params": [still, zero], "matrices": True}], lr=0.5).step()
    assert torch.equal(still, random((8, 8), 0))
    assert torch.equal(zero, random((8, 8), 1))


@pytest.mark.parametrize("shape", ["tiny-dm32-ff64-nh2-kv16-nl2-v512", "v1_1-small-nl1-dm32-ff64-kv16-nh2-v128"])
def test_which_weights_take_muon(shape: str) -> None:
    model = T5(parse(shape))
    optimizer = optim.build(config(shape), model)
    names = {parameter: name for name, parameter in model.named_parameters()}
    kinds = {names[parameter]: group["matrices"] for group in optimizer.param_groups for parameter in group["params"]}
    assert set(kinds) == set(names.values())
    for name, muon in kinds.items():
        inside = any(part in name for part in ("query", "key", "value", "attention.output", "wi", "wo"))
        assert muon == inside, name


def test_the_others_take_the_adamw_of_torch_and_the_rate_reaches_all() -> None:
    model, plain = (T5(parse("tiny-dm32-ff64-nh2-kv16-nl1-v128")) for _ in range(2))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(random(tuple(parameter.shape), number))
    plain.load_state_dict(model.state_dict())
    optimizer = optim.build(config("tiny-dm32-ff64-nh2-kv16-nl1-v128", weight_decay=0.1), model)
    oracle = optim.build(config("tiny-dm32-ff64-nh2-kv16-nl1-v128", weight_decay=0.1, optimizer="adamw"), plain)
    for step in range(3):
        for one in (optimizer, oracle):
            optim.set_rate(one, 0.01 / (step + 1))
            for group in one.param_groups:
                for parameter in group["params"]:
                    parameter.grad = random(tuple(parameter.shape), 50 + step)
            one.step()
    expected = plain.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]) != optim.is_hidden(name) or "norm" in name


def config(shape: str, **changes: object) -> Config:
    start: dict = {"shape": shape, "steps": 9, "batch": 1, "input_length": 8, "optimizer": "muon"}
    return Config.from_json({**start, "schedule": "constant", "learning_rate": 0.01, **changes})
