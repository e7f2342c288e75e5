"""Objectives: what is hidden from a row of tokens, and what the model must say instead. One file each.

An objective is a module of this folder, found by its file name, with two functions:

    lengths(inputs_length, **options) -> (raw_length, targets_length)
        how many tokens of text make inputs of that length, so that no batch holds padding
    corrupt(rows, generators, sentinels, **options) -> Ids
        rows of raw tokens [B, raw_length] to inputs and targets, EOS included; row b draws from generators[b] only
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer import Tokenizer


class Ids(NamedTuple):
    """One batch as token ids, EOS included, no padding."""

    inputs: np.ndarray  # [B, L]
    targets: np.ndarray  # [B, T]


@dataclass(frozen=True)
class Sentinels:
    """Where a vocabulary keeps its sentinels. They run downward: `<extra_id_n>` has the id `first - n`."""

    first: int  # 32,099 for T5
    count: int  # 100 for T5
    eos: int

    @classmethod
    def of(cls, tokenizer: "Tokenizer") -> "Sentinels":
        return cls(
            tokenizer.sentinel(0) if tokenizer.sentinels else tokenizer.size - 1, tokenizer.sentinels, tokenizer.eos
        )


class Objective(NamedTuple):
    name: str
    lengths: Callable[..., tuple[int, int]]
    corrupt: Callable[..., Ids]


def names() -> list[str]:
    return sorted(module.name for module in iter_modules(__path__) if not module.name.startswith("_"))


def get(name: str) -> Objective:
    """Find an objective by its file name.

    >>> get("span").lengths(512)
    (568, 114)
    """
    if name not in names():
        raise UserError(f"no such objective: {name!r}; {nearest(name, names())}")
    module = import_module(f"{__name__}.{name}")
    return Objective(name, module.lengths, module.corrupt)
