"""Metrics: from predictions and accepted answers to one row of numbers per item, and from those rows to a score.

The rows are kept because intervals need them: a score alone cannot say how far to trust it. Scores run from 0 to 100
(Matthews from -100). Every metric but `matthews` takes the best over the accepted answers.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from string import punctuation

import numpy as np

from deepnarrow.tasks import rouge
from deepnarrow.tasks.pair import Pair
from deepnarrow.tasks.significance import MEAN, Combine, OfMeans

Items = Callable[[Sequence[str], Sequence[Pair]], np.ndarray]

DROPPED = str.maketrans("", "", punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


@dataclass(frozen=True)
class Metric:
    """`items(predictions, pairs)` gives [n] or [n, k], one row per item; `combine` makes the score of the rows.

    With `grouped`, a row stands for a group of pairs (`Pair.group`), in the order of their first pairs.
    """

    name: str
    items: Items
    combine: Combine = MEAN
    grouped: bool = False

    def score(self, predictions: Sequence[str], accepted: Sequence[Pair | Sequence[str]]) -> float:
        """Items and score in one go, for a caller who needs no interval; bare lists of answers will do."""
        pairs = [one if isinstance(one, Pair) else Pair("", list(one)) for one in accepted]
        return float(self.combine(self.items(predictions, pairs)))


def best(compare: Callable[[str, str], float]) -> Items:
    """The items of a metric that compares two texts: the best over the accepted answers, 0 where there is none.

    For a negated pair it is 1 less that.
    """

    def items(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
        found = [
            max((compare(text, one) for one in pair.accepted), default=0.0)
            for text, pair in zip(predictions, pairs, strict=True)
        ]
        turned = [1 - value if pair.negated else value for value, pair in zip(found, pairs, strict=True)]
        return np.array(turned, dtype=float)

    return items


def normalised(text: str) -> str:
    """SQuAD's normal form (Rajpurkar et al. 2016, arXiv:1606.05250): lower case, no ASCII punctuation, no articles.

    Other punctuation stays, as in the official script: a curly quote makes another word.

    >>> normalised("The  U.S., an example!")
    'us example'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(DROPPED)).split())


def same_answer(prediction: str, answer: str) -> float:
    return float(normalised(prediction) == normalised(answer))


def token_overlap(prediction: str, answer: str) -> float:
    """F1 over the words of the normal forms, 0 where they share none.

    >>> token_overlap("the big red moose", "a big moose")
    0.8
    """
    found, wanted = normalised(prediction).split(), normalised(answer).split()
    common = (Counter(found) & Counter(wanted)).total()
    return 2 * common / (len(found) + len(wanted)) if common else 0.0


def same_label(prediction: str, label: str) -> float:
    return float(prediction.strip() == label.strip())


def label_table(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """Rows [right, predicted label one-hot, true label one-hot], [n, 1 + 2c]; the first accepted label is the truth.

    The c labels are those that are the truth somewhere; one more stands for every other prediction.
    """
    truth = [pair.accepted[0].strip() for pair in pairs]
    places = {label: place for place, label in enumerate(sorted(set(truth)))}
    true = np.array([places[label] for label in truth], dtype=int)
    found = np.array([places.get(label.strip(), len(places)) for label in predictions], dtype=int)
    one_hot = np.eye(len(places) + 1)
    return np.concatenate([(true == found)[:, None], one_hot[found], one_hot[true]], axis=1)


def matthews_percent(means: np.ndarray) -> np.ndarray:
    """Matthews' correlation, multi-class (Gorodkin 2004, R_K), of the means of `label_table`; 0 where undefined.

    With shares p of predicted and t of true labels and accuracy a:
    (a - sum p t) / sqrt((1 - sum p^2)(1 - sum t^2)).
    """
    labels = (means.shape[-1] - 1) // 2
    right, found, true = means[..., 0], means[..., 1 : 1 + labels], means[..., 1 + labels :]
    product = (1 - (found**2).sum(-1)) * (1 - (true**2).sum(-1))
    defined = product > 1e-12  # below lies rounding: one label predicted, or one label true
    return np.where(defined, 100 * (right - (found * true).sum(-1)) / np.sqrt(np.where(defined, product, 1.0)), 0.0)


exact_match = Metric("exact_match", best(same_answer))
token_f1 = Metric("token_f1", best(token_overlap))
accuracy = Metric("accuracy", best(same_label))
matthews = Metric("matthews", label_table, OfMeans(matthews_percent))
rouge1 = Metric("rouge1", best(lambda prediction, answer: rouge.rouge_n(prediction, answer, 1)))
rouge2 = Metric("rouge2", best(lambda prediction, answer: rouge.rouge_n(prediction, answer, 2)))
rougeL = Metric("rougeL", best(rouge.rouge_l))  # noqa: N816, the metric's own name
rougeLsum = Metric("rougeLsum", best(rouge.rouge_l_sum))  # noqa: N816
