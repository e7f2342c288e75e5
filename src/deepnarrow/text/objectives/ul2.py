"""UL2, a mixture of denoisers (Tay et al. 2022, arXiv:2205.05131, section 3.1 and table 1).

    R  [NLU]  span corruption as in T5: short spans, 15 % of the text
    X  [NLG]  extreme: long spans, half of the text, or both
    S  [S2S]  prefix language modelling

    text     Thank you for inviting me to your party last week
    R        [NLU] Thank you <0> me to your party <1>             -> <0> for inviting <1> last week
    X        [NLG] Thank you <0>                                  -> <0> for inviting me to your party last week
    S        [S2S] Thank you for inviting                         -> me to your party last week

>>> for part in parts():
...     print(part.prefix, part.objective, *part.options.values())
[NLU] span 3.0 0.15
[NLU] span 8.0 0.15
[NLG] span 3.0 0.5
[NLG] span 8.0 0.5
[NLG] span 64.0 0.15
[NLG] span 64.0 0.5
[S2S] prefix_lm 0.5

All seven are equally likely, as in the paper's code (appendix 9.2), which cuts S at a uniformly random place with
density 0.5; table 1 gives S a quarter of the text as targets: `prefix_density=0.25`. Section 4.5 finds about a fifth
of S best: `weights=(0.2, 0.2, 0.1, 0.1, 0.1, 0.1, 0.2)`.

With 512 inputs the denoiser of many short spans needs 128 sentinels where T5's vocabulary has 100: UL2's own code went
on into the last ordinary pieces; ours asks for shorter inputs or a tokenizer with more.
"""

from collections.abc import Sequence
from math import inf
from typing import NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Part


class Denoiser(NamedTuple):
    prefix: str
    mean_span: float  # tokens
    density: float


DENOISERS = (
    Denoiser("[NLU]", 3.0, 0.15),
    Denoiser("[NLU]", 8.0, 0.15),
    Denoiser("[NLG]", 3.0, 0.5),
    Denoiser("[NLG]", 8.0, 0.5),
    Denoiser("[NLG]", 64.0, 0.15),
    Denoiser("[NLG]", 64.0, 0.5),
)


def parts(
    *,
    denoisers: Sequence[tuple[str, float, float]] = DENOISERS,
    prefix_density: float = 0.5,
    weights: Sequence[float] | None = None,
) -> tuple[Part, ...]:
    """The denoisers of spans, each (prefix, mean_span, density), and prefix language modelling last.

    `weights` are one for each part, in this order, of any positive sum; None: all alike.
    """
    shares = [1.0] * (len(denoisers) + 1) if weights is None else [float(weight) for weight in weights]
    if len(shares) != len(denoisers) + 1:
        raise UserError(
            f"{len(denoisers)} denoisers and prefix language modelling need {len(denoisers) + 1} weights, "
            f"not {len(shares)}"
        )
    for share in shares:
        if not 0 < share < inf:
            raise UserError(f"a weight must be a finite number above 0, not {share:g}; leave that denoiser out instead")
    spans = [
        Part("span", {"mean_span": mean_span, "density": density}, share, prefix)
        for (prefix, mean_span, density), share in zip(denoisers, shares, strict=False)
    ]
    return (*spans, Part("prefix_lm", {"density": prefix_density}, shares[-1], "[S2S]"))
