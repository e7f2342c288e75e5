"""First weights: every row of the table in init.py, and that they depend on seed and name alone."""

import math

import pytest
import torch

from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse

CUT = 0.8796  # deviation of a unit normal cut at 2: sqrt(1 - 4 * density(2) / (2 * cumulative(2) - 1))

# (end of the name, its deviation in the shape below, whether it is cut)
WIDTH, D_FF, D_KV, HEADS = 96, 160, 24, 8
ROWS = [
    ("embedding.weight", 1.0, False),
    ("attention.query.weight", (WIDTH * D_KV) ** -0.5, False),
    ("attention.key.weight", WIDTH**-0.5, False),
    ("attention.value.weight", WIDTH**-0.5, False),
    ("attention.output.weight", (HEADS * D_KV) ** -0.5, False),
    ("feed_forward.wi_0.weight", WIDTH**-0.5, True),
    ("feed_forward.wi_1.weight", WIDTH**-0.5, True),
    ("feed_forward.wo.weight", D_FF**-0.5, True),
]
SHAPE = f"v1_1-small-nl3-dm{WIDTH}-ff{D_FF}-kv{D_KV}-nh{HEADS}-v900"


def built(shape: str, seed: int = 0) -> T5:
    model = T5(parse(shape))
    initialise(model, seed)
    return model


def weights(model: T5, end: str) -> torch.Tensor:
    return torch.cat([weight.flatten() for name, weight in model.named_parameters() if name.endswith(end)])


def test_the_cut_deviation() -> None:
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    assert math.sqrt(1 - 4 * density / math.erf(2 / math.sqrt(2))) == pytest.approx(CUT, abs=1e-4)


@pytest.mark.parametrize(("end", "deviation", "cut"), ROWS)
def test_each_row(end: str, deviation: float, cut: bool) -> None:
    found = weights(built(SHAPE), end)
    expected = deviation * (CUT if cut else 1)
    tolerance = 4 / math.sqrt(2 * len(found))  # four standard errors of a deviation
    assert found.std().item() == pytest.approx(expected, rel=tolerance)
    assert abs(found.mean().item()) < 4 * expected / math.sqrt(len(found))
    assert (found.abs().max() <= 2 * deviation) == cut


def test_untied_output_is_cut_and_small() -> None:
    matrix = built(SHAPE).state_dict()["output.weight"]
    assert matrix.std().item() == pytest.approx(CUT * WIDTH**-0.5, rel=0.02)
    assert matrix.abs().max() <= 2 * WIDTH**-0.5


def test_relu_input_is_cut() -> None:
    found = weights(built("tiny-nl2-dm96-ff160-v300"), "feed_forward.wi.weight")
    assert found.std().item() == pytest.approx(CUT * 96**-0.5, rel=0.02)


def test_position_tables_are_glorot_uniform() -> None:
    found = torch.cat([weights(built(SHAPE, seed), "position.table") for seed in range(8)])
    limit = math.sqrt(6 / (HEADS + 32))
    assert found.abs().max() <= limit
    assert found.std().item() == pytest.approx(limit / math.sqrt(3), rel=0.05)


def test_norms_are_ones() -> None:
    model = built(SHAPE)
    found = [weight for name, weight in model.named_parameters() if "norm" in name]
    assert len(found) == 3 * 2 + 1 + 3 * 3 + 1
    assert all(torch.equal(weight, torch.ones(WIDTH)) for weight in found)


def test_no_weight_is_left_out() -> None:
    model = T5(parse("v1_1-small-nl2-dm32-ff64-kv8-nh4-kh2-v90-shkv"))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(math.nan)
    initialise(model, 0)
    assert all(weight.isfinite().all() for weight in model.parameters())


def test_same_seed_same_weights_and_other_seed_others() -> None:
    first, again, other = (built("tiny-nl2-dm32-ff64-kv8-nh4-v90", seed).state_dict() for seed in (3, 3, 4))
    for name in first:
        assert torch.equal(first[name], again[name])
        assert "norm" in name or not torch.equal(first[name], other[name])


def test_weights_do_not_repeat_one_another_nor_touch_the_global_stream() -> None:
    model = T5(parse("tiny-nl2-dm32-ff64-kv8-nh4-v90"))
    before = torch.get_rng_state()
    initialise(model, 0)
    assert torch.equal(torch.get_rng_state(), before)
    state = model.state_dict()
    first = "encoder.blocks.0.self_attention.key.weight"
    assert not torch.equal(state[first], state[first.replace("key", "value")])
    assert not torch.equal(state[first], state[first.replace("blocks.0", "blocks.1")])


def test_depth_does_not_change_the_layers_below() -> None:
    short, tall = built("tiny-nl2-dm32-ff64-kv8-nh4-v90").state_dict(), built("tiny-nl4-dm32-ff64-kv8-nh4-v90")
    for name, tensor in tall.state_dict().items():
        if name in short:
            assert torch.equal(short[name], tensor)


def test_first_loss_of_an_untied_model_is_near_that_of_a_uniform_guess() -> None:
    """With an output matrix of deviation 1, as transformers starts it, the loss would be above 60."""
    model = built("v1_1-small-nl2-v512")
    inputs, targets = torch.randint(1, 512, (2, 4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(model(inputs, targets).flatten(0, 1), targets.flatten())
    assert math.log(512) < loss < math.log(512) + 1
