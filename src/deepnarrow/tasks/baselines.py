"""Answers that need no learning. A model's score means little until it is laid beside one of these.

A baseline sees the inputs, and, where it answers with the commonest answer, the accepted answers of the very items
that are scored: it is thus the best that any constant answer of its kind could do, which is the bar to clear.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class Baseline(NamedTuple):
    """`answers(inputs, accepted)` gives one text per item; `name` is what the table prints."""

    name: str
    answers: Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]


def commonest(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The answer that is accepted most often, for every item; of equals, the first in the alphabet.

    >>> commonest(["q1", "q2", "q3"], [["b"], ["a", "b"], ["c"]])
    ['b', 'b', 'b']
    """
    counts = Counter(answer for answers in accepted for answer in dict.fromkeys(answers))
    top = min(counts, key=lambda answer: (-counts[answer], answer), default="")
    return [top] * len(inputs)


def first_sentence(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The first sentence of the text after the prefix.

    >>> first_sentence(["summarize: It rained. We stayed in."], [[""]])
    ['It rained.']
    """
    return [split(text.partition(":")[2])[0] for text in inputs]


def closest_sentence(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The context's sentence that shares most words with the question; of equals, the first.

    >>> closest_sentence(["question: who wrote it ? context: It is old . Ada wrote it ."], [["Ada"]])
    ['Ada wrote it .']
    """
    found = []
    for text in inputs:
        question, _, context = text.partition(" context: ")
        asked = set(question.lower().split())
        found.append(max(split(context), key=lambda sentence: len(asked & set(sentence.lower().split()))))
    return found


def split(text: str) -> list[str]:
    """Sentences, at least one: a full stop, question or exclamation mark before a space ends one."""
    return SENTENCE_END.split(" ".join(text.split()))


COMMONEST_LABEL = Baseline("commonest label", commonest)
COMMONEST_ANSWER = Baseline("commonest answer", commonest)
FIRST_SENTENCE = Baseline("first sentence", first_sentence)
CLOSEST_SENTENCE = Baseline("closest sentence", closest_sentence)
