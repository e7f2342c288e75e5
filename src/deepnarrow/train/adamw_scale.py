"""AdamW whose step is scaled by the size of each parameter, nanoT5's best optimizer (arXiv:2309.02373, section 3.1).

Plain AdamW diverges when it pretrains a T5, whose embedding starts a hundred times larger than its queries; multiplying
each parameter's step by its root mean square, as Adafactor does, cures that.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer

EPSILON_SCALE = 1e-3  # no parameter counts as smaller than this


class AdamWScale(Optimizer):
    """Adam's step times `max(1e-3, RMS(parameter))`, then decoupled weight decay.

    As in nanoT5, `eps` is added to the root of the second moment before its bias is corrected.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None:
            raise ValueError("AdamWScale takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            live = [parameter for parameter in group["params"] if parameter.grad is not None]
            if live:
                self._step_group(live, group)
        return None

    def _step_group(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        states = [self._state(parameter) for parameter in parameters]
        gradients = [parameter.grad.float() for parameter in parameters]  # type: ignore[union-attr]
        first = [state["first"] for state in states]
        second = [state["second"] for state in states]
        beta1, beta2 = group["betas"]
        for state in states:
            state["step"] += 1
        torch._foreach_mul_(first, beta1)
        torch._foreach_add_(first, gradients, alpha=1 - beta1)
        torch._foreach_mul_(second, beta2)
        torch._foreach_addcmul_(second, gradients, gradients, value=1 - beta2)
        updates = torch._foreach_sqrt(second)
        torch._foreach_add_(updates, group["eps"])
        torch._foreach_reciprocal_(updates)
        torch._foreach_mul_(updates, first)
        sizes = torch._foreach_norm(parameters)
        for parameter, update, size, state in zip(parameters, updates, sizes, states, strict=True):
            step = float(state["step"])
            rate = group["lr"] * math.sqrt(1 - beta2**step) / (1 - beta1**step)
            factor = (size / parameter.numel() ** 0.5).clamp_(min=EPSILON_SCALE)
            parameter.addcmul_(update, factor, value=-rate)
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["first"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["second"] = torch.zeros_like(parameter, dtype=torch.float32)
        return state
