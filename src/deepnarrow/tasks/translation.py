"""BLEU and chrF by sacrebleu (Post 2018, arXiv:1804.08771), kept as counts so that intervals can resample them.

sacrebleu tokenizes and counts; a segment's counts are its row, and the score is a formula of their sums. The formulas
are vectorised here, because the bootstrap needs thousands of scores, and tests hold them equal to sacrebleu's.

T5 measured with the `intl` tokenizer, WMT's own tables and sacrebleu's default with `13a`: some tenths of a point
apart. The signature says which.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from deepnarrow.tasks.pair import Pair

ORDERS = 4  # BLEU's longest n-gram, in words
CHARACTERS = 6  # chrF's longest n-gram, in characters
BETA = 2  # chrF weighs recall so many times as precision


def bleu_scorer(tokenizer: str) -> Any:
    from sacrebleu.metrics import BLEU  # a fifth of a second, so only where it is wanted

    return BLEU(tokenize=tokenizer, smooth_method="exp", force=True)  # force: no advice about texts that end in " ."


def chrf_scorer() -> Any:
    from sacrebleu.metrics import CHRF

    return CHRF(char_order=CHARACTERS, word_order=0, beta=BETA)


def bleu_rows(predictions: Sequence[str], pairs: Sequence[Pair], tokenizer: str) -> np.ndarray:
    """[n, 10]: the prediction's length, the closest reference's, n-grams in common for n of 1 to 4, n-grams predicted.

    >>> bleu_rows(["a b c"], [Pair("", ["a b d"])], "intl").astype(int).tolist()
    [[3, 3, 2, 1, 0, 0, 3, 2, 1, 0]]
    """
    return counted(bleu_scorer(tokenizer), predictions, pairs, 2 + 2 * ORDERS)


def chrf_rows(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """[n, 18]: for n of 1 to 6, the n-grams predicted, those of the best reference, and those in common."""
    return counted(chrf_scorer(), predictions, pairs, 3 * CHARACTERS)


def counted(scorer: Any, predictions: Sequence[str], pairs: Sequence[Pair], width: int) -> np.ndarray:
    if len(predictions) != len(pairs):
        raise ValueError(f"{len(predictions)} predictions for {len(pairs)} pairs: one is longer")
    most = max((len(pair.accepted) for pair in pairs), default=0)
    many = [[*pair.accepted, *[None] * (most - len(pair.accepted))] if pair.accepted else [""] for pair in pairs]
    streams = [[one[place] if place < len(one) else None for one in many] for place in range(max(most, 1))]
    rows = scorer._extract_corpus_statistics(list(predictions), streams)  # what its own bootstrap resamples
    return np.array(rows, dtype=float).reshape(-1, width)


def bleu_percent(sums: np.ndarray) -> np.ndarray:
    """BLEU of summed rows, [..., 10] -> [...] (Papineni et al. 2002).

    An order without a match counts as half a match, the next as a quarter, and so on ("exp", the smoothing that T5
    and sacrebleu use); a corpus without any match, or too short for 4-grams, is 0.
    """
    lengths, common, total = sums[..., :2], sums[..., 2 : 2 + ORDERS], sums[..., 2 + ORDERS :]
    missing = common == 0
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), common)
    scored = ~missing.all(-1) & (total > 0).all(-1)
    precision = np.where(scored[..., None], smoothed / np.where(total > 0, total, 1.0), 1.0)
    brevity = np.minimum(0.0, 1 - lengths[..., 1] / np.where(lengths[..., 0] > 0, lengths[..., 0], 1.0))
    return np.where(scored, 100 * np.exp(brevity + np.log(precision).mean(-1)), 0.0)


def chrf_percent(sums: np.ndarray) -> np.ndarray:
    """chrF2 of summed rows, [..., 18] -> [...] (Popovic 2015): F of mean precision and mean recall over the orders
    that both sides are long enough for."""
    predicted, wanted, common = (sums[..., place::3] for place in range(3))
    there = (predicted > 0) & (wanted > 0)
    orders = np.maximum(there.sum(-1), 1)
    precision = np.where(there, common / np.where(there, predicted, 1.0), 0.0).sum(-1) / orders
    recall = np.where(there, common / np.where(there, wanted, 1.0), 0.0).sum(-1) / orders
    below = BETA**2 * precision + recall
    return 100 * (1 + BETA**2) * precision * recall / np.where(below > 0, below, 1.0)


def bleu_signature(pairs: Sequence[Pair], tokenizer: str) -> str:
    """sacrebleu's signature, as in "nrefs:1|case:mixed|eff:no|tok:intl|smooth:exp|version:2.6.0"."""
    return signature(bleu_scorer(tokenizer), pairs)


def chrf_signature(pairs: Sequence[Pair]) -> str:
    return signature(chrf_scorer(), pairs)


def signature(scorer: Any, pairs: Sequence[Pair]) -> str:
    references = {len(pair.accepted) for pair in pairs}
    scorer.num_refs = references.pop() if len(references) == 1 else -1  # -1 is sacrebleu's "varies"
    return str(scorer.get_signature())
