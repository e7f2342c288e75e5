"""Metrics: from predictions and accepted answers to one row of numbers per item, and from those rows to a score.

The rows are kept because intervals need them: a score alone cannot say how far to trust it. Scores run from 0 to 100
(correlations from -100). Metrics of single answers take the best over the accepted ones; metrics of a whole set
(Matthews, F1 over labels, correlations) hold the first for the truth.

Where T5 scored in its own way, so do we, and the docstring says how (Raffel et al. 2020, arXiv:1910.10683, section
2.3; its evaluation code says the rest).
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from string import punctuation

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.tasks import rouge, translation
from deepnarrow.tasks.correlation import RANKS, moments, pearson_percent
from deepnarrow.tasks.pair import Pair
from deepnarrow.tasks.resampling import MEAN, Combine, OfMeans, OfSums

Items = Callable[[Sequence[str], Sequence[Pair]], np.ndarray]

DROPPED = str.maketrans("", "", punctuation)
SPACED = str.maketrans(
    dict.fromkeys(punctuation + "\u2018\u2019\u00b4`_", " ")
)  # curly quotes and the acute accent too
ARTICLES = re.compile(r"\b(a|an|the)\b")
DETERMINERS = frozenset(
    {"a", "an", "each", "every", "few", "her", "his", "many", "much", "my", "our", "some"}
    | {"that", "the", "their", "these", "this", "those", "which", "whose", "your"}
)
NO_NUMBER = -1.0  # what T5 reads where a model wrote no number


@dataclass(frozen=True)
class Metric:
    """`items(predictions, pairs)` gives [n] or [n, k], one row per item; `combine` makes the score of the rows.

    With `grouped`, a row stands for a group of pairs (`Pair.group`), in the order of their first pairs (`groups`).
    """

    name: str
    items: Items
    combine: Combine = MEAN
    grouped: bool = False
    signed: Callable[[Sequence[Pair]], str] | None = None

    def score(self, predictions: Sequence[str], accepted: Sequence[Pair | Sequence[str]]) -> float:
        """Items and score in one go, for a caller who needs no interval; bare lists of answers will do."""
        pairs = [one if isinstance(one, Pair) else Pair("", list(one)) for one in accepted]
        return float(self.combine(self.items(predictions, pairs)))

    def signature(self, pairs: Sequence[Pair]) -> str | None:
        """What a reader must know to compare the score with others, in sacrebleu's form; None where the name says it.

        It is to be recorded beside the score.
        """
        return self.signed(pairs) if self.signed else None


def groups(pairs: Sequence[Pair]) -> np.ndarray:
    """[n], the number of each pair's group, counted as they first appear; a pair without a group is one by itself.

    >>> groups([Pair("", [], "x"), Pair("", [], "y"), Pair("", [], "x"), Pair("", [])]).tolist()
    [0, 1, 0, 2]
    """
    places: dict[object, int] = {}
    names = ((pair.group,) if pair.group is not None else place for place, pair in enumerate(pairs))
    return np.array([places.setdefault(name, len(places)) for name in names], dtype=int)


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


def trivia_normalised(text: str) -> str:
    """TriviaQA's normal form (Joshi et al. 2017, arXiv:1705.03551): as SQuAD's, but punctuation becomes a space.

    Curly single quotes, the acute accent, the backtick and the underscore count as punctuation.

    >>> trivia_normalised("The  Jay-Z\N{RIGHT SINGLE QUOTATION MARK}s album")
    'jay z s album'
    """
    return " ".join(ARTICLES.sub(" ", text.lower().translate(SPACED)).split())


def trivia_same_answer(prediction: str, answer: str) -> float:
    return float(trivia_normalised(prediction) == trivia_normalised(answer))


def trivia_token_overlap(prediction: str, answer: str) -> float:
    """Token F1 between the normal forms. These hold nothing that SQuAD's form would change."""
    return token_overlap(trivia_normalised(prediction), trivia_normalised(answer))


def same_referent(prediction: str, noun: str) -> float:
    """Whether a model names the noun that a pronoun stands for, as T5 judged Winograd's schemas.

    Determiners and capitals aside, one's words must all be among the other's: "bunny" is "the fuzzy bunny". With an
    apostrophe on one side only they differ: "Bob" is not "Bob's hat".

    >>> same_referent("Bunny", "the fuzzy bunny"), same_referent("Bob", "Bob's hat"), same_referent("", "Bob")
    (1.0, 0.0, 0.0)
    """
    found, wanted = ({*text.lower().split()} - DETERMINERS for text in (prediction, noun))
    if ("'" in prediction) != ("'" in noun) or bool(found) != bool(wanted):
        return 0.0
    return float(found <= wanted or wanted <= found)


