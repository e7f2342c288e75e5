"""Objectives: what is hidden from a text, and what the model must say instead. One file each, found by its name.

An objective is of one of three kinds; the file says which by what it defines.

Of rows: the joined text is cut into rows of equal length, so that nothing is padded.

    lengths(inputs_length, **options) -> (raw_length, targets_length)
        how many tokens of text make inputs of that length at most, and how long their targets are at most
    corrupt(rows, generators, sentinels, **options) -> Ids
        rows of raw tokens [B, raw_length] to inputs and targets; row b draws from generators[b] only

Of documents: examples are pieces of single documents and differ in length; nothing crosses a document's border.

    piece_length(inputs_length, **options) -> int | None
        documents are cut into pieces of so many tokens; None keeps them whole
    example(ids, generator, sentinels, **options) -> (inputs, targets)
        one piece, int32 [n] with n >= 2, to two arrays of ids

A mixture: examples of several other objectives.

    parts(**options) -> tuple[Part, ...]

The first two also define what proves them, for the contract's tests:

    restore(inputs, targets, sentinels, **options) -> ids
        the text of one example (arrays without padding), rebuilt from the two sides alone

and, where a document is stored as more than its text,

    stored(text, sentinels) -> ids
        some text as a corpus for this objective could store it, such that `restore` gives the text back

Every side ends with EOS. Options are keyword arguments with defaults, the same for all of these functions; `example`
and `corrupt` are pure functions.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from inspect import Parameter, signature
from pkgutil import iter_modules
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from deepnarrow.errors import UserError, nearest

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer import Tokenizer


class Ids(NamedTuple):
    """Some examples as token ids, EOS included, 0 behind the shorter ones."""

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


@dataclass(frozen=True)
class Part:
    """One objective of a mixture."""

    objective: str
    options: Mapping[str, Any] = field(default_factory=dict)
    weight: float = 1.0
    prefix: str = ""  # put before the inputs, such as UL2's "[NLU]"; it counts towards their length


class Objective(NamedTuple):
    """A file of this folder; what its kind does not define is None."""

    name: str
    kind: Literal["rows", "documents", "mixture"]
    lengths: Callable[..., tuple[int, int]] | None
    corrupt: Callable[..., Ids] | None
    piece_length: Callable[..., int | None] | None
    example: Callable[..., tuple[np.ndarray, np.ndarray]] | None
    parts: Callable[..., tuple[Part, ...]] | None
    restore: Callable[..., np.ndarray] | None
    stored: Callable[..., np.ndarray] | None


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
    functions = {function: getattr(module, function, None) for function in Objective._fields[2:]}
    return Objective(name, kind_of(module), **functions)


def check_options(objective: Objective, options: Iterable[str]) -> None:
    """Refuse the name of an option that the objective does not have.

    >>> check_options(get("span"), {"density": 0.5})
    >>> check_options(get("span"), {"span": 3.0})
    Traceback (most recent call last):
    deepnarrow.errors.UserError: the objective 'span' has no option 'span'; its options: density, mean_span
    """
    known = options_of(objective)
    for name in options:
        if name not in known:
            theirs = f"its options: {', '.join(known)}" if known else "it takes none"
            raise UserError(f"the objective {objective.name!r} has no option {name!r}; {theirs}")


def options_of(objective: Objective) -> dict[str, Any]:
    """The names of an objective's options with their defaults."""
    main = objective.parts or objective.example or objective.corrupt
    assert main is not None, f"{objective.name} defines neither parts, example nor corrupt"
    found = signature(main).parameters.values()
    return {option.name: option.default for option in found if option.kind is Parameter.KEYWORD_ONLY}


def kind_of(module: ModuleType) -> Literal["rows", "documents", "mixture"]:
    if hasattr(module, "parts"):
        return "mixture"
    return "documents" if hasattr(module, "example") else "rows"
