"""Low-rank adapters: a frozen matrix W gets a trained product beside it, W x + scale * up (down x).

Hu et al. 2021 (arXiv:2106.09685), section 4.1: `up` starts at zero, so that training starts from the model as it was;
`scale` is alpha / rank. Once trained, W + scale * up down is a matrix like any other (`merge`), and decoding costs
nothing more.

Shape key   D inputs   F outputs   R rank
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from deepnarrow.errors import UserError, nearest
from deepnarrow.model.init import stream
from deepnarrow.model.layers import Attention, FeedForward, Linear, dropped
from deepnarrow.model.t5 import T5

# PEFT's word for a matrix -> ours. `wi` is there where the feed-forward is not gated, `wi_0` and `wi_1` where it is.
TARGETS = {
    "q": "query", "k": "key", "v": "value", "o": "output",
    "wi": "wi", "wi_0": "wi_0", "wi_1": "wi_1", "wo": "wo",
}  # fmt: skip
ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Lora:
    """What is adapted and how. The defaults are PEFT's for T5; query and value are also the paper's (section 4.2)."""

    rank: int = 8
    alpha: float = 8.0
    dropout: float = 0.0  # of what `down` reads
    targets: tuple[str, ...] = ("q", "v")  # names of TARGETS; a model need not have all of them

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UserError(f"the rank of LoRA must be at least 1, not {self.rank}")
        if not self.alpha > 0:
            raise UserError(f"the alpha of LoRA must be greater than 0, not {self.alpha:g}")
        if not 0 <= self.dropout < 1:
            raise UserError(f"the dropout of LoRA must be at least 0 and below 1, not {self.dropout:g}")
        if not self.targets:
            raise UserError(f"LoRA needs matrices to adapt: some of {', '.join(TARGETS)}, or {ALL}")
        for target in self.targets:
            if target not in TARGETS:
                raise UserError(f"LoRA cannot adapt {target!r}; {nearest(target, [*TARGETS, ALL])}")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


def targets(text: str) -> tuple[str, ...]:
    """Targets as a user writes them; "all" is every matrix of the blocks, never the embedding or the output matrix.

    >>> targets("q, v")
    ('q', 'v')
    >>> len(targets("all"))
    8
    """
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    return tuple(TARGETS) if names == (ALL,) else names


class LoraLinear(Linear):
    """A `Linear` that is frozen, and what is learned beside it. Callers see a `Linear`, its `weight` the frozen one."""

    def __init__(self, frozen: Linear, down_RD: Tensor, up_FR: Tensor, lora: Lora, *, dropout_shared: bool) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = frozen.in_features, frozen.out_features
        self.weight = frozen.weight
        self.register_parameter("bias", None)
        self.down, self.up = matrix(down_RD), matrix(up_FR)
        self.scale, self.dropout, self.dropout_shared = lora.scale, lora.dropout, dropout_shared

    def forward(self, x: Tensor) -> Tensor:
        read = dropped(x, self.dropout, training=self.training, shared=self.dropout_shared)
        return super().forward(x) + self.scale * self.up(self.down(read))

    @torch.no_grad()
    def merged(self) -> Linear:
        """One matrix that does the same."""
        added_FD = self.scale * (self.up.weight.float() @ self.down.weight.float())
        return matrix((self.weight.float() + added_FD).to(self.weight.dtype))


def matrix(weight_FD: Tensor) -> Linear:
    made = Linear(weight_FD.shape[1], weight_FD.shape[0], bias=False, device="meta")  # no random numbers are drawn
    made.weight = nn.Parameter(weight_FD)
    return made


def attach(model: T5, lora: Lora, *, seed: int = 0) -> T5:
    """Freeze the model and put adapters beside its matrices, in place. It computes what it did before.

    `down` is uniform within 1 / sqrt(inputs), as PEFT draws it (the paper: a Gaussian); each from its own stream.
    """
    names = chosen(model, lora)
    if not names:
        raise UserError(f"a {model.shape} has none of the matrices {', '.join(lora.targets)} for LoRA to adapt")
    fresh: dict[str, tuple[Tensor, Tensor]] = {}
    for name in names:
        outputs, inputs = model.get_submodule(name).weight.shape  # type: ignore[misc]
        down_RD = torch.empty(lora.rank, inputs).uniform_(-(inputs**-0.5), inputs**-0.5, generator=stream(seed, name))
        fresh[name] = down_RD, torch.zeros(outputs, lora.rank)
    return put_beside(model, lora, fresh)


def put_beside(model: T5, lora: Lora, weights: Mapping[str, tuple[Tensor, Tensor]]) -> T5:
    """Freeze the model and put these (down, up) beside the matrices they are named after, in place."""
    model.requires_grad_(False)
    for name, (down_RD, up_FR) in weights.items():
        home = model.get_submodule(name.rpartition(".")[0])
        frozen = cast(Linear, model.get_submodule(name))
        device = frozen.weight.device
        made = LoraLinear(
            frozen, down_RD.to(device), up_FR.to(device), lora, dropout_shared=bool(home.dropout_shared)
        )  # fmt: skip
        put(model, name, made.train(model.training))
    return model


def chosen(model: T5, lora: Lora) -> list[str]:
    """Names of the matrices that are adapted. Where keys and values are tied, "k" and "v" both mean the one matrix."""
    words, names = {TARGETS[target] for target in lora.targets}, []
    for home, layer in model.named_modules():
        if isinstance(layer, Attention | FeedForward):
            tied = isinstance(layer, Attention) and layer.value is None
            asked = words | ({"key"} if tied and "value" in words else set())
            names += [f"{home}.{name}" for name, _ in layer.named_children() if name in asked]
    return names


def adapted(model: nn.Module) -> dict[str, LoraLinear]:
    """Every adapted matrix by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def merge(model: T5) -> T5:
    """Put what was learned into the matrices, in place: a plain T5 of the same shape, equal but for rounding."""
    for name, module in adapted(model).items():
        put(model, name, module.merged())
    return model.requires_grad_(True)


def put(model: nn.Module, name: str, module: nn.Module) -> None:
    home, _, last = name.rpartition(".")
    setattr(model.get_submodule(home), last, module)
