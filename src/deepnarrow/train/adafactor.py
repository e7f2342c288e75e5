"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) with the settings T5 was trained with.

T5's settings, from mesh-TF `optimize.py` and the T5 gin files: the step is scaled by each parameter's own size, no
first moment, the update clipped to a root mean square of 1, second-moment decay 1 - t^-0.8, and the learning rate given
from outside. Matrices with both sides at least `factored_from` long keep row and column means of the squared gradient
in place of a second moment as large as themselves. All states are float32.

Where we differ from mesh-TF, in rounding only: 1e-30 is added to the means of the squared gradient in place of every
square, and the mean that the two factors share is always taken of the rows', where mesh-TF takes the one along the
shorter side (both are the mean of all squares). The `transformers` library's Adafactor factors every matrix, however
small, and scales weight decay by the parameter's size; with `factored_from=1` and no decay it is the same function.

One parameter is finished before the next is begun, and on a processor a large one in slabs of rows that fit its cache:
a step reads the weights and gradients four times and writes no array of their size besides the weights. Sums and norms
are of whole tensors also where a tensor is sharded (DTensor), and a mean is a sum divided by the whole length, since
shards may be of unequal size.

`scaled=False` leaves the parameter's size out of the step, as soft prompts were trained (Lester et al. 2021,
arXiv:2104.08691): then the learning rate is itself the largest RMS of an update.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

EPSILON_GRADIENT = 1e-30  # added to the squared gradient
EPSILON_SCALE = 1e-3  # no parameter counts as smaller than this
CLIP = 1.0  # largest root mean square of an update, before the learning rate
DECAY = 0.8  # second-moment decay is 1 - t**-DECAY for update t = 1, 2, ...
SLAB = 2**18  # numbers worked on at a time on a processor: a megabyte stays in its cache


Slab = slice | None  # rows of a tensor; None: all of it, whatever its kind


class Adafactor(Optimizer):
    """One step moves a parameter by `lr * max(1e-3, RMS(parameter))`, or by `lr`, times an update of RMS at most 1."""

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        factored_from: int = 128,
        weight_decay: float = 0.0,
        scaled: bool = True,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.factored_from, self.scaled = factored_from, scaled

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None:
            raise ValueError("Adafactor takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group["lr"], group["weight_decay"])
        return None

    def _move(self, parameter: Tensor, rate: float, weight_decay: float) -> None:
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        slabs = _slabs(gradient)
        direction = self._direction(parameter, gradient, slabs)
        root = parameter.numel() ** 0.5
        first = direction(slabs[0])
        norm = torch.linalg.vector_norm
        length = _length([norm(first if slab is slabs[0] else direction(slab)) for slab in slabs])
        # The factor stays on the device as a 0-d tensor: reading it here would wait for the GPU at every parameter.
        factor = (length / (root * CLIP)).clamp(min=1.0).reciprocal()
        if self.scaled:
            size = _length([norm(_rows(parameter, slab)) for slab in slabs])
            factor = (size / root).clamp(min=EPSILON_SCALE) / (length / (root * CLIP)).clamp(min=1.0)
        if weight_decay:
            parameter.mul_(1 - weight_decay * rate)
        for slab in slabs:
            _rows(parameter, slab).addcmul_(first if slab is slabs[0] else direction(slab), factor, value=-rate)

    def _direction(self, parameter: Tensor, gradient: Tensor, slabs: list[Slab]) -> Callable[[Slab], Tensor]:
        """The gradient divided by the root of its running second moment, slab by slab. Updates the state."""
        state = self.state[parameter]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32)
        state["step"] += 1
        keep = 1 - float(state["step"]) ** -DECAY
        if not self._factors(parameter):
            moment = _average(state, "moment", gradient.square() + EPSILON_GRADIENT, keep)
            return lambda slab: _rows(moment, slab).rsqrt().mul_(_rows(gradient, slab))
        rows, columns = zip(*(_sums(_rows(gradient, slab)) for slab in slabs), strict=True)
        row_sum = torch.cat(rows, -1) if len(rows) > 1 else rows[0]
        row = _average(state, "row", row_sum / gradient.shape[-1] + EPSILON_GRADIENT, keep)
        column = _average(state, "column", sum(columns) / gradient.shape[-2] + EPSILON_GRADIENT, keep)
        # second moment ~ row x column / mean(row)
        row_factor = (row / (row.sum(-1, keepdim=True) / row.shape[-1])).rsqrt().unsqueeze(-1)
        column_factor = column.rsqrt().unsqueeze(-2)
        return lambda slab: (_rows(gradient, slab) * _rows(row_factor, slab)).mul_(column_factor)

    def _factors(self, parameter: Tensor) -> bool:
        return parameter.ndim >= 2 and min(parameter.shape[-2:]) >= self.factored_from


def _average(state: dict[str, Any], key: str, fresh: Tensor, keep: float) -> Tensor:
    """Take `fresh` into the running mean `key`. The decay of the first step is 0, so no mean starts from zeros."""
    if key not in state:
        state[key] = fresh.clone()
    else:
        state[key].mul_(keep).add_(fresh, alpha=1 - keep)
    found: Tensor = state[key]
    return found


def _slabs(tensor: Tensor) -> list[Slab]:
    """Rows of a matrix on a processor, a cacheful at a time; anything else in one piece."""
    rows = max(1, SLAB // tensor.shape[-1]) if tensor.ndim == 2 else 0
    if tensor.device.type != "cpu" or not rows or rows >= len(tensor) or hasattr(tensor, "to_local"):
        return [None]
    return [slice(start, start + rows) for start in range(0, len(tensor), rows)]


def _rows(tensor: Tensor, slab: Slab) -> Tensor:
    return tensor if slab is None else tensor[slab]


def _sums(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Of the squares: of each row, and of each column."""
    squares = gradient.square()
    return squares.sum(-1), squares.sum(-2)


def _length(parts: list[Tensor]) -> Tensor:
    """Of a vector, from the lengths of its parts."""
    return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts))
