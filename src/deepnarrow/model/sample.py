"""Sampling: each token drawn by chance, by a generator of its own for each answer.

Shape key   A sequences still in the batch   T most tokens   V vocabulary

The ids that may be drawn are found as a set, and the draw walks them in the order of their ids. So equal logits, which
are common in bfloat16, cannot change an answer by the order in which a sort happens to leave them.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from deepnarrow.errors import UserError
from deepnarrow.model.cache import Cache
from deepnarrow.model.greedy import Choose, extend, most_likely
from deepnarrow.model.limits import Limits, Output, Tell
from deepnarrow.model.t5 import T5
from deepnarrow.runtime import options
from deepnarrow.runtime.options import COLDEST

BELOW_ONE = 1 - 2.0**-40  # a share of the whole that no rounding makes the whole


class Sample(options.Sample):
    """`runtime.options.Sample` for a T5 and its cache."""

    def answers(
        self, model: T5, cache: Cache, limits: Limits, rows: Sequence[int], tell: Tell | None
    ) -> list[list[Output]]:
        """Answers in the order of drawing: the first is the same whatever `num_return` is."""
        if tell and self.num_return > 1:
            raise UserError(f"tokens can be told one by one for one answer, not for {self.num_return} at once")
        inputs, device = cache.rows, cache.bias_HO.device
        if self.num_return > 1:
            cache.reorder(torch.arange(inputs, device=device).repeat_interleave(self.num_return))
        outputs = extend(
            model, cache, limits, self._chooser(rows, limits, device), np.repeat(rows, self.num_return).tolist(), tell
        )
        return [outputs[at : at + self.num_return] for at in range(0, len(outputs), self.num_return)]

    def _chooser(self, rows: Sequence[int], limits: Limits, device: torch.device) -> Choose:
        if self.temperature < COLDEST:
            return most_likely
        drawn = [
            np.random.default_rng([self.seed, row, answer]).random(limits.max_tokens)
            for row in rows
            for answer in range(self.num_return)
        ]
        uniform_BT = torch.from_numpy(np.stack(drawn)).clamp(max=BELOW_ONE).to(device)

        def choose(logits_AV: Tensor, number_A: Tensor, step: int) -> Tensor:
            share_AV = shares(logits_AV, self.temperature, self.top_k, self.top_p)
            return draw(share_AV, uniform_BT[number_A, step])

        return choose


def shares(logits_AV: Tensor, temperature: float, top_k: int | None, top_p: float | None) -> Tensor:
    """Probabilities of the ids that may be drawn, 0 for the others; they need not add up to 1 after the nucleus cut.

    >>> shares(torch.tensor([[0.5, 0.2, 0.3]]).log(), 1.0, None, 0.6)
    tensor([[0.5000, 0.0000, 0.3000]])
    """
    scaled_AV = (logits_AV - logits_AV.amax(-1, keepdim=True)) / temperature
    if top_k is not None and top_k < scaled_AV.shape[-1]:
        least_A1 = scaled_AV.topk(top_k).values[:, -1:]
        scaled_AV = scaled_AV.masked_fill(scaled_AV < least_A1, -math.inf)
    share_AV = scaled_AV.softmax(-1)
    if top_p is not None and top_p < 1:
        share_AV = share_AV.where(share_AV >= nucleus_edge(share_AV, top_p), 0.0)
    return share_AV


def nucleus_edge(share_AV: Tensor, top_p: float) -> Tensor:
    """The least probability [A, 1] inside each nucleus."""
    falling_AV = falling(share_AV)
    before_AV = falling_AV.cumsum(-1, dtype=torch.float64) - falling_AV
    inside_A1 = (before_AV < top_p).sum(-1, keepdim=True)  # an id belongs if those before it are not yet enough
    return falling_AV.gather(1, inside_A1 - 1)


def falling(x_AV: Tensor) -> Tensor:
    """Each row sorted, largest first. On a CPU by NumPy, whose vectorised sort is many times faster than torch's."""
    if x_AV.device.type != "cpu":
        return x_AV.sort(descending=True).values
    return torch.from_numpy(np.sort(x_AV.numpy(), axis=-1)).flip(-1)


def draw(share_AV: Tensor, uniform_A: Tensor) -> Tensor:
    """The id at which the running sum of shares passes `uniform` times their whole; never one with share 0.

    >>> draw(torch.tensor([[0.2, 0.0, 0.3]]).repeat(3, 1), torch.tensor([0.0, 0.39, 0.41]).double())
    tensor([0, 0, 2])
    """
    sum_AV = share_AV.cumsum(-1, dtype=torch.float64)
    return torch.searchsorted(sum_AV, uniform_A[:, None] * sum_AV[:, -1:], right=True)[:, 0]
