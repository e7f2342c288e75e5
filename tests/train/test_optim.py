import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from deepnarrow.errors import UserError
from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.train import optim
from deepnarrow.train.adafactor import Adafactor
from deepnarrow.train.adamw_scale import AdamWScale
from deepnarrow.train.config import Config

TINY = "tiny-dm32-ff64-nh2-kv16-nl2-v512"


def parameters(*sizes: tuple[int, ...], scale: float = 0.3) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator) * scale) for size in sizes]


def gradients(ours: list[nn.Parameter], step: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(100 + step)
    # From tiny to huge, so that clipping and the smallest parameter size both matter.
    return [torch.randn(p.shape, generator=generator) * 10.0 ** (step - 2) for p in ours]


def test_adafactor_two_steps_by_hand() -> None:
    """Unfactored, one number: every quantity fits on one line."""
    parameter = nn.Parameter(torch.tensor([2.0]))
    optimizer = Adafactor([parameter], lr=0.1)
    parameter.grad = torch.tensor([3.0])
    optimizer.step()  # decay 1 - 1**-0.8 = 0: moment 9, update 3/3 = 1, not clipped, scale RMS = 2
    assert parameter.item() == pytest.approx(2.0 - 0.1 * 2.0 * 1.0)
    parameter.grad = torch.tensor([6.0])
    optimizer.step()
    keep = 1 - 2**-0.8
    moment = keep * 9 + (1 - keep) * 36
    update = 6 / math.sqrt(moment)
    assert update > 1  # so it is clipped to a root mean square of 1
    assert parameter.item() == pytest.approx(1.8 - 0.1 * 1.8 * 1.0)


def test_adafactor_factored_step_by_hand() -> None:
    """Second moment of [[1, 2], [2, 4]] has rank one, so the factors rebuild it and the first update is all ones."""
    parameter = nn.Parameter(torch.full((2, 2), 0.5))
    optimizer = Adafactor([parameter], lr=0.1, factored_from=2)
    parameter.grad = torch.tensor([[1.0, 2.0], [2.0, 4.0]])
    optimizer.step()
    assert optimizer.state[parameter]["row"].tolist() == pytest.approx([2.5, 10.0])
    assert optimizer.state[parameter]["column"].tolist() == pytest.approx([2.5, 10.0])
    assert parameter.flatten().tolist() == pytest.approx([0.5 - 0.1 * 0.5] * 4)


def test_adafactor_moves_a_zero_parameter_by_the_smallest_scale() -> None:
    parameter = nn.Parameter(torch.zeros(4))
    parameter.grad = torch.ones(4)
    Adafactor([parameter], lr=1.0).step()
    assert parameter.tolist() == pytest.approx([-1e-3] * 4)


@pytest.mark.parametrize("sizes", [[(40, 24)], [(7,)], [(40, 24), (3, 50), (16,), (5, 5)]])
def test_adafactor_equals_transformers(sizes: list[tuple[int, ...]]) -> None:
    """The oracle factors every matrix, so we do here; T5's limit of 128 is tested below."""
    from transformers.optimization import Adafactor as Oracle

    ours, theirs = parameters(*sizes), parameters(*sizes)
    our_optimizer = Adafactor(ours, lr=1.0, factored_from=1)
    their_optimizer = Oracle(theirs, lr=1.0, relative_step=False, scale_parameter=True, warmup_init=False)
    for step in range(6):
        for optimizer in (our_optimizer, their_optimizer):
            optim.set_rate(optimizer, 0.02 / (step + 1))
        for one, two, gradient in zip(ours, theirs, gradients(ours, step), strict=True):
            one.grad, two.grad = gradient.clone(), gradient.clone()
        our_optimizer.step()
        their_optimizer.step()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("size", "factored"), [((128, 128), True), ((127, 512), False), ((512,), False)])
def test_adafactor_factors_from_128(size: tuple[int, ...], factored: bool) -> None:
    (parameter,) = parameters(size)
    parameter.grad = torch.ones(size)
    optimizer = Adafactor([parameter], lr=0.1)
    optimizer.step()
    assert ("row" in optimizer.state[parameter]) == factored


def test_adamw_scale_by_hand() -> None:
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))  # root mean square sqrt(12.5)
    optimizer = AdamWScale([parameter], lr=0.01, eps=0.0)
    parameter.grad = torch.tensor([1.0, -5.0])
    optimizer.step()  # Adam's first step is the sign of the gradient
    size = math.sqrt(12.5)
    assert parameter.tolist() == pytest.approx([3.0 - 0.01 * size, 4.0 + 0.01 * size])


def test_adamw_scale_is_adam_where_every_parameter_has_size_one() -> None:
    (ours,), (theirs,) = parameters((64,)), parameters((64,))
    gradient = gradients([ours], 1)[0]
    for parameter in (ours, theirs):
        parameter.data /= parameter.data.square().mean().sqrt()
        parameter.grad = gradient.clone()
    AdamWScale([ours], lr=1e-3, eps=0.0).step()
    torch.optim.Adam([theirs], lr=1e-3, eps=0.0).step()
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


