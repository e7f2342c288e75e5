"""Prefix language modelling (Raffel et al. 2020, arXiv:1910.10683, section 3.3.1): read the start, say the rest.

    text     Thank you for inviting me to your party last week
    inputs   Thank you for inviting
    targets  me to your party last week

As T5 1.1 was adapted to (Lester et al. 2021, arXiv:2104.08691, section 3.1; the T5 code's task c4_v220_prefix_lm and
`t5/data/preprocessors.py`: prefix_lm, random_prefix_noise_mask): pieces are of single documents, never joined, and
the text is cut at a uniformly random place. The same with token ids, EOS being 1:

>>> words_of_text = "Thank you for inviting me to your party last week".split()
>>> ids, generator = np.arange(10, 20), np.random.Generator(np.random.Philox(4))
>>> inputs, targets = example(ids, generator, Sentinels(first=99, count=10, eos=1))
>>> spell = dict(zip(range(10, 20), words_of_text, strict=True)) | {1: "</s>"}
>>> " ".join(spell[i] for i in inputs.tolist())
'Thank you for inviting </s>'
>>> " ".join(spell[i] for i in targets.tolist())
'me to your party last week </s>'
"""

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Sentinels
from deepnarrow.text.objectives._rows import below, room, words


def piece_length(inputs_length: int, *, density: float = 0.5) -> int:
    """T5's cut, by which a prefix of all but one token would still fit with EOS to spare.

    >>> piece_length(512)
    511
    """
    _check(density)
    return max(room(inputs_length), 2)


def example(
    ids: np.ndarray, generator: np.random.Generator, sentinels: Sentinels, *, density: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Cut ids [n], n >= 2, into a prefix and the rest, each with EOS.

    The prefix has a uniformly random number of tokens up to n - 1, from the least that makes `density` the rest's mean
    share of the text.
    """
    _check(density)
    least, most = prefix_bounds(len(ids), density)
    prefix = least + int(below(words([generator], 1), most - least + 1)[0, 0])
    ended = np.empty(len(ids) + 2, ids.dtype)
    ended[:prefix], ended[prefix] = ids[:prefix], sentinels.eos
    ended[prefix + 1 : -1], ended[-1] = ids[prefix:], sentinels.eos
    return ended[: prefix + 1], ended[prefix + 1 :]


def prefix_bounds(length: int, density: float = 0.5) -> tuple[int, int]:
    """The fewest and the most tokens of the prefix of a text of `length`.

    >>> prefix_bounds(511), prefix_bounds(511, 0.25), prefix_bounds(2)
    ((1, 510), (255, 510), (1, 1))
    """
    most = length - 1
    return max(1, round((1 - 2 * density) * most)), most


def restore(inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels, *, density: float = 0.5) -> np.ndarray:
    return np.concatenate([inputs[:-1], targets[:-1]])


def _check(density: float) -> None:
    if not 0 < density <= 0.5:
        raise UserError(
            f"density is the mean share of a text in the targets; with a uniformly random cut it lies above 0 and up "
            f"to 0.5, not {density}"
        )
