"""I.i.d. denoising (Raffel et al. 2020, arXiv:1910.10683, section 3.3.2 and table 3): each token is hidden by itself.

    text     Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1> week
    targets  <0> for inviting <1> last <2>

As in T5's own code (`t5/data/preprocessors.py`: iid_noise_mask, noise_span_to_unique_sentinel and
nonnoise_span_to_unique_sentinel) each run of hidden tokens becomes one sentinel of the inputs, and each run of visible
tokens one sentinel of the targets, also a visible run at the end. Where the text starts hidden, the targets start with
what is hidden. `<0>` is 99, `<1>` 98, `<2>` 97 and EOS 1:

>>> from deepnarrow.text.objectives.span import split
>>> words_of_text = "Thank you for inviting me to your party last week".split()
>>> rows = np.arange(10, 20)[None]
>>> hidden = np.array([[word in ("for", "inviting", "last") for word in words_of_text]])
>>> inputs, targets = split(rows, hidden, Sentinels(first=99, count=10, eos=1))
>>> spell = dict(zip(range(10, 20), words_of_text, strict=True)) | {99: "<0>", 98: "<1>", 97: "<2>", 1: "</s>"}
>>> " ".join(spell[i] for i in inputs[0].tolist())
'Thank you <0> me to your party <1> week </s>'
>>> " ".join(spell[i] for i in targets[0].tolist())
'<0> for inviting <1> last <2> </s>'

How many tokens are hidden, and so both lengths, differ from row to row: 0 stands behind the shorter ones.

`style="drop"` leaves the hidden tokens out and puts no sentinel in their place (the paper's "drop corrupted tokens").
The paper's MASS-style objective is `bert` with `random_share=0`.
"""

from collections.abc import Sequence
from math import ceil, sqrt

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.objectives import Ids, Sentinels, span
from deepnarrow.text.objectives._rows import chance, check_share, room, squeeze, with_eos, words

STYLES = ("spans", "drop")
MARGIN = 4.0  # standard deviations of the number of runs: 1 row in 30,000 has more, 1 in 3,000 of very few runs


def lengths(inputs_length: int, *, density: float = 0.15, style: str = "spans") -> tuple[int, int]:
    """T5 cuts the text to fit where nothing is hidden, since that may happen; all may be hidden too.

    >>> lengths(512)
    (511, 512)
    """
    _check(density, style)
    return room(inputs_length), inputs_length


def corrupt(
    rows: np.ndarray,
    generators: Sequence[np.random.Generator],
    sentinels: Sentinels,
    *,
    density: float = 0.15,
    style: str = "spans",
) -> Ids:
    """Hide each token of rows [B, R] with probability `density`; row b draws from `generators[b]` only.

    Raises UserError when the sentinels would often not suffice. In the rare row where they do not, tokens stay
    visible from there on; T5's code would go on into ordinary words.
    """
    _check(density, style)
    hidden = chance(words(generators, rows.shape[1]), density)
    if style == "drop":
        ended, never = with_eos(rows, sentinels), np.zeros((len(rows), 1), bool)
        return Ids(
            squeeze(ended, np.concatenate([~hidden, ~never], axis=1)),
            squeeze(ended, np.concatenate([hidden, ~never], axis=1)),
        )
    enough = sentinels_needed(rows.shape[1], density)
    if enough > sentinels.count:
        raise UserError(
            f"{rows.shape[1]} tokens with density {density} make up to {enough} runs, but the vocabulary has "
            f"{sentinels.count} sentinels; shorten input_length, lower density, or train a tokenizer with "
            f"--sentinels {enough}"
        )
    return span.split(rows, capped(hidden, sentinels.count - 1), sentinels)


def sentinels_needed(length: int, density: float) -> int:
    """How many sentinels `length` tokens need: the mean number of hidden runs, a margin, one for a visible run more.

    A run starts where a hidden token follows a visible one; starts are a moving pattern of two tokens, so that
    neighbours exclude one another: variance n p (1 - 3 p) with p = density (1 - density), to a term free of n.

    >>> sentinels_needed(511, 0.15)
    92
    """
    starts = density * (1 - density)
    mean = density + (length - 1) * starts
    return min(ceil(mean + MARGIN * sqrt(length * starts * max(1 - 3 * starts, 0))), (length + 1) // 2) + 1


def capped(hidden: np.ndarray, runs: int) -> np.ndarray:
    """The mask [B, R] without the runs of each row that come after its first `runs`.

    >>> capped(np.array([[1, 1, 0, 1, 0, 1]], bool), 2).astype(int).tolist()
    [[1, 1, 0, 1, 0, 0]]
    """
    starts = hidden.copy()
    starts[:, 1:] &= ~hidden[:, :-1]
    if np.count_nonzero(starts, axis=1).max(initial=0) <= runs:
        return hidden
    return hidden & (np.cumsum(starts, axis=1) <= runs)


def restore(
    inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels, *, density: float = 0.15, style: str = "spans"
) -> np.ndarray:
    """The text, as in span corruption. ValueError for style "drop", which forgets where the hidden tokens stood."""
    if style == "drop":
        raise ValueError('style "drop" keeps no trace of where the hidden tokens stood')
    return span.restore(inputs, targets, sentinels)


def _check(density: float, style: str) -> None:
    check_share("density", density, "the share of tokens to hide")
    if style not in STYLES:
        raise UserError(f"unknown style {style!r}; {nearest(str(style), STYLES)}")
