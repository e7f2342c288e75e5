"""Dropout in packed rows: one draw for each example, not one for all that share a row."""

import torch

from deepnarrow.model import noise
from deepnarrow.model.init import initialise
from deepnarrow.model.layers import dropped
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.packing import pack
from deepnarrow.train import loss

CPU = torch.device("cpu")


def test_each_example_of_a_row_has_its_own_draw() -> None:
    segments_BL = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 0], [1, 2, 2, 2, 2, 2, 2, 2]])
    torch.manual_seed(0)
    with noise.examples(segments_BL):
        found_BLD = dropped(torch.ones(2, 8, 64), 0.5, training=True)
    assert set(found_BLD.unique().tolist()) == {0.0, 2.0}
    for row, segments in zip(found_BLD, segments_BL, strict=True):
        for number in segments.unique():
            mine = row[segments == number]
            assert torch.equal(mine, mine[:1].expand_as(mine))  # along an example there is one draw
    draws = [found_BLD[0, place] for place in (0, 3, 5)] + [found_BLD[1, place] for place in (0, 1)]
    assert all(not torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])
    alone = dropped(torch.ones(2, 8, 64), 0.5, training=True)  # and outside the block, one for a row
    assert torch.equal(alone, alone[:, :1].expand_as(alone))


def test_computing_blocks_again_draws_the_same_for_packed_rows() -> None:
    batch = pack([([5 + n, 7, 9, 1][n % 3 :], [8, 1 + n % 2]) for n in range(12)], 16, 16)
    gradients = []
    for recompute in (False, True):
        model = T5(parse("tiny-nl2-dm32-ff64-v96"), dropout=0.3, recompute=recompute).train()
        initialise(model, 0)
        torch.manual_seed(1)
        loss.accumulate(model, batch, divisor=10, device=CPU)
        gradients.append({name: weight.grad.clone() for name, weight in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)