def test_adamw_scale_is_that_of_nanot5() -> None:
    """Its step, re-stated in float64: the corrections of both moments in the rate, epsilon outside of them."""
    size, beta1, beta2, epsilon = (30, 20), 0.9, 0.999, 1e-4
    (parameter,) = parameters(size)
    value, first, second = parameter.detach().numpy().astype(np.float64), np.zeros(size), np.zeros(size)
    optimizer = AdamWScale([parameter], lr=1.0, eps=epsilon, weight_decay=0.01)
    for step in range(1, 101):
        rate = 0.02 / step**0.5
        gradient = gradients([parameter], step % 5)[0]
        parameter.grad = gradient.clone()
        optim.set_rate(optimizer, rate)
        optimizer.step()
        wide = gradient.numpy().astype(np.float64)
        first = beta1 * first + (1 - beta1) * wide
        second = beta2 * second + (1 - beta2) * wide**2
        corrected = rate * math.sqrt(1 - beta2**step) / (1 - beta1**step)
        value = value - corrected * max(1e-3, np.sqrt(np.mean(value**2))) * first / (np.sqrt(second) + epsilon)
        value = value - rate * 0.01 * value
    assert np.abs(parameter.detach().numpy() - value).max() < 1e-5 * np.abs(value).max()


@pytest.mark.parametrize("name", ["adafactor", "adamw", "adamw_scale", "muon"])
def test_states_survive_a_trip_through_named_tensors(name: str) -> None:
    config = Config(shape=TINY, steps=9, batch=1, input_length=8, optimizer=name, factored_from=32)

    def build() -> tuple[T5, torch.optim.Optimizer]:
        model = T5(parse(TINY))
        initialise(model, 0)
        return model, optim.build(config, model)

    def step(model: T5, optimizer: torch.optim.Optimizer, number: int) -> None:
        optim.set_rate(optimizer, 0.01)
        for parameter, gradient in zip(model.parameters(), gradients(list(model.parameters()), number), strict=True):
            parameter.grad = gradient
        optimizer.step()

    model, optimizer = build()
    step(model, optimizer, 0)
    step(model, optimizer, 1)
    saved = {key: value.clone() for key, value in optim.state_tensors(optimizer, model).items()}
    other, other_optimizer = build()
    other.load_state_dict(model.state_dict())
    optim.load_state(other_optimizer, other, saved, source="here")
    step(model, optimizer, 2)
    step(other, other_optimizer, 2)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), other.parameters(), strict=True))
    again = optim.state_tensors(other_optimizer, other)
    assert all(torch.equal(value, again[key]) for key, value in optim.state_tensors(optimizer, model).items())


def test_states_of_another_model_are_refused() -> None:
    config = Config(shape=TINY, steps=9, batch=1, input_length=8)
    model = T5(parse(TINY))
    optimizer = optim.build(config, model)
    with pytest.raises(UserError, match="this model does not have"):
        optim.load_state(optimizer, model, {"nowhere.weight/row": torch.zeros(2)}, source="file")
    with pytest.raises(UserError, match="has shape"):
        optim.load_state(optimizer, model, {"embedding.weight/moment": torch.zeros(2)}, source="file")


def test_gradient_norm_and_scaling() -> None:
    model = nn.Linear(2, 1, bias=True)
    model.weight.grad, model.bias.grad = torch.tensor([[3.0, 0.0]]), torch.tensor([4.0])
    assert optim.gradient_norm(model).item() == pytest.approx(5.0)
    optim.scale_gradients(model, 0.5)
    assert (model.weight.grad.tolist(), model.bias.grad.tolist()) == ([[1.5, 0.0]], [2.0])


RANK = """
import os
import sys
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from deepnarrow.train.adafactor import Adafactor
from deepnarrow.train.adamw_scale import AdamWScale
from deepnarrow.train.muon import Muon

torch.set_num_threads(1)
rank = int(os.fork() == 0)  # torch is imported once for both
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
mesh = init_device_mesh("cpu", (2,))
makers = (
    lambda one: Adafactor([one], lr=0.1, weight_decay=0.1),
    lambda one: AdamWScale([one], lr=0.1, weight_decay=0.1),
    lambda one: Muon([{"params": [one], "matrices": one.ndim == 2, "weight_decay": 0.1}], lr=0.1),
)
for make in makers:
    for size, side in (((129, 130), 0), ((131, 140), 1), ((7,), 0), ((9, 5), 0)):  # no half is like the other
        values = [torch.randn(size, generator=torch.Generator().manual_seed(seed)) for seed in range(5)]
        alone = nn.Parameter(values[0].clone())
        spread = nn.Parameter(distribute_tensor(values[0].clone(), mesh, [Shard(side)]))
        optimizers = make(alone), make(spread)
        for value in values[1:]:
            alone.grad, spread.grad = value, distribute_tensor(value, mesh, [Shard(side)])
            for optimizer in optimizers:
                optimizer.step()
        torch.testing.assert_close(spread.detach().full_tensor(), alone.detach(), rtol=2e-6, atol=2e-6)
dist.destroy_process_group()
if rank == 0:
    sys.exit(os.waitstatus_to_exitcode(os.wait()[1]))
"""


def test_sharded_over_two_ranks_is_the_same_step(tmp_path: Path) -> None:
    """Sizes, means and clipping are of whole tensors, also where the shards are of unequal size."""
    command = [sys.executable, "-c", RANK, str(tmp_path / "meeting")]
    ranks = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)
    assert ranks.returncode == 0, ranks.stdout
