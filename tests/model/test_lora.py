"""Low-rank adapters: they start at nothing, merge to a plain matrix, and leave every fast path as right as it was."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model import native
from deepnarrow.model.decode import Beam, Greedy, generate
from deepnarrow.model.lora import Lora, LoraLinear, adapted, attach, chosen, merge, targets
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import loss

SIZE = "dm32-ff64-kv8-nh4-v120"
SHAPES = [f"tiny-nl2-{SIZE}{rest}" for rest in ("", "-kh2", "-shkv", "-sh", "-untied-geglu", "-kh1-shkv-sh")]


def stirred(model: T5, lora: Lora) -> T5:
    attach(model, lora)
    with torch.no_grad():
        for number, one in enumerate(adapted(model).values()):
            one.up.weight.normal_(0, 0.2, generator=torch.Generator().manual_seed(number))
    return model


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", ["q,v", "all"])
def test_starts_as_the_base_and_merges_to_the_same(
    shape: str, names: str, random_model: Callable, ids: Callable
) -> None:
    inputs, outputs = ids([9, 5], 9, 120), ids([4, 2], 4, 120, seed=1)
    model = random_model(shape)
    plain = model(inputs, outputs).detach()
    attach(model, Lora(rank=3, targets=targets(names)))
    torch.testing.assert_close(model(inputs, outputs), plain, rtol=0, atol=1e-5)  # kernels may part ways with torch
    with torch.no_grad():
        assert torch.equal(model(inputs, outputs), random_model(shape)(inputs, outputs))
    with torch.no_grad():
        for one in adapted(model).values():
            one.up.weight.normal_(0, 0.2)
    changed = model(inputs, outputs).detach()
    assert (changed - plain).abs().max() > 0.1
    merge(model)
    assert not adapted(model)
    assert model.state_dict().keys() == random_model(shape).state_dict().keys()
    torch.testing.assert_close(model(inputs, outputs).detach(), changed, rtol=1e-5, atol=2e-5)


def plain_gradients(model: T5, inputs: Tensor, outputs: Tensor, dtype: torch.dtype) -> dict[str, Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is torch.bfloat16):
        logits = model(inputs, outputs)
    logits.float().log_softmax(-1)[..., 3].sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def distance(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return sum(float((one[name] - other[name]).square().sum()) for name in other) ** 0.5


@pytest.mark.skipif(native.library() is None, reason="no C++ compiler, or the kernels are switched off")
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("names", ["q,v", "wo", "all"])
def test_kernels_and_plain_torch_give_the_same_gradients_of_the_adapters_alone(
    shape: str, names: str, random_model: Callable, ids: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs, outputs = ids([9, 5], 9, 120), ids([4, 2], 4, 120, seed=1)
    model = stirred(random_model(shape, dropout=0.1), Lora(rank=2, dropout=0.2, targets=targets(names))).train()
    fast = plain_gradients(model, inputs, outputs, torch.float32)
    low = plain_gradients(model, inputs, outputs, torch.bfloat16)
    monkeypatch.setattr(native, "library", lambda: None)
    slow = plain_gradients(model, inputs, outputs, torch.float32)
    slow_low = plain_gradients(model, inputs, outputs, torch.bfloat16)
    wanted = {f"{name}.{side}.weight" for name in adapted(model) for side in ("down", "up")}
    assert set(fast) == set(slow) == set(low) == wanted
    for name, gradient in slow.items():
        torch.testing.assert_close(fast[name], gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max() + 1))
    length = sum(float(gradient.square().sum()) for gradient in slow.values()) ** 0.5
    assert distance(low, slow) < 2 * distance(slow_low, slow) + 1e-3 * length


def test_frozen_weights_cost_no_gradient_work(random_model: Callable, ids: Callable) -> None:
    """No product of a training step has the size of a frozen matrix: feed-forward, embedding."""
    if native.library() is None:
        pytest.skip("no C++ compiler, or the kernels are switched off")
    batch = Batch(ids([9, 5], 9, 120).numpy(), ids([4, 2], 4, 120, seed=1).numpy())
    products: list[tuple[int, ...]] = []
    real = native.product

    def counted(a: Tensor, b: Tensor, out: Tensor, **options: object) -> Tensor:
        products.append(tuple(out.shape))
        return real(a, b, out, **options)  # type: ignore[arg-type]

    model = random_model(SHAPES[0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "product", counted)
        loss.accumulate(model, batch, divisor=1, device=torch.device("cpu"))
        weights = {(32, 64), (64, 32), (120, 32)}
        assert weights <= set(products)
        products.clear()
        loss.accumulate(attach(model, Lora()), batch, divisor=1, device=torch.device("cpu"))
        assert products
        assert not any(size in weights for size in products)


@pytest.mark.parametrize("shape", SHAPES)
def test_cached_decoding_equals_uncached_and_merged(shape: str, random_model: Callable) -> None:
    rows, lora = [[5, 6, 7, 1], [9, 1]], Lora(rank=2, targets=targets("all"))
    model, merged = stirred(random_model(shape), lora), merge(stirred(random_model(shape), lora))
    for search in (Greedy(), Beam(3)):
        live, plain = (generate(each, rows, search, max_tokens=5) for each in (model, merged))
        for one, other in zip(live, plain, strict=True):
            assert [found.ids for found in one] == [found.ids for found in other]
            assert [found.score for found in one] == pytest.approx([found.score for found in other], abs=1e-4)
    with torch.no_grad():
        memory = model.encode(torch.tensor([rows[0]]))
        read = torch.tensor([[0, 8, 9, 10]])
        cache = model.start_cache(memory, None, 4)
        steps = [model.decode(read[:, place : place + 1], None, None, cache) for place in range(4)]
        torch.testing.assert_close(torch.cat(steps, 1), model.decode(read, memory, None), rtol=0, atol=1e-4)


def test_dropout_is_of_the_adapters_input_alone(random_model: Callable) -> None:
    model = stirred(random_model(SHAPES[0]), Lora(rank=2, dropout=0.5)).train()
    one = next(iter(adapted(model).values()))
    assert isinstance(one, LoraLinear)
    x = torch.randn(1, 4, 32)
    frozen = x @ one.weight.T
    torch.manual_seed(0)
    first, second = (one(x) - frozen).detach(), (one(x) - frozen).detach()
    assert not torch.allclose(first, second)
    one.eval()
    wanted = one.scale * x @ one.down.weight.T @ one.up.weight.T
    torch.testing.assert_close(one(x) - frozen, wanted, rtol=0, atol=1e-5)


def test_targets() -> None:
    names = chosen(T5(parse(SHAPES[0])), Lora())
    assert len(names) == 2 * (2 + 2 * 2)
    assert {name.rpartition(".")[2] for name in names} == {"query", "value"}
    tied = chosen(T5(parse(SHAPES[2])), Lora(targets=("v",)))
    assert {name.rpartition(".")[2] for name in tied} == {"key"}
    gated = chosen(T5(parse(SHAPES[4])), Lora(targets=targets("all")))
    assert not any(name in ("output", "embedding") for name in gated)
    assert {name.rpartition(".")[2] for name in gated} == {"query", "key", "value", "output", "wi_0", "wi_1", "wo"}


def test_mistakes() -> None:
    with pytest.raises(UserError, match="cannot adapt 'qq'"):
        Lora(targets=targets("qq,v"))
    with pytest.raises(UserError, match="needs matrices to adapt"):
        Lora(targets=targets(""))
    with pytest.raises(UserError, match="rank of LoRA must be at least 1"):
        Lora(rank=0)
    with pytest.raises(UserError, match="alpha of LoRA must be greater than 0"):
        Lora(alpha=0)
    with pytest.raises(UserError, match="dropout of LoRA must be"):
        Lora(dropout=1.0)
    with pytest.raises(UserError, match="has none of the matrices wi_0"):
        attach(T5(parse(SHAPES[0])), Lora(targets=("wi_0",)))


def test_the_same_seed_draws_the_same_and_nobody_elses_numbers_are_used() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, second, other = (attach(T5(parse(SHAPES[0])), Lora(), seed=seed) for seed in (1, 1, 2))
    torch.set_rng_state(before)
    T5(parse(SHAPES[0]))
    state = torch.get_rng_state()
    torch.set_rng_state(before)
    attach(T5(parse(SHAPES[0])), Lora())
    assert torch.equal(torch.get_rng_state(), state)
    drawn = [[one.down.weight for one in adapted(model).values()] for model in (first, second, other)]
    assert all(torch.equal(a, b) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(drawn[0], drawn[2], strict=True))
    assert not torch.equal(drawn[0][0], drawn[0][1])
