"""What a search is asked for: greedy, a beam, samples. One definition for every way to run a model.

The searches of runtime/search.py take these as they are; those of `model` add the method that works on its cache.
"""

import math
from dataclasses import dataclass
from typing import Literal

from deepnarrow.errors import UserError, nearest

NORMALISERS = ("hf", "wu")
COLDEST = 1e-6  # float32 cannot tell a lower temperature from 0


@dataclass(frozen=True)
class Greedy:
    """The most likely token each time."""


@dataclass(frozen=True)
class Sample:
    """Draws from softmax(logits / temperature), cut to the `top_k` likeliest ids, then to the `top_p` nucleus.

    The nucleus is the smallest set of likeliest ids that together have at least the probability `top_p` (Holtzman et
    al. 2020, arXiv:1904.09751, section 3.1). Ids as likely as the last one kept are kept. Temperature 0 is greedy.
    An answer depends on the seed, its input, and the input's index in the call, never on its neighbours.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    num_return: int = 1

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise UserError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k must be at least 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p must be above 0 and at most 1, not {self.top_p}")
        if self.seed < 0:
            raise UserError(f"the seed must be 0 or more, not {self.seed}")
        if self.num_return < 1:
            raise UserError(f"num_return must be at least 1, not {self.num_return}")


@dataclass(frozen=True)
class Beam:
    """Beam search of a `width`; sequences are ranked by log-probability / penalty(length), EOS counted in the length.

    normaliser      "hf": length ** length_penalty, as `transformers`; "wu": ((5 + length) / 6) ** length_penalty
                    (Wu et al. 2016, arXiv:1609.08144, equation 14), as the original T5
    early_stopping  True: done when `width` sequences are finished; False: when, besides, the best open one would not
                    win if it ended now; "never": when it could not win at any length (exact for penalties >= 0)
    """

    width: int = 4
    length_penalty: float = 1.0
    normaliser: Literal["hf", "wu"] = "hf"
    early_stopping: bool | Literal["never"] = False
    num_return: int = 1

    def __post_init__(self) -> None:
        if self.width < 1:
            raise UserError(f"the width of a beam must be at least 1, not {self.width}")
        if not 1 <= self.num_return <= self.width:
            raise UserError(f"a beam of {self.width} can return 1 to {self.width} answers, not {self.num_return}")
        if not math.isfinite(self.length_penalty):
            raise UserError(f"length_penalty must be a finite number, not {self.length_penalty}")
        if self.normaliser not in NORMALISERS:
            raise UserError(f"unknown normaliser {self.normaliser!r}; {nearest(self.normaliser, NORMALISERS)}")
        if self.early_stopping not in (True, False, "never"):
            raise UserError(f"early_stopping is True, False or 'never', not {self.early_stopping!r}")

    def penalty(self, length: int) -> float:
        """What a log-probability is divided by.

        >>> Beam(4, 0.6).penalty(1), round(Beam(4, 0.6, "wu").penalty(7), 4)
        (1.0, 1.5157)
        """
        return (length if self.normaliser == "hf" else (5 + length) / 6) ** self.length_penalty


AnySearch = Greedy | Sample | Beam
