"""BERT-style denoising (Raffel et al. 2020, arXiv:1910.10683, section 3.3.1 and table 3, after Devlin et al. 2019).

    text     Thank you for inviting me to your party last week
    inputs   Thank you <M> <M> me to your party apple week
    targets  Thank you for inviting me to your party last week

15 % of the tokens are hidden, each by itself: nine in ten become the first sentinel, one in ten a random word; the
targets are the whole text (`t5/data/preprocessors.py`: iid_noise_mask, noise_token_to_random_token_or_sentinel).
T5's random words may also be sentinels, one in 321; ours are ordinary pieces. `random_share=0` is the paper's
MASS-style objective.

The same with token ids, in a vocabulary of these ten words and one more, `<M>` being 14 and EOS 1:

>>> pieces = "Thank you for inviting me to your party last week apple".split()
>>> rows, generator = np.arange(3, 13)[None], np.random.Generator(np.random.Philox(6982))
>>> inputs, targets = corrupt(rows, [generator], Sentinels(first=14, count=1, eos=1), density=0.3)
>>> spell = dict(zip(range(3, 14), pieces, strict=True)) | {14: "<M>", 1: "</s>"}
>>> " ".join(spell[i] for i in inputs[0].tolist())
'Thank you <M> <M> me to your party apple week </s>'
>>> " ".join(spell[i] for i in targets[0].tolist())
'Thank you for inviting me to your party last week </s>'
"""

from collections.abc import Sequence

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Ids, Sentinels
from deepnarrow.text.objectives._rows import FIRST_PIECE, below, chance, check_share, room, with_eos, words


def lengths(inputs_length: int, *, density: float = 0.15, random_share: float = 0.1) -> tuple[int, int]:
    """Both sides are as long as the text, with EOS.

    >>> lengths(512)
    (511, 512)
    """
    _check(density, random_share)
    return room(inputs_length), inputs_length


def corrupt(
    rows: np.ndarray,
    generators: Sequence[np.random.Generator],
    sentinels: Sentinels,
    *,
    density: float = 0.15,
    random_share: float = 0.1,
) -> Ids:
    """Hide each token of rows [B, R] with probability `density`: of those, `random_share` become random pieces.

    Row b draws from `generators[b]` only. Raises UserError when the vocabulary has no sentinel.
    """
    _check(density, random_share)
    if not sentinels.count:
        raise UserError(
            "bert hides tokens behind a sentinel, but the vocabulary has none; train one with --sentinels 1"
        )
    length = rows.shape[1]
    drawn = words(generators, 2 * length)
    pieces = sentinels.first - sentinels.count + 1 - FIRST_PIECE  # ordinary ones, which lie below the last sentinel
    inputs = rows.copy()
    np.copyto(inputs, sentinels.first, where=chance(drawn[:, :length], density))
    # One word decides both: those below density * random_share are the hidden ones that become random.
    chosen = chance(drawn[:, :length], density * random_share)
    inputs[chosen] = below(drawn[:, length:][chosen], pieces) + FIRST_PIECE
    return Ids(with_eos(inputs, sentinels), with_eos(rows, sentinels))


def restore(
    inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels, *, density: float = 0.15, random_share: float = 0.1
) -> np.ndarray:
    return targets[:-1]


def _check(density: float, random_share: float) -> None:
    check_share("density", density, "the share of tokens to hide")
    if not 0 <= random_share <= 1:
        raise UserError(
            f"random_share is the share of hidden tokens that become random words; it must lie from 0 to 1, "
            f"not {random_share}"
        )
