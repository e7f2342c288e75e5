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
from torch.optim.adamw import adamw

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
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        """Adam by torch's fused kernel, one pass over memory, with the rate and epsilon that make it nanoT5's.

        Its epsilon is added after the bias correction; divided by the root of the correction it is the same number.
        """
        state = self._state(parameter)
        state["step"] += 1
        step = float(state["step"])
        beta1, beta2 = group["betas"]
        size = torch.linalg.vector_norm(parameter) / parameter.numel() ** 0.5
        adamw(
            [local(parameter)],
            [local(parameter.grad.float())],  # type: ignore[union-attr]
            [local(state["first"])],
            [local(state["second"])],
            [],
            [torch.full((), step - 1, device=local(parameter).device)],  # the kernel counts this update itself
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=whole(size).clamp(min=EPSILON_SCALE) * group["lr"],
            weight_decay=0.0,
            eps=group["eps"] / math.sqrt(1 - beta2**step),
            maximize=False,
        )
        if group["weight_decay"]:
            parameter.mul_(1 - group["lr"] * group["weight_decay"])

    def _state(self, parameter: Tensor) -> dict[str, Any]:
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["first"] = torch.zeros_like(parameter, dtype=torch.float32)
            state["second"] = torch.zeros_like(parameter, dtype=torch.float32)
        return state


# A sharded tensor is recognised by what it can do: importing its class takes a second, and most runs have none.


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor; any other tensor as it is. What is done to it is done to the tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor's value on every rank; any other tensor as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
