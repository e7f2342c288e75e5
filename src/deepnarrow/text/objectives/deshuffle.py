"""Deshuffling (Raffel et al. 2020, arXiv:1910.10683, section 3.3.1 and table 3, after Liu et al. 2019): put in order.

    text     Thank you for inviting me to your party last week
    inputs   Thank last week inviting party to you for your me
    targets  Thank you for inviting me to your party last week

Every order is equally likely (`t5/data/preprocessors.py`: permute_noise_tokens with everything noise). EOS stays last.
The same with token ids, EOS being 1:

>>> words_of_text = "Thank you for inviting me to your party last week".split()
>>> rows, generator = np.arange(10, 20)[None], np.random.Generator(np.random.Philox(0))
>>> inputs, targets = corrupt(rows, [generator], Sentinels(first=99, count=10, eos=1))
>>> spell = dict(zip(range(10, 20), words_of_text, strict=True)) | {1: "</s>"}
>>> " ".join(spell[i] for i in inputs[0].tolist())
'Thank last week inviting party to you for your me </s>'
>>> " ".join(spell[i] for i in targets[0].tolist())
'Thank you for inviting me to your party last week </s>'
"""

from collections.abc import Sequence

import numpy as np

from deepnarrow.text.objectives import Ids, Sentinels
from deepnarrow.text.objectives._rows import room, with_eos, words


def lengths(inputs_length: int) -> tuple[int, int]:
    """Both sides are as long as the text, with EOS.

    >>> lengths(512)
    (511, 512)
    """
    return room(inputs_length), inputs_length


def corrupt(rows: np.ndarray, generators: Sequence[np.random.Generator], sentinels: Sentinels) -> Ids:
    """Permute the tokens of each row [B, R]; row b draws from `generators[b]` only."""
    # Sorting random words that carry their place in the low bits: a sort in place is several times as fast as an
    # argsort, and 40 random bits or more above the place leave equal words, which would keep their order, unheard of.
    drawn = words(generators, rows.shape[1])
    low = np.uint64((1 << rows.shape[1].bit_length()) - 1)
    drawn &= ~low
    drawn |= np.arange(rows.shape[1], dtype=np.uint64)
    drawn.sort(axis=1)
    order = (drawn & low).astype(np.int64)
    return Ids(with_eos(np.take_along_axis(rows, order, axis=1), sentinels), with_eos(rows, sentinels))


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    return targets[:-1]
