"""Adafactor (Shazeer & Stern 2018, arXiv:1804.04235) with the settings T5 was trained with.

T5's settings, from mesh-TF `optimize.py` and the T5 gin files: the step is scaled by each parameter's own size, no
first moment, the update clipped to a root mean square of 1, second-moment decay 1 - t^-0.8, and the learning rate given
from outside. Matrices with both sides at least `factored_from` long keep row and column means of the squared gradient
in place of a second moment as large as themselves.

Where we differ from mesh-TF: it keeps a 2-D weight for all heads together, as we do, but its relative-position tables
are [heads, 32] where ours may be transposed; neither is factored, so nothing changes. All states are float32.
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


class Adafactor(Optimizer):
    """One step moves a parameter by `lr * max(1e-3, RMS(parameter))` times an update whose RMS is at most 1."""

    def __init__(
        self, params: Iterable[Any], *, lr: float, factored_from: int = 128, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.factored_from = factored_from

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None:
            raise ValueError("Adafactor takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.grad is not None]
            if live:
                self._step_group(live, group["lr"], group["weight_decay"])
        return None

    def _step_group(self, parameters: list[Tensor], rate: float, weight_decay: float) -> None:
        updates = [self._direction(parameter) for parameter in parameters]
        roots = [parameter.numel() ** 0.5 for parameter in parameters]
        sizes = torch._foreach_norm(parameters)
        lengths = torch._foreach_norm(updates)
        for parameter, update, size, length, root in zip(parameters, updates, sizes, lengths, roots, strict=True):
            # Factors stay on the device as 0-d tensors: reading them here would wait for the GPU at every parameter.
            factor = (size / root).clamp_(min=EPSILON_SCALE) / (length / (root * CLIP)).clamp_(min=1.0)
            if weight_decay:
                parameter.mul_(1 - weight_decay * rate)
            parameter.addcmul_(update, factor, value=-rate)

    def _direction(self, parameter: Tensor) -> Tensor:
        """The gradient divided by the root of its running second moment. Updates the state."""
        assert parameter.grad is not None
        gradient = parameter.grad.float()
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state |= self._zero_moments(parameter)
        state["step"] += 1
        keep = 1 - float(state["step"]) ** -DECAY
        if "row" in state:
            squares = gradient.square()
            for key, side in (("row", -1), ("column", -2)):
                mean = squares.mean(dim=side).add_(EPSILON_GRADIENT)
                state[key].mul_(keep).add_(mean, alpha=1 - keep)
            # second moment ~ row x column / mean(row)
            row_factor = (state["row"] / state["row"].mean(dim=-1, keepdim=True)).rsqrt_()
            direction = torch.mul(gradient, row_factor.unsqueeze(-1), out=squares)
            return direction.mul_(state["column"].rsqrt().unsqueeze(-2))
        state["moment"].mul_(keep).add_(gradient.square().add_(EPSILON_GRADIENT), alpha=1 - keep)
        return state["moment"].rsqrt().mul_(gradient)

    def _zero_moments(self, parameter: Tensor) -> dict[str, Tensor]:
        size = parameter.shape
        if len(size) >= 2 and min(size[-2:]) >= self.factored_from:
            sizes = {"row": size[:-1], "column": (*size[:-2], size[-1])}
        else:
            sizes = {"moment": size}
        return {key: torch.zeros(size, dtype=torch.float32, device=parameter.device) for key, size in sizes.items()}
