"""Reading: the passage and the question in, the answer out."""

import re
from string import punctuation

from deepnarrow.tasks import Pair, Row, Task, add, answers, hub, text
from deepnarrow.tasks.baselines import CLOSEST_SENTENCE
from deepnarrow.tasks.metrics import exact_match, token_f1

PUNCTUATION = re.compile(f"([{re.escape(punctuation)}])")


def squad_pair(row: Row) -> Pair | None:
    """
    >>> squad_pair({"question": "Who wrote it?", "context": "Ada did.", "answers": {"text": ["Ada", "Ada L."]}})
    Pair(inputs='question: Who wrote it ? context: Ada did .', accepted=['Ada', 'Ada L .'])
    """
    accepted = [spaced(answer) for answer in answers(row, "answers")]
    inputs = f"question: {spaced(text(row, 'question'))} context: {spaced(text(row, 'context'))}"
    return Pair(inputs, accepted) if accepted else None


def spaced(words: str) -> str:
    """Set ASCII punctuation apart, as T5's own preprocessing did.

    >>> spaced("It's 1,000 (about).")
    "It ' s 1 , 000 ( about ) ."
    """
    return " ".join(PUNCTUATION.sub(r" \1 ", words).split())


add(
    Task(
        name="squad",
        version=1,
        about="SQuAD 1.1: the answer is a span of the passage; text and answers set apart as T5 did",
        paper="arXiv:1606.05250",
        sources={
            "train": hub("rajpurkar/squad", "train"),
            "validation": hub("rajpurkar/squad", "validation"),
        },
        to_pair=squad_pair,
        metrics=(exact_match, token_f1),
        baseline=CLOSEST_SENTENCE,
        input_tokens=512,
        target_tokens=32,
    )
)