def referents(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """[n], the items of `same_referent`; naming nothing is wrong, even where the noun asked about is the wrong one.

    There T5 counted it right, so that a model that writes nothing scored the share of wrong nouns.
    """
    named = np.array([bool({*text.lower().split()} - DETERMINERS) for text in predictions], dtype=float)
    return best(same_referent)(predictions, pairs) * named


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


def class_table(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """Rows [right one-hot, predicted one-hot, true one-hot], [n, 3c]; predictions beside the true labels have no 1."""
    table = label_table(predictions, pairs)
    right, labels = table[:, :1], table.shape[1] // 2
    found, true = table[:, 1:labels], table[:, 1 + labels : -1]
    return np.concatenate([right * true, found, true], axis=1)


def f1_percent(means: np.ndarray) -> np.ndarray:
    """F1 of the means of columns [right positives, predicted positives, true positives]; 0 where there is none."""
    both = means[..., 1] + means[..., 2]
    return 100 * 2 * means[..., 0] / np.where(both > 0, both, 1.0)


def macro_f1_percent(means: np.ndarray) -> np.ndarray:
    """The plain mean of the labels' F1, of the means of `class_table`.

    A resample may lose a rare label; a label neither true nor predicted there does not count, or the bootstrap would
    sit too low.
    """
    right, found, true = np.split(means, 3, axis=-1)
    there = found + true > 0
    each = 100 * 2 * right / np.where(there, found + true, 1.0)
    return each.sum(-1) / np.maximum(there.sum(-1), 1)


def positive_table(positive: str) -> Items:
    """Rows [right positive, predicted positive, truly positive], [n, 3].

    As T5 has it, a prediction that is no label at all is the wrong one of the two, whichever that is.
    """

    def items(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
        truth = [pair.accepted[0].strip() for pair in pairs]
        labels = {positive, *truth}
        true = np.array([label == positive for label in truth], dtype=bool)
        found = np.array(
            [
                text == positive if (text := one.strip()) in labels else label != positive
                for one, label in zip(predictions, truth, strict=True)
            ],
            dtype=bool,
        )
        return np.stack([true & found, found, true], axis=1).astype(float)

    return items


def binary_f1(positive: str, name: str = "f1") -> Metric:
    """F1 of one label against the rest, as MRPC and QQP are judged (the positive label is the paraphrase).

    >>> binary_f1("yes").score(["yes", "yes", "no"], [["yes"], ["no"], ["no"]]).__round__(1)
    66.7
    """
    return Metric(name, positive_table(positive), OfMeans(f1_percent))


def summed_by_group(items: Items) -> Items:
    """The rows of a group added up: answers to one question stand or fall together when items are resampled."""

    def summed(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
        rows, places = items(predictions, pairs), groups(pairs)
        found = np.zeros((places.max(initial=-1) + 1, rows.shape[1]))
        np.add.at(found, places, rows)
        return found

    return summed


def all_of_group(items: Items) -> Items:
    """1 for a group whose every item is 1, else 0."""

    def all_right(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
        rows, places = items(predictions, pairs), groups(pairs)
        found = np.ones(places.max(initial=-1) + 1)
        np.minimum.at(found, places, rows)
        return found

    return all_right


def number(text: str) -> float:
    """The number a model wrote, or -1 as in T5. Numbers beyond a million count as none: one would drown all others.

    >>> number("3.8"), number("quite similar"), number("nan")
    (3.8, -1.0, -1.0)
    """
    try:
        value = float(text)
    except ValueError:
        return NO_NUMBER
    return value if isfinite(value) and abs(value) <= 1e6 else NO_NUMBER


def numbers(predictions: Sequence[str], pairs: Sequence[Pair]) -> np.ndarray:
    """[n, 2], the number predicted and the true one."""
    return np.array(
        [[number(text), true_number(pair)] for text, pair in zip(predictions, pairs, strict=True)], dtype=float
    ).reshape(-1, 2)


def true_number(pair: Pair) -> float:
    try:
        return float(pair.accepted[0])
    except (ValueError, IndexError):
        raise UserError(f"a correlation needs numbers for answers, not {pair.accepted[:1]}") from None


exact_match = Metric("exact_match", best(same_answer))
token_f1 = Metric("token_f1", best(token_overlap))
accuracy = Metric("accuracy", best(same_label))
trivia_exact_match = Metric("trivia_exact_match", best(trivia_same_answer))
trivia_f1 = Metric("trivia_f1", best(trivia_token_overlap))
wsc_accuracy = Metric("wsc_accuracy", referents)
matthews = Metric("matthews", label_table, OfMeans(matthews_percent))
macro_f1 = Metric("macro_f1", class_table, OfMeans(macro_f1_percent))
multirc_f1 = Metric("multirc_f1", summed_by_group(positive_table("True")), OfMeans(f1_percent), grouped=True)
multirc_exact_match = Metric("multirc_exact_match", all_of_group(best(same_label)), grouped=True)
pearson = Metric("pearson", lambda predictions, pairs: moments(numbers(predictions, pairs)), OfMeans(pearson_percent))
spearman = Metric("spearman", numbers, RANKS)
bleu = Metric(
    "bleu",
    lambda predictions, pairs: translation.bleu_rows(predictions, pairs, "intl"),
    OfSums(translation.bleu_percent),
    signed=lambda pairs: translation.bleu_signature(pairs, "intl"),
)
bleu_13a = Metric(
    "bleu_13a",
    lambda predictions, pairs: translation.bleu_rows(predictions, pairs, "13a"),
    OfSums(translation.bleu_percent),
    signed=lambda pairs: translation.bleu_signature(pairs, "13a"),
)
chrf = Metric("chrf", translation.chrf_rows, OfSums(translation.chrf_percent), signed=translation.chrf_signature)
rouge1 = Metric("rouge1", best(lambda prediction, answer: rouge.rouge_n(prediction, answer, 1)))
rouge2 = Metric("rouge2", best(lambda prediction, answer: rouge.rouge_n(prediction, answer, 2)))
rougeL = Metric("rougeL", best(rouge.rouge_l))  # noqa: N816, the metric's own name
rougeLsum = Metric("rougeLsum", best(rouge.rouge_l_sum))  # noqa: N816
