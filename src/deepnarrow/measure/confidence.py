"""How sure a model is, and whether it should be: probabilities of labels, likelihood of the accepted answers.

Shape key   N items   C labels
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.tasks.calibration import ece
from deepnarrow.tasks.resampling import OfMeans
from deepnarrow.tasks.significance import Interval, bootstrap

if TYPE_CHECKING:
    from deepnarrow.measure.evaluate import Prediction

GOLD, CALIBRATION, PERPLEXITY, BITS = "gold_probability", "ece", "perplexity", "bits_per_byte"


def shares(scores_NC: np.ndarray) -> np.ndarray:
    """Log-likelihoods as probabilities among themselves: what each label has of what all labels have together.

    >>> shares(np.log([[0.1, 0.3]])).round(2).tolist()
    [[0.25, 0.75]]
    """
    risen_NC = np.exp(scores_NC - scores_NC.max(axis=1, keepdims=True))
    return np.asarray(risen_NC / risen_NC.sum(axis=1, keepdims=True))


def right_share(one: "Prediction") -> float | None:
    """The probability of an accepted label; of a pair that names what is wrong, of any other."""
    if one.probabilities is None:
        return None
    accepted = sum(one.probabilities.get(label, 0.0) for label in set(one.accepted))
    return 1 - accepted if one.negated else accepted


def gold_probability(predictions: Sequence["Prediction"], samples: int, seed: int) -> dict[str, Interval]:
    """The mean probability of the right label, in percent, where labels were scored."""
    found = [share for one in predictions if (share := right_share(one)) is not None]
    return {GOLD: bootstrap(np.array(found), samples=samples, seed=seed)} if found else {}


def label_scores(predictions: Sequence["Prediction"], samples: int, seed: int) -> dict[str, Interval]:
    """The mean probability of the right label and the expected calibration error, where labels were scored."""
    rows = [one for one in predictions if one.probabilities is not None]
    if not rows:
        return {}
    labels = list(rows[0].probabilities or {})
    shares_NC = np.array([[(one.probabilities or {})[label] for label in labels] for one in rows])
    right_N = np.array([(one.prediction in one.accepted) != one.negated for one in rows], dtype=float)
    error = ece(shares_NC, right_N, samples=samples, seed=seed)
    return gold_probability(predictions, samples, seed) | {CALIBRATION: error}


def likelihood_scores(predictions: Sequence["Prediction"], samples: int, seed: int) -> dict[str, Interval]:
    """Perplexity a token and bits per byte of the accepted answers, over all of them together, EOS included."""
    rows = [
        (-one.log_likelihood, one.answer_tokens, len(one.accepted[0].encode()))
        for one in predictions
        if one.log_likelihood is not None and one.answer_tokens
    ]
    if not rows:
        return {}
    items = np.array(rows, dtype=float)
    found = {PERPLEXITY: bootstrap(items, OfMeans(perplexity), samples=samples, seed=seed)}
    if items[:, 2].any():
        found[BITS] = bootstrap(items, OfMeans(bits), samples=samples, seed=seed)
    return found


def perplexity(means: np.ndarray) -> np.ndarray:
    """exp(nats / tokens) of mean [nats, tokens, bytes]: `perplexity(np.array([math.log(8), 3, 1]))` is 2."""
    return np.asarray(np.exp(np.minimum(means[..., 0] / means[..., 1], 700.0)))


def bits(means: np.ndarray) -> np.ndarray:
    """Bits per byte of mean [nats, tokens, bytes]: `bits(np.array([math.log(8), 1, 3]))` is 1."""
    return np.asarray(means[..., 0] / math.log(2) / np.maximum(means[..., 2], 1e-9))
