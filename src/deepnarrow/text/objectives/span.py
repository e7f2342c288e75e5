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
from deepnarrow.text.objectives._rows import check_share, squeeze, with_eos, words

__all__ = ["Counts", "Ids", "Sentinels", "corrupt", "counts", "fold", "lengths", "masks", "restore", "split"]


class Counts(NamedTuple):
    hidden: int  # tokens that move to the targets
    spans: int  # runs they come in; there are as many runs of visible tokens


def counts(length: int, *, density: float = 0.15, mean_span: float = 3.0) -> Counts:
    """How many of `length` tokens are hidden, in how many spans. Halves round to even, as in TensorFlow and Python.

    >>> counts(568)
    Counts(hidden=85, spans=28)
    """
    check_share("density", density, "the share of tokens to hide")
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
    drawn = words(generators, length - 2)
    visible_ends = _run_ends(drawn[:, : visible - 1], visible, spans)
    hidden_ends = _run_ends(drawn[:, visible - 1 :], hidden, spans)
    edges = np.zeros((len(generators), length + 1), np.int8)
    starts = visible_ends.copy()
    starts[:, 1:] += hidden_ends[:, :-1]
    np.put_along_axis(edges, starts, 1, axis=1)
    np.put_along_axis(edges, visible_ends + hidden_ends, -1, axis=1)
    return np.cumsum(edges[:, :-1], axis=1, dtype=np.int8).view(np.bool_)


def _run_ends(drawn: np.ndarray, items: int, runs: int) -> np.ndarray:
    """Cut `items` into `runs` non-empty runs: where each ends, int64 [B, runs]. Uses up random words [B, items - 1].

    The runs - 1 smallest of items - 1 random words are a uniformly random choice of places to cut. Each word carries
    its place in its low bits, so that a partial sort suffices; 40 random bits or more are left above them.
    """
    ends = np.full((len(drawn), runs), items, np.int64)
    if runs > 1:
        low = np.uint64((1 << items.bit_length()) - 1)
        drawn &= ~low  # in place, here and below: fresh pages for large temporaries cost more than the arithmetic
        drawn |= np.arange(1, items, dtype=np.uint64)
        drawn.partition(runs - 2, axis=1)
        ends[:, :-1] = drawn[:, : runs - 1] & low
        ends.sort(axis=1)
    return ends


def restore(
    inputs: np.ndarray, targets: np.ndarray, sentinels: Sentinels, *, density: float = 0.15, mean_span: float = 3.0
) -> np.ndarray:
    """The text of one example, from its two sides [L] and [T]: visible and hidden runs by turns.

    >>> restore(np.array([99, 12, 13, 98, 1]), np.array([10, 11, 99, 14, 1]), Sentinels(first=99, count=5, eos=1))
    array([10, 11, 12, 13, 14])
    """
    sides = inputs[:-1], targets[:-1]
    marks = [(side <= sentinels.first) & (side > sentinels.first - sentinels.count) for side in sides]
    # The number of a token's run is twice the sentinels before it; the side that has a sentinel first lags by one.
    runs = [2 * np.cumsum(mark) - bool(mark[:1].any()) for mark in marks]
    text, visible = np.concatenate(sides), ~np.concatenate(marks)
    return text[visible][np.argsort(np.concatenate(runs)[visible], kind="stable")]


def split(rows: np.ndarray, hidden: np.ndarray, sentinels: Sentinels) -> Ids:
    """Inputs (hidden runs folded) and targets (visible runs folded) of `rows` [B, R] under a mask [B, R], with EOS."""
    ended = with_eos(rows, sentinels)
    mask = np.zeros(ended.shape, bool)  # EOS is never folded
    mask[:, :-1] = hidden
    inputs = fold(ended, mask, sentinels)
    np.logical_not(hidden, out=mask[:, :-1])
    return Ids(inputs, fold(ended, mask, sentinels))


def fold(rows: np.ndarray, mask: np.ndarray, sentinels: Sentinels) -> np.ndarray:
    """Replace each run of masked tokens by one sentinel, the first run by `<extra_id_0>`, the next by `<extra_id_1>`.

    Rows that become shorter than others have 0 behind.

    >>> rows, mask = np.array([[10, 11, 12, 13, 14, 15]]), np.array([[1, 1, 0, 0, 1, 0]], bool)
    >>> fold(rows, mask, Sentinels(first=999, count=100, eos=1)).tolist()
    [[999, 12, 13, 998, 15]]
    """
    start = mask.copy()
    start[:, 1:] &= ~mask[:, :-1]
    folded = np.cumsum(start, axis=1, dtype=rows.dtype)  # in a run's first place: its number, from 1
    np.subtract(sentinels.first + 1, folded, out=folded)
    np.copyto(folded, rows, where=~start)
    return squeeze(folded, start | ~mask)
