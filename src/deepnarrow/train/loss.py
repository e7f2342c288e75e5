"""Token cross-entropy in float32, T5's z-loss, and both of its normalisers, without all logits in memory at once.

Shape key   B batch   L input length   T target length   N target positions   D model   V vocabulary
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from deepnarrow.model import native
from deepnarrow.model.t5 import T5
from deepnarrow.text.batches import Batch

NATIVE_LOGITS_AT_ONCE = 2**23  # 32 MiB: they become their own gradient in place, so fewer are no slower
LOGITS_AT_ONCE = 2**25  # 128 MiB in float32: a thousand positions of T5's vocabulary


class Sums(NamedTuple):
    """Totals over real target tokens, not means, so that parts of a batch add up to the whole."""

    nll: Tensor  # negative log-likelihood, nats, 0-d
    tokens: int


def token_loss(logits_NV: Tensor, targets_N: Tensor, *, z_loss: float = 0.0) -> tuple[Tensor, Tensor]:
    """Per position: what is minimised, `nll + z_loss * (log Z)^2`, and `nll` alone, which carries no gradient.

    z-loss keeps the logits' normaliser Z near 1 (mesh-TF `z_loss`, 1e-4 in T5). Both results are float32 [N].

    >>> objective, nll = token_loss(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), z_loss=1.0)
    >>> round(nll.item(), 4), round((objective - nll).item(), 4)  # log 2, and its square
    (0.6931, 0.4805)
    """
    result: tuple[Tensor, Tensor] = _TokenLoss.apply(logits_NV, targets_N, z_loss)
    return result


class _TokenLoss(torch.autograd.Function):
    """By hand because autograd's version makes five arrays as large as the logits; this one makes one or two."""

    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor, z_loss: float) -> tuple[Tensor, Tensor]:
        wide_NV = logits_NV.float()
        log_z_N = wide_NV.logsumexp(-1)
        nll_N = log_z_N - wide_NV.gather(-1, targets_N[:, None]).squeeze(-1)
        ctx.save_for_backward(wide_NV, targets_N, log_z_N)
        ctx.z_loss, ctx.dtype = z_loss, logits_NV.dtype
        ctx.mark_non_differentiable(nll_N)
        return nll_N + z_loss * log_z_N.square(), nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        wide_NV, targets_N, log_z_N = ctx.saved_tensors
        gradient_N = gradients[0]
        # d objective / d logits = (1 + 2 z log Z) softmax - one_hot
        result_NV = (wide_NV - log_z_N[:, None]).exp_()
        result_NV.mul_((gradient_N * (1 + 2 * ctx.z_loss * log_z_N))[:, None])
        result_NV.scatter_add_(-1, targets_N[:, None], -gradient_N[:, None])
        return result_NV.to(ctx.dtype), None, None


def count(targets: np.ndarray, normaliser: str) -> int:
    """What a batch's loss is divided by: real target tokens, or T5's count of positions, padding included.

    >>> targets = np.array([[7, 8, 1], [9, 1, 0]])
    >>> count(targets, "tokens"), count(targets, "positions")
    (5, 6)
    """
    return int(targets.size) if normaliser == "positions" else max(1, int(np.count_nonzero(targets)))


def accumulate(
    model: T5,
    batch: Batch,
    *,
    divisor: int,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    z_loss: float = 0.0,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Sums:
    """Add the gradient of `batch`'s summed loss over `divisor` to the parameters' gradients.

    Only real target positions reach the output matrix, and at most `logits_at_once` logits exist at a time: each
    share's gradient is taken at once, then the stacks' gradient in one go.
    """
    inputs_BL, targets_BT = to_device(batch, device)
    with autocast(device, dtype):
        hidden_ND, targets_N = hidden_states(model, batch, inputs_BL, targets_BT)
        weight_VD, scale = model.output_matrix()
        if native.usable(hidden_ND, weight_VD):
            rows = max(1, min(logits_at_once, NATIVE_LOGITS_AT_ONCE) // model.shape.vocab)
            objective, nll = native.output_loss(
                hidden_ND.float() * scale, weight_VD, targets_N, z_loss=z_loss, divisor=divisor, rows=rows
            )
            with native.gathered():
                objective.backward()
            return Sums(nll, int(targets_N.numel()))
        leaf_ND = hidden_ND.detach().requires_grad_()
        nll = torch.zeros((), device=device)
        for piece_ND, piece_N in pieces(model, leaf_ND, targets_N, logits_at_once):
            objective_N, nll_N = token_loss(model.logits(piece_ND), piece_N, z_loss=z_loss)
            (objective_N.sum() / divisor).backward()
            nll += nll_N.sum()
    if leaf_ND.grad is not None:
        hidden_ND.backward(leaf_ND.grad)
    return Sums(nll, int(targets_N.numel()))


@torch.no_grad()
def sums(
    model: T5,
    batch: Batch,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    logits_at_once: int = LOGITS_AT_ONCE,
) -> Sums:
    """Plain negative log-likelihood of one batch, summed over its real target tokens; no z-loss, no gradient."""
    inputs_BL, targets_BT = to_device(batch, device)
    with autocast(device, dtype):
        hidden_ND, targets_N = hidden_states(model, batch, inputs_BL, targets_BT)
        nll = torch.zeros((), device=device)
        for piece_ND, piece_N in pieces(model, hidden_ND, targets_N, logits_at_once):
            nll += token_loss(model.logits(piece_ND), piece_N)[1].sum()
    return Sums(nll, int(targets_N.numel()))


def mean(found: Iterable[Sums]) -> float:
    """Nats per real target token over several batches, every token alike.

    >>> mean([Sums(torch.tensor(2.0), 1), Sums(torch.tensor(1.0), 2)])
    1.0
    """
    every = list(found)
    return sum(float(one.nll) for one in every) / max(1, sum(one.tokens for one in every))


def hidden_states(model: T5, batch: Batch, inputs_BL: Tensor, targets_BT: Tensor) -> tuple[Tensor, Tensor]:
    """The decoder's last hidden states [N, D] and the target ids [N] at real target positions."""
    hidden_BTD = model.hidden(inputs_BL, targets_BT, *segments(batch, inputs_BL.device))
    if batch.targets.all():
        return hidden_BTD.flatten(0, 1), targets_BT.flatten()
    # Found before the copy to the device, so that nothing waits for a GPU.
    real_N = torch.from_numpy(np.flatnonzero(batch.targets)).to(inputs_BL.device)
    return hidden_BTD.flatten(0, 1).index_select(0, real_N), targets_BT.flatten().index_select(0, real_N)


def pieces(model: T5, hidden_ND: Tensor, targets_N: Tensor, logits_at_once: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Equal shares of the positions, each with at most `logits_at_once` logits."""
    rows = max(1, logits_at_once // model.shape.vocab)
    shares = max(1, -(-targets_N.numel() // rows))
    yield from zip(hidden_ND.tensor_split(shares), targets_N.tensor_split(shares), strict=True)


def segments(batch: Batch, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """Which example of its row each input and target token belongs to; None where a row is one example."""
    found = (batch.input_segments, batch.target_segments)
    inputs, targets = (None if one is None else torch.from_numpy(one).to(device) for one in found)
    return inputs, targets


def to_device(batch: Batch, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(batch.inputs).to(device), torch.from_numpy(batch.targets).to(device)


@contextmanager
def autocast(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Matrix products in bfloat16 over float32 weights; nothing at all for float32."""
    with torch.autocast(device.type, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        yield
