"""Sentence classification from GLUE (arXiv:1804.07461), worded as T5 worded it: the label is a word to write.

The hub's test splits carry no labels and are not offered.
"""

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Task, add, column, hub, text
from deepnarrow.tasks.baselines import COMMONEST_LABEL
from deepnarrow.tasks.metrics import accuracy, matthews

SENTIMENT = ("negative", "positive")
ACCEPTABILITY = ("unacceptable", "acceptable")


def sst2_pair(row: Row) -> Pair | None:
    """
    >>> sst2_pair({"sentence": "a charming film", "label": 1})
    Pair(inputs='sst2 sentence: a charming film', accepted=['positive'])
    >>> sst2_pair({"text": "a dull film", "label": "negative"})
    Pair(inputs='sst2 sentence: a dull film', accepted=['negative'])
    """
    return sentence_pair("sst2", row, SENTIMENT)


def cola_pair(row: Row) -> Pair | None:
    """
    >>> cola_pair({"sentence": "She is eat apples.", "label": 0})
    Pair(inputs='cola sentence: She is eat apples.', accepted=['unacceptable'])
    """
    return sentence_pair("cola", row, ACCEPTABILITY)


def sentence_pair(name: str, row: Row, labels: tuple[str, ...]) -> Pair | None:
    label = label_of(column(row, "label"), labels)
    return Pair(f"{name} sentence: {text(row, 'sentence', 'text').strip()}", [label]) if label else None


def label_of(value: object, labels: tuple[str, ...]) -> str | None:
    """The label's word, from the word or its number (a CSV file's numbers are text); -1, GLUE's "unknown", is None.

    >>> label_of("1", SENTIMENT), label_of("Negative", SENTIMENT), label_of(-1, SENTIMENT)
    ('positive', 'negative', None)
    """
    written = str(value).strip().lower()
    if written == "-1":
        return None
    if written in labels:
        return written
    if written.isdecimal() and int(written) < len(labels):
        return labels[int(written)]
    raise UserError(f"label {value!r} is neither a number from 0 to {len(labels) - 1} nor one of {', '.join(labels)}")


add(
    Task(
        name="sst2",
        version=1,
        about="Stanford Sentiment Treebank: is a film review's sentence positive",
        paper="ACL:D13-1170",
        sources={split: hub("nyu-mll/glue", split, config="sst2") for split in ("train", "validation")},
        to_pair=sst2_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=SENTIMENT,
    )
)

add(
    Task(
        name="cola",
        version=1,
        about="Corpus of Linguistic Acceptability: is a sentence good English",
        paper="arXiv:1805.12471",
        sources={split: hub("nyu-mll/glue", split, config="cola") for split in ("train", "validation")},
        to_pair=cola_pair,
        metrics=(matthews, accuracy),  # 70 % are acceptable, so accuracy alone flatters
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=ACCEPTABILITY,
    )
)
