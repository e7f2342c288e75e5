"""Soft prompts: in front of inputs, of packed examples, several over one model in one batch; each as if alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from deepnarrow.errors import UserError
from deepnarrow.model import inference, likelihood
from deepnarrow.model.decode import Beam, Greedy, generate
from deepnarrow.model.prompt import Prompts, interleaved, side_by_side
from deepnarrow.model.prompt_init import first_vectors
from deepnarrow.model.t5 import T5
from deepnarrow.text.batches import Batch
from deepnarrow.text.tokenizer import load
from deepnarrow.train import loss

SHAPES = [f"tiny-nl2-dm32-ff64-kv8-nh4-v384{rest}" for rest in ("", "-kh2-shkv", "-sh", "-untied-geglu")]
CPU = torch.device("cpu")


def prompts(*lengths: int) -> list[torch.Tensor]:
    return [torch.randn(length, 32, generator=torch.Generator().manual_seed(length)) for length in lengths]


def prompted(model: T5, prompt: torch.Tensor) -> T5:
    model.prompt = nn.Parameter(prompt.clone())
    return model


@pytest.mark.parametrize("grad", [True, False], ids=["kernels", "plain"])
def test_a_prompt_of_embeddings_is_a_prompt_of_tokens(grad: bool, random_model: Callable) -> None:
    model = random_model(SHAPES[0])
    inputs, targets = torch.tensor([[7, 8, 1], [9, 1, 0]]), torch.tensor([[4, 1], [5, 1]])
    front = torch.tensor([[30, 31], [30, 31]])
    with torch.set_grad_enabled(grad):
        spelt = model(torch.cat([front, inputs], dim=1), targets)
        found = prompted(model, model.embedding.weight[front[0]].detach())(inputs, targets)
    torch.testing.assert_close(found, spelt, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("search", [Greedy(), Beam(2, num_return=2)])
@pytest.mark.parametrize("piece", [6, 2048], ids=["in pieces", "at once"])
def test_each_row_its_own_prompt_as_if_alone(
    shape: str, search: Greedy | Beam, piece: int, random_model: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inference, "PIECE", piece)
    model = random_model(shape)
    own = [*prompts(3, 7, 1), None]
    rows = [[7, 8, 9, 20, 1], [9, 1], [4, 5, 6, 1], [30, 31, 1]]
    together = generate(model, rows, search, max_tokens=6, prompts=own)
    for row, prompt, found in zip(rows, own, together, strict=True):
        alone = random_model(shape) if prompt is None else prompted(random_model(shape), prompt)
        [wanted] = generate(alone, [row], search, max_tokens=6)
        assert [one.ids for one in found] == [one.ids for one in wanted]
        assert [one.score for one in found] == pytest.approx([one.score for one in wanted], abs=1e-4)


@pytest.mark.parametrize("grad", [True, False], ids=["kernels", "plain"])
def test_encodings_of_mixed_prompts_are_those_of_each(grad: bool, random_model: Callable, ids: Callable) -> None:
    model, own = random_model(SHAPES[0]), prompts(3, 7)
    inputs = ids([5, 9], 9, 384)
    mask = inputs != 0
    mixed = side_by_side(own, 32, CPU)
    with torch.set_grad_enabled(grad):
        whole, seen = model.encode(inputs, mask, prompts=mixed), model.memory_mask(mask, mixed)
        assert whole.shape[:2] == seen.shape
        for row, prompt in enumerate(own):
            alone = model.encode(inputs[row : row + 1, : int(mask[row].sum())], prompts=Prompts(prompt[None]))
            torch.testing.assert_close(whole[row][seen[row]], alone[0], rtol=0, atol=1e-5)


def test_likelihoods_see_the_prompt(random_model: Callable) -> None:
    model = random_model(SHAPES[0])
    inputs, targets = [[7, 8, 1], [9, 1]], [[4, 1], [5, 6, 1]]
    before = likelihood.score(model, inputs, targets)
    prompted(model, prompts(4)[0])
    after = likelihood.score(model, inputs, targets)
    assert np.abs(np.array(before) - np.array(after)).min() > 1e-3
    ranked = likelihood.rank(model, inputs, targets)
    assert [ranked[0, 0], ranked[1, 1]] == pytest.approx(after, abs=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("grad", [True, False], ids=["kernels", "plain"])
def test_packed_rows_have_a_prompt_before_each_example(shape: str, grad: bool, random_model: Callable) -> None:
    model = prompted(random_model(shape), prompts(3)[0])
    pairs = [([7, 8, 1], [4, 1]), ([9, 1], [5, 6, 1]), ([30, 31, 32, 1], [6, 1])]
    packed = Batch(
        np.array([[7, 8, 1, 9, 1, 0], [30, 31, 32, 1, 0, 0]]), np.array([[4, 1, 5, 6, 1], [6, 1, 0, 0, 0]]),
        np.array([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]]), np.array([[1, 1, 2, 2, 2], [1, 1, 0, 0, 0]]),
    )  # fmt: skip

    def each() -> list[loss.Sums]:
        if not grad:
            return [loss.sums(model, Batch(np.array([a]), np.array([b])), device=CPU) for a, b in pairs]
        return [loss.accumulate(model, Batch(np.array([a]), np.array([b])), divisor=1, device=CPU) for a, b in pairs]

    def at_once() -> loss.Sums:
        return loss.accumulate(model, packed, divisor=1, device=CPU) if grad else loss.sums(model, packed, device=CPU)

    wanted = sum(float(one.nll) for one in each())
    gradient = None if model.prompt is None or model.prompt.grad is None else model.prompt.grad.clone()
    model.zero_grad()
    assert float(at_once().nll) == pytest.approx(wanted, rel=1e-5)
    if grad:
        assert model.prompt is not None
        assert gradient is not None
        torch.testing.assert_close(model.prompt.grad, gradient, rtol=1e-4, atol=1e-4)


def test_one_prompt_for_packed_rows(random_model: Callable) -> None:
    segments = torch.tensor([[1, 2], [1, 0]])
    with pytest.raises(ValueError, match="one prompt for all"):
        random_model(SHAPES[0]).encode(segments, segments_BL=segments, prompts=side_by_side(prompts(1, 2), 32, CPU))


def test_interleaving_keeps_every_token() -> None:
    segments = torch.tensor([[1, 2, 2, 3, 0], [1, 1, 1, 1, 1]])
    place, own = interleaved(segments, 2)
    assert own.tolist() == [[1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 0], [1] * 7 + [0] * 4]
    assert place[0, :10].tolist() == [0, 1, 2, 0, 1, 3, 4, 0, 1, 5]
    assert place[1, :7].tolist() == list(range(7))


def test_only_the_prompt_gets_a_gradient(random_model: Callable) -> None:
    model = random_model(SHAPES[0]).requires_grad_(False)
    prompted(model, prompts(3)[0])
    loss.accumulate(model, Batch(np.array([[7, 1]]), np.array([[4, 1]])), divisor=1, device=CPU)
    assert [name for name, p in model.named_parameters() if p.grad is not None] == ["prompt"]


def test_first_vectors() -> None:
    table = torch.randn(384, 8)
    tokenizer = load("bytes")
    sampled = first_vectors(table, 20, seed=1)
    assert len({tuple(row.tolist()) for row in sampled}) == 20
    assert all((table == row).all(1).any() for row in sampled)
    assert torch.equal(sampled, first_vectors(table, 20, seed=1))
    assert not torch.equal(sampled, first_vectors(table, 20, seed=2))
    assert first_vectors(table, 500, seed=1).shape == (500, 8)  # more than there are pieces: some come twice
    many = torch.arange(6000.0)[:, None]
    assert first_vectors(many, 4000, seed=1).max() < 5000
    uniform = first_vectors(table, 4000, "random", seed=1)
    assert uniform.abs().max() <= 0.5
    assert uniform.min() < -0.45
    labelled = first_vectors(table, 20, "labels", seed=1, tokenizer=tokenizer, labels=["no", "a"])
    torch.testing.assert_close(labelled[0], table[tokenizer.encode("no")].mean(0))
    torch.testing.assert_close(labelled[1], table[tokenizer.encode("a")][0])
    assert torch.equal(labelled[2:], sampled[2:])
    given = first_vectors(table, 5, "text=no", seed=1, tokenizer=tokenizer)
    assert torch.equal(given[:2], table[tokenizer.encode("no")])
    assert torch.equal(first_vectors(table, 1, "text=no", seed=1, tokenizer=tokenizer), given[:1])


def test_mistakes(random_model: Callable) -> None:
    table = torch.randn(384, 8)
    with pytest.raises(UserError, match="unknown prompt init 'vocab'; did you mean vocabulary"):
        first_vectors(table, 4, "vocab", seed=0)
    with pytest.raises(UserError, match="no class labels"):
        first_vectors(table, 4, "labels", seed=0, tokenizer=load("bytes"))
    with pytest.raises(UserError, match="needs words"):
        first_vectors(table, 4, "text= ", seed=0)
    with pytest.raises(UserError, match="needs its tokenizer"):
        first_vectors(table, 4, "text=a", seed=0)
    with pytest.raises(UserError, match="from 1 to 32,768 vectors"):
        first_vectors(table, 0, seed=0)
    model = random_model(SHAPES[0])
    with pytest.raises(UserError, match="one prompt for each input"):
        generate(model, [[5, 1]], Greedy(), prompts=[])
    with pytest.raises(UserError, match=r"prompt 1 is \[3, 8\], but the model reads vectors of 32"):
        generate(model, [[5, 1]], Greedy(), prompts=[torch.zeros(3, 8)])
