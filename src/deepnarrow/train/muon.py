"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon): each matrix moves by its momentum made orthogonal.

The momentum U S V^T becomes about U V^T by five steps of a Newton-Schulz iteration, matrix products alone, so that no
direction of the update is neglected for being rare. Embedding, output matrix, position tables and norms are not maps
from one hidden space to another: they take AdamW, torch's own.

    momentum   M <- mu M + (1 - mu) G, and Nesterov's look ahead: G + mu (M - G); mu 0.95
    size       the orthogonal matrix times 0.2 sqrt(longest side), whose root mean square is then about AdamW's 0.2, so
               that one learning rate and one weight decay serve both kinds (Liu et al. 2025, arXiv:2502.16982, 2.2)
    decay      decoupled, as in AdamW

`torch.optim.Muon` is the same function for matrices alone, with the products in bfloat16 also on a processor that has
no units for it; the tests hold ours equal to it. On a processor ours are in float32. Where a matrix is sharded, its
momentum is put together on every rank for the products, and each rank applies its own part.
"""

from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import AdamW, Optimizer

from deepnarrow.train.adamw_scale import whole

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of x, x^3, x^5: steep at 0, so that small singular values grow soonest
ITERATIONS = 5
EPSILON = 1e-7  # a gradient of zeros stays zeros
ADAM_RMS = 0.2  # what an element of an AdamW update comes to in practice


class Muon(Optimizer):
    """Groups with `"matrices": True` take Muon; the others AdamW, whose state and groups are shared with it."""

    def __init__(
        self,
        params: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        fused: bool = True,
    ) -> None:
        groups = [{"matrices": False, "weight_decay": 0.0, **group} for group in params]
        super().__init__(groups, {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps})
        others = [group for group in self.param_groups if not group["matrices"]]
        self.adamw = AdamW(others, lr=lr, betas=betas, eps=eps, fused=fused) if others else None
        if self.adamw is not None:
            self.adamw.state = self.state

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        if closure is not None:
            raise ValueError("Muon takes no closure: call backward() first, then step()")
        for group in self.param_groups:
            for parameter in group["params"] if group["matrices"] else ():
                if parameter.grad is not None:
                    self._move(parameter, group)
        if self.adamw is not None:
            self.adamw.step()
        return None

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        assert parameter.grad is not None
        gradient, state = parameter.grad.float(), self.state[parameter]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(parameter, dtype=torch.float32)
        state["momentum"].lerp_(gradient, 1 - group["momentum"])
        ahead = gradient.lerp(state["momentum"], group["momentum"])
        products = torch.bfloat16 if parameter.device.type == "cuda" else torch.float32
        update = placed(orthogonal(whole(ahead), products), parameter)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update, alpha=-group["lr"] * ADAM_RMS * max(parameter.shape) ** 0.5)


def orthogonal(matrix: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """About U V^T of a matrix U S V^T: singular values end between 0.7 and 1.2, whatever they were, in `dtype`.

    >>> values = torch.linalg.svdvals(orthogonal(torch.diag(torch.tensor([4.0, 1.0, 0.25]))))
    >>> bool(values.min() > 0.65 and values.max() < 1.25)
    True
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if tall else matrix).to(dtype, copy=True)  # the products below are as large as the shorter side
    wide.div_(wide.norm().clamp(min=EPSILON))  # no singular value above 1
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=third, alpha=fifth), wide, beta=first)
    return wide.T if tall else wide


def placed(tensor: Tensor, like: Tensor) -> Tensor:
    """A tensor that every rank holds whole, laid out as `like` is."""
    if not hasattr(like, "device_mesh"):
        return tensor
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    everywhere = DTensor.from_local(tensor, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(mesh, like.placements)  # type: ignore[attr-defined]
