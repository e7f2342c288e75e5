"""Span corruption (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4), as T5's own code does it.

    text     Thank you for inviting me to your party last week
    inputs   Thank you <0> me to your party <1>
    targets  <0> for inviting <1> last week

The same with token ids, `<0>` being 99, `<1>` 98 and EOS 1:

>>> words = "Thank you for inviting me to your party last week".split()
>>> rows = np.arange(10, 20)[None]
>>> hidden = np.array([[word in ("for", "inviting", "last", "week") for word in words]])
>>> inputs, targets = split(rows, hidden, Sentinels(first=99, count=10, eos=1))
>>> spell = dict(zip(range(10, 20), words, strict=True)) | {99: "<0>", 98: "<1>", 1: "</s>"}
>>> " ".join(spell[i] for i in inputs[0].tolist())
'Thank you <0> me to your party <1> </s>'
>>> " ".join(spell[i] for i in targets[0].tolist())
'<0> for inviting <1> last week </s>'

The paper's figure 2 ends the targets with one more sentinel. The code that trained the models does not: its mask
always ends hidden, so that nothing follows the last span (`t5/data/preprocessors.py`, random_spans_noise_mask).
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.text.objectives import Ids, Sentinels

__all__ = ["Counts", "Ids", "Sentinels", "corrupt", "counts", "fold", "lengths", "masks", "split"]


class Counts(NamedTuple):
    hidden: int  # tokens that move to the targets
    spans: int  # runs they come in; there are as many runs of visible tokens


def counts(length: int, *, density: float = 0.15, mean_span: float = 3.0) -> Counts:
    """How many of `length` tokens are hidden, in how many spans. Halves round to even, as in TensorFlow and Python.

    >>> counts(568)
    Counts(hidden=85, spans=28)
    """
    if not 0 < density < 1:
        raise UserError(f"density is the share of tokens to hide; it must lie between 0 and 1, not {density}")
    if mean_span < 1:
        raise UserError(f"mean_span is a span's mean length in tokens; it must be at least 1, not {mean_span}")
    if length < 2:
        raise UserError(f"a row of {length} token(s) cannot be split into a visible and a hidden part; use at least 2")
    hidden = min(max(round(length * density), 1), length - 1)
    # The last bound is ours: T5's code would ask for more visible runs than there are visible tokens.
    return Counts(hidden, min(max(round(hidden / mean_span), 1), length - hidden))


def lengths(inputs_length: int, *, density: float = 0.15, mean_span: float = 3.0) -> tuple[int, int]:
    """Tokens of text that corrupt to `inputs_length` inputs, and how many targets they give; EOS counted in both.

    >>> lengths(512)
    (568, 114)
    >>> lengths(512, density=0.5, mean_span=3.0)
    (766, 512)
    """
    if inputs_length < 3:
        raise UserError(f"inputs of {inputs_length} tokens cannot hold a token, a sentinel and EOS; use at least 3")

    def both(raw: int) -> tuple[int, int]:
        hidden, spans = counts(raw, density=density, mean_span=mean_span)
        return raw - hidden + spans + 1, hidden + spans + 1

    raw = 2
    while both(raw + 1)[0] <= inputs_length:  # one more raw token adds at most one input token, so no length is missed
        raw += 1
    targets_length = both(raw)[1]
    if density == 0.5 and targets_length > inputs_length:  # T5's special case, which keeps both sides equally long
        raw, targets_length = raw - 1, both(raw - 1)[1]
    return raw, targets_length


def corrupt(
    rows: np.ndarray,
    generators: Sequence[np.random.Generator],
    sentinels: Sentinels,
    *,
    density: float = 0.15,
    mean_span: float = 3.0,
) -> Ids:
    """Hide random spans of each row [B, R]; row b draws from `generators[b]` only, whatever stands beside it.

    Raises UserError when there are more spans than sentinels: T5's code would go on into ordinary words.
    """
    hidden, spans = counts(rows.shape[1], density=density, mean_span=mean_span)
    if spans > sentinels.count:
        raise UserError(
            f"{rows.shape[1]} tokens with density {density} and mean_span {mean_span} make {spans} spans, but the "
            f"vocabulary has {sentinels.count} sentinels; shorten input_length, raise mean_span, or train a tokenizer "
            f"with --sentinels {spans}"
        )
    return split(rows, masks(generators, rows.shape[1], hidden, spans), sentinels)


def masks(generators: Sequence[np.random.Generator], length: int, hidden: int, spans: int) -> np.ndarray:
    """One mask a generator, bool [B, length], True where hidden: `spans` runs that start visible and end hidden.

    The lengths of the hidden runs, and of the visible ones, are each a uniformly random composition.
    """
    visible = length - hidden
    # Raw words: NumPy keeps a bit generator's stream over its versions, but not what a Generator makes of it.
    words = np.empty((len(generators), length - 2), np.uint64)
    for row, generator in zip(words, generators, strict=True):
        row[:] = generator.bit_generator.random_raw(length - 2)
    visible_ends = _run_ends(words[:, : visible - 1], visible, spans)
    hidden_ends = _run_ends(words[:, visible - 1 :], hidden, spans)
    edges = np.zeros((len(generators), length + 1), np.int8)
    starts = visible_ends.copy()
    starts[:, 1:] += hidden_ends[:, :-1]
    np.put_along_axis(edges, starts, 1, axis=1)
    np.put_along_axis(edges, visible_ends + hidden_ends, -1, axis=1)
    return np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).view(np.bool_)


def _run_ends(words: np.ndarray, items: int, runs: int) -> np.ndarray:
    """Cut `items` into `runs` non-empty runs: where each ends, int64 [B, runs]. Uses up random `words` [B, items - 1].

    The runs - 1 smallest of items - 1 random words are a uniformly random choice of places to cut. Each word carries
    its place in its low bits, so that a partial sort suffices; 40 random bits or more are left above them.
    """
    ends = np.full((len(words), runs), items, np.int64)
    if runs > 1:
        low = np.uint64((1 << items.bit_length()) - 1)
        words &= ~low  # in place, here and below: fresh pages for large temporaries cost more than the arithmetic
        words |= np.arange(1, items, dtype=np.uint64)
        words.partition(runs - 2, axis=1)
        ends[:, :-1] = words[:, : runs - 1] & low
        ends.sort(axis=1)
    return ends


def split(rows: np.ndarray, hidden: np.ndarray, sentinels: Sentinels) -> Ids:
    """Inputs (hidden runs folded) and targets (visible runs folded) of `rows` [B, R] under a mask [B, R], with EOS."""
    return Ids(
        _with_eos(fold(rows, hidden, sentinels), sentinels), _with_eos(fold(rows, ~hidden, sentinels), sentinels)
    )


def fold(rows: np.ndarray, mask: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """Replace each run of masked tokens by one sentinel, the first run by `<extra_id_0>`, the next by `<extra_id_1>`.

    Every row must keep equally many tokens, else ValueError.

    >>> rows, mask = np.array([[10, 11, 12, 13, 14, 15]]), np.array([[1, 1, 0, 0, 1, 0]], bool)
    >>> fold(rows, mask, Sentinels(first=999, count=100, eos=1)).tolist()
    [[999, 12, 13, 998, 15]]
    """
    start = mask.copy()
    start[:, 1:] &= ~mask[:, :-1]
    folded = np.cumsum(start, axis=1, dtype=rows.dtype)  # in a run's first place: its number, from 1
    np.subtract(sentinels.first + 1, folded, out=folded)
    np.copyto(folded, rows, where=~start)
    keep = start | ~mask
    widths = np.count_nonzero(keep, axis=1)
    if np.any(widths != widths[:1]):
        raise ValueError("these masks leave rows of different lengths")
    return folded[keep].reshape(len(rows), -1)


def _with_eos(rows: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    return np.concatenate([rows, np.full((len(rows), 1), sentinels.eos, rows.dtype)], axis=1)
