import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

from deepnarrow.model.init import initialise
from deepnarrow.model.t5 import T5
from deepnarrow.shapes import parse
from deepnarrow.text.batches import Batch
from deepnarrow.train import loss
from deepnarrow.train.loop import split

CPU = torch.device("cpu")


def model(shape: str = "tiny-dm32-ff64-nh2-kv16-nl2-v512") -> T5:
    made = T5(parse(shape))
    initialise(made, 3)
    return made.train()


def batch(*, padded: bool, rows: int = 6) -> Batch:
    random = np.random.default_rng(5)
    inputs, targets = random.integers(3, 512, (rows, 16)), random.integers(3, 512, (rows, 8))
    if padded:
        for row in range(rows):
            inputs[row, 16 - row :] = 0
            targets[row, 8 - row :] = 0
    return Batch(inputs, targets)


def plain(made: T5, data: Batch, z_loss: float, divisor: int) -> torch.Tensor:
    """The same loss in the plainest torch."""
    logits = made(torch.from_numpy(data.inputs), torch.from_numpy(data.targets)).float()
    targets = torch.from_numpy(data.targets)
    nll = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view(targets.shape)
    z = z_loss * logits.logsumexp(-1).square()
    return ((nll + z) * (targets != 0)).sum() / divisor


def gradients(made: T5) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in made.named_parameters() if p.grad is not None}


def test_token_loss_equals_autograd_on_plain_torch() -> None:
    generator = torch.Generator().manual_seed(0)
    ours = (torch.randn(7, 11, generator=generator, dtype=torch.float32) * 4).requires_grad_()
    theirs = ours.detach().clone().requires_grad_()
    targets, weights = torch.arange(7), torch.rand(7, generator=generator)
    objective, nll = loss.token_loss(ours, targets, z_loss=0.01)
    expected_nll = cross_entropy(theirs, targets, reduction="none")
    expected = expected_nll + 0.01 * theirs.logsumexp(-1).square()
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(objective, expected)
    (objective * weights).sum().backward()
    (expected * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", ["tiny-dm32-ff64-nh2-kv16-nl2-v512", "v1_1-small-dm32-ff64-nh2-kv16-nl2-v512"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("logits_at_once", [1, 512 * 5, 2**25])
def test_pieces_of_logits_give_the_plain_loss_and_gradient(shape: str, padded: bool, logits_at_once: int) -> None:
    data = batch(padded=padded)
    ours, theirs = model(shape), model(shape)
    sums = loss.accumulate(ours, data, divisor=17, device=CPU, z_loss=0.1, logits_at_once=logits_at_once)
    plain(theirs, data, 0.1, 17).backward()
    assert sums.tokens == np.count_nonzero(data.targets)
    assert sums.nll.item() == pytest.approx(plain(theirs, data, 0.0, 1).item(), rel=1e-6)
    expected = gradients(theirs)
    for name, found in gradients(ours).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)
    assert gradients(ours).keys() == expected.keys()


def test_accumulated_parts_give_the_gradient_of_the_whole() -> None:
    data = batch(padded=True)
    whole, parts = model(), model()
    divisor = loss.count(data.targets, "tokens")
    loss.accumulate(whole, data, divisor=divisor, device=CPU)
    for part in split(data, 3):
        loss.accumulate(parts, part, divisor=divisor, device=CPU)
    expected = gradients(whole)
    for name, found in gradients(parts).items():
        torch.testing.assert_close(found, expected[name], rtol=1e-5, atol=1e-6)


def test_normalisers() -> None:
    data = batch(padded=True)
    assert loss.count(data.targets, "positions") == 48
    assert loss.count(data.targets, "tokens") == 8 + 7 + 6 + 5 + 4 + 3
    assert loss.count(np.zeros((2, 3), np.int64), "tokens") == 1  # never a division by zero


def test_targets_of_padding_alone_give_no_loss_and_no_gradient() -> None:
    data = Batch(np.ones((2, 4), np.int64), np.zeros((2, 4), np.int64))
    made = model()
    sums = loss.accumulate(made, data, divisor=1, device=CPU)
    assert (sums.nll.item(), sums.tokens) == (0.0, 0)
    assert all(not gradient.any() for gradient in gradients(made).values())


def test_held_out_loss_weighs_every_token_alike() -> None:
    made = model()
    data = batch(padded=True)
    expected = plain(made, data, 0.0, np.count_nonzero(data.targets)).item()
    whole, parts = loss.sums(made, data, device=CPU), [loss.sums(made, part, device=CPU) for part in split(data, 4)]
    assert float(whole.nll) / whole.tokens == pytest.approx(expected, rel=1e-6)
    assert sum(float(part.nll) for part in parts) / whole.tokens == pytest.approx(expected, rel=1e-6)
    assert sum(part.tokens for part in parts) == whole.tokens


def test_bfloat16_computes_low_and_keeps_gradients_high() -> None:
    data = batch(padded=False)
    low, high = model(), model()
    nll_low = loss.accumulate(low, data, divisor=48, device=CPU, dtype=torch.bfloat16).nll.item()
    nll_high = loss.accumulate(high, data, divisor=48, device=CPU).nll.item()
    assert nll_low == pytest.approx(nll_high, rel=0.02)
    assert nll_low != nll_high
    assert all(gradient.dtype == torch.float32 for gradient in gradients(low).values())
