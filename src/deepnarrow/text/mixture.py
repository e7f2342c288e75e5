"""Which of several sources each example comes from, as a function of its number.

Examples are dealt in blocks of 4,096: a block holds a fixed number of each source's examples, in a seeded order. So
example e is found without counting from the start, the shares are exact after every block, and each source is read in
its own order with nothing left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from hashlib import blake2b

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.permutation import permute

BLOCK = 4096  # shares are rounded to 1 / BLOCK, and none to nothing


@dataclass(frozen=True)
class Mixture:
    """Shares of the sources, positive, in any unit."""

    shares: tuple[float, ...]
    seed: int

    @cached_property
    def quotas(self) -> tuple[int, ...]:
        """Examples of each source in a block.

        >>> Mixture((3, 1), seed=0).quotas
        (3072, 1024)
        """
        return quotas(self.shares)

    def deal(self, examples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each example (int64, any order): which source it is of, and how many of that source came before it."""
        if len(self.shares) == 1:
            return np.zeros_like(examples), examples.copy()
        blocks, places = np.divmod(examples, BLOCK)
        source, number = np.empty_like(examples), np.empty_like(examples)
        for block in np.unique(blocks).tolist():
            here = blocks == block
            sources, numbers = dealt(self.quotas, self.seed, block)
            source[here], number[here] = sources[places[here]], numbers[places[here]]
        return source, number


@lru_cache(maxsize=8)
def dealt(quotas: tuple[int, ...], seed: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """One block: each place's source, and its number among the examples of that source since the first block."""
    key = int.from_bytes(blake2b(f"mixture {seed} {block}".encode(), digest_size=8).digest(), "little")
    order = permute(np.arange(BLOCK), BLOCK, key)
    sources = np.repeat(np.arange(len(quotas)), quotas)[order]
    numbers = np.empty(BLOCK, np.int64)
    for source, quota in enumerate(quotas):
        numbers[sources == source] = block * quota + np.arange(quota)
    return sources, numbers


def quotas(shares: Sequence[float]) -> tuple[int, ...]:
    """Shares as whole numbers that add up to BLOCK, each at least 1, by the largest remainder."""
    if len(shares) > BLOCK:
        raise UserError(f"a mixture holds at most {BLOCK} sources, not {len(shares)}")
    exact = np.array(shares, np.float64) / sum(shares) * BLOCK
    found = np.maximum(np.floor(exact), 1).astype(np.int64)
    while (missing := BLOCK - int(found.sum())) != 0:
        gap = exact - found
        if missing > 0:
            found[np.argsort(-gap, kind="stable")[:missing]] += 1
        else:
            found[int(np.argmin(np.where(found > 1, gap, np.inf)))] -= 1
    return tuple(found.tolist())


def shares(rule: str, sizes: Sequence[int]) -> tuple[float, ...]:
    """Shares of sources of these sizes by a rule; they add up to 1.

    size             in proportion to their sizes
    size,limit=65536 the same, but no source counts for more than so many (T5's examples-proportional mixing with an
                     artificial limit: Raffel et al. 2020, section 3.5.2)
    equal            the same for all
    temperature=2    in proportion to size ** (1 / 2); mT5's alpha of 0.3 is a temperature of 3.33 (arXiv:2010.11934)
    0.7,0.3          as given, one for each source

    >>> shares("temperature=2", [900, 100])
    (0.75, 0.25)
    >>> shares("size,limit=300", [900, 100])
    (0.75, 0.25)
    """
    if rule == "size":
        weights = [float(size) for size in sizes]
    elif rule.startswith("size,limit="):
        most = number(rule.removeprefix("size,limit="), rule)
        weights = [min(float(size), most) for size in sizes]
    elif rule == "equal":
        weights = [1.0] * len(sizes)
    elif rule.startswith("temperature="):
        heat = number(rule.removeprefix("temperature="), rule)
        weights = [size ** (1 / heat) for size in sizes]
    else:
        weights = [number(part, rule) for part in rule.split(",")]
        if len(weights) != len(sizes):
            raise UserError(f"the mixture {rule!r} has {len(weights)} rate(s), but there are {len(sizes)} sources")
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def number(text: str, rule: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 < value < float("inf"):
        raise UserError(
            f"cannot read the mixture {rule!r}; write size, size,limit=65536, equal, temperature=2, or rates such as "
            "0.7,0.3"
        )
    return value
