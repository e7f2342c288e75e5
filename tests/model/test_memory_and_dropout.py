"""Recomputation gives the same bits; dropout of both kinds does what its name says."""

import pytest
import torch

from deepnarrow.model.layers import dropped
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse

BASE = "tiny-nl2-dm32-ff64-kv8-nh4-v120"


def gradients(shape: str, ids, *, recompute: bool, shared: bool, autocast: bool = False) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = T5(parse(shape), dropout=0.3, dropout_shared=shared, recompute=recompute).train()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, 1.0 if "norm" in name else 0.0, 0.2)
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        model(ids([9, 4], 9, 120), ids([6, 3], 6, 120)).float().square().mean().backward()
    return {name: weight.grad for name, weight in model.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("shared", [False, True], ids=["each element", "shared"])
@pytest.mark.parametrize("shape", [BASE, f"{BASE}-geglu-untied", f"{BASE}-kh2-shkv", f"{BASE}-sh"])
def test_recomputation_is_equal_to_the_bit_under_dropout(shape: str, shared: bool, autocast: bool, ids) -> None:
    kept = gradients(shape, ids, recompute=False, shared=shared, autocast=autocast)
    again = gradients(shape, ids, recompute=True, shared=shared, autocast=autocast)
    for name, gradient in kept.items():
        assert gradient.abs().sum() > 0, name
        assert torch.equal(gradient, again[name]), name


def test_recomputation_keeps_less_for_the_backward_pass(ids) -> None:
    kept = {}
    for recompute in (False, True):
        model = T5(parse("tiny-nl4-dm32-ff64-kv8-nh4-v120"), dropout=0.1, recompute=recompute).train()
        sizes: dict[int, int] = {}

        def note(x: torch.Tensor, sizes: dict[int, int] = sizes) -> torch.Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            model.hidden(ids([32] * 4, 32, 120), ids([16] * 4, 16, 120))
        kept[recompute] = sum(sizes.values())
    assert kept[True] < 0.6 * kept[False]  # of which the weights are a part that stays


def test_elementwise_dropout_draws_for_each_element() -> None:
    torch.manual_seed(0)
    x = torch.ones(64, 5, 256)
    kept = dropped(x, 0.1, training=True, shared=False)
    assert not torch.equal(kept, kept[:, :1].expand_as(kept))
    assert kept.mean() == pytest.approx(1.0, abs=0.01)
    assert dropped(x, 0.1, training=False, shared=False) is x


def test_every_layer_of_a_model_uses_the_kind_asked_for(ids) -> None:
    shared, single = (T5(parse(BASE), dropout=0.1, dropout_shared=kind) for kind in (True, False))
    found = [[m.dropout_shared for m in model.modules() if hasattr(m, "dropout_shared")] for model in (shared, single)]
    assert all(found[0])
    assert not any(found[1])
    assert len(found[0]) == len(found[1]) == 2 + 4 + 6 + 4  # stacks, blocks, attentions, feed-forwards
