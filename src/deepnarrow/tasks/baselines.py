"""Answers that need no learning. A model's score means little until it is laid beside one of these.

A baseline sees the inputs, and, where it answers with the commonest answer, the accepted answers of the very items
that are scored: it is thus the best that any constant answer of its kind could do, which is the bar to clear.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from string import punctuation
from typing import NamedTuple

SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


Answers = Callable[[Sequence[str], Sequence[Sequence[str]]], list[str]]


class Baseline(NamedTuple):
    """`answers(inputs, accepted)` gives one text per item; `name` is what the table prints."""

    name: str
    answers: Answers


def commonest(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The answer that is accepted most often, for every item; of equals, the first in the alphabet.

    >>> commonest(["q1", "q2", "q3"], [["b"], ["a", "b"], ["c"]])
    ['b', 'b', 'b']
    """
    counts = Counter(answer for answers in accepted for answer in dict.fromkeys(answers))
    top = min(counts, key=lambda answer: (-counts[answer], answer), default="")
    return [top] * len(inputs)


def always(answer: str) -> Baseline:
    """One answer whatever is asked: for F1 of one label, where the commonest label may be the other and score 0.

    >>> always("True").answers(["q1", "q2"], [["False"], ["False"]])
    ['True', 'True']
    """
    return Baseline(f"always {answer}", lambda inputs, accepted: [answer] * len(inputs))


def first_sentences(count: int, prefix: str | None = None) -> Answers:
    """The first sentences of the text after the prefix: after what is given, or else after the first colon.

    >>> first_sentences(1)(["summarize: It rained. We stayed in."], [[""]])
    ['It rained.']
    >>> first_sentences(2, prefix="")(["News: it rained. We stayed in. We read."], [[""]])
    ['News: it rained. We stayed in.']
    """

    def answers(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
        texts = [text.partition(":")[2] if prefix is None else text.removeprefix(prefix) for text in inputs]
        return [" ".join(split(text)[:count]) for text in texts]

    return answers


def first_lines(count: int) -> Answers:
    """The first lines after the prefix: of a dialogue, who spoke first and what they said.

    >>> first_lines(2)(["summarize: Ann: Hi!\\nBob: Hi. You?\\nAnn: Fine."], [[""]])
    ['Ann: Hi! Bob: Hi. You?']
    """

    def answers(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
        return [" ".join(text.partition(":")[2].strip().splitlines()[:count]) for text in inputs]

    return answers


def same_text(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The text after the prefix, as it is: names and numbers of a translation are often the source's.

    >>> same_text(["translate English to German: Ada Lovelace"], [[""]])
    ['Ada Lovelace']
    """
    return [text.partition(":")[2].strip() for text in inputs]


def commonest_entity(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The entity that the passage names most often; of equals, the first listed.

    >>> commonest_entity(["record query: @placeholder won entities: Bob, Ada passage: Ada met Bob. Ada won."], [[""]])
    ['Ada']
    """
    found = []
    for text in inputs:
        listed, _, passage = text.partition(" entities: ")[2].partition(" passage: ")
        found.append(max(listed.split(", "), key=passage.count))
    return found


def shared_words(inputs: Sequence[str], accepted: Sequence[Sequence[str]]) -> list[str]:
    """The share of words that two sentences have in common (Dice's coefficient), of 5 and in fifths.

    >>> shared_words(["stsb sentence1: A dog runs. sentence2: A dog is running."], [["4.8"]])
    ['2.8']
    """
    found = []
    for text in inputs:
        first, second = (
            {word.strip(punctuation) for word in sentence.lower().split()}
            for sentence in text.partition(" sentence1: ")[2].split(" sentence2: ", 1)
        )
        found.append(f"{round(25 * 2 * len(first & second) / max(len(first) + len(second), 1)) / 5:.1f}")
    return found


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
COMMONEST_ENTITY = Baseline("commonest entity", commonest_entity)
FIRST_SENTENCE = Baseline("first sentence", first_sentences(1))
FIRST_THREE = Baseline("first three sentences", first_sentences(3))
FIRST_THREE_LINES = Baseline("first three lines", first_lines(3))
CLOSEST_SENTENCE = Baseline("closest sentence", closest_sentence)
SHARED_WORDS = Baseline("shared words", shared_words)
SAME_TEXT = Baseline("same text", same_text)
NOBODY = always("nobody")  # no noun of a Winograd schema: right wherever the noun asked about is the wrong one
