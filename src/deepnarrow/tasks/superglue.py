"""SuperGLUE (arXiv:1905.00537), worded as T5 worded it (Raffel et al. 2020, arXiv:1910.10683, appendix D).

Two tasks are no choice between labels. ReCoRD's answer is an entity to write. WSC is T5's own treatment (section 2.4):
the pronoun stands between stars and the answer is the noun it refers to. A row of WSC asks whether one noun is that
noun; where it is not, nobody has said which one is, so such a pair is negated: it teaches nothing, and in judging, any
other noun is right. The hub's test splits carry no labels and are not offered.
"""

import re
from hashlib import sha256

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Source, Task, add, answers, column, hub, label, text
from deepnarrow.tasks.baselines import COMMONEST_ENTITY, COMMONEST_LABEL, NOBODY, always
from deepnarrow.tasks.glue import ENTAILMENT, worded
from deepnarrow.tasks.metrics import (
    accuracy,
    exact_match,
    macro_f1,
    multirc_exact_match,
    multirc_f1,
    token_f1,
    wsc_accuracy,
)

TRUTH = ("False", "True")
COMMITMENT = ("entailment", "contradiction", "neutral")
CHOICES = ("choice1", "choice2")
HIGHLIGHT = "\n@highlight\n"  # between the points of a ReCoRD passage's summary
SENTENCE_ENDED = re.compile(rf"(?<=[.?!\"']){HIGHLIGHT}")


def boolq_pair(row: Row) -> Pair | None:
    """
    >>> boolq_pair({"passage": "Ada was English.", "question": "was ada english", "label": 1})
    Pair(inputs='boolq passage: Ada was English. question: was ada english', accepted=['True'])
    """
    answer = label(row, TRUTH, "label", "answer")
    inputs = f"boolq passage: {text(row, 'passage').strip()} question: {text(row, 'question').strip()}"
    return Pair(inputs, [answer]) if answer else None


def cb_pair(row: Row) -> Pair | None:
    """
    >>> cb_pair({"premise": "I doubt it rained.", "hypothesis": "it rained", "label": 1})
    Pair(inputs='cb hypothesis: it rained premise: I doubt it rained.', accepted=['contradiction'])
    """
    return worded("cb", row, COMMITMENT, ("hypothesis",), ("premise",))


def copa_pair(row: Row) -> Pair | None:
    """
    >>> copa_pair({"premise": "It fell.", "choice1": "I let go.", "choice2": "I sat.", "question": "cause", "label": 0})
    Pair(inputs='copa choice1: I let go. choice2: I sat. premise: It fell. question: cause', accepted=['choice1'])
    """
    return worded("copa", row, CHOICES, ("choice1",), ("choice2",), ("premise",), ("question",))


def multirc_pair(row: Row) -> Pair | None:
    """One answer to one question; the answers to a question are a group.

    >>> row = {"paragraph": "<b>Sent 1: </b>Ada wrote.<br>", "question": "Who?", "answer": "Ada", "label": 1}
    >>> multirc_pair(row | {"idx": {"paragraph": 0, "question": 3, "answer": 7}})
    Pair(inputs='multirc question: Who? answer: Ada paragraph: Sent 1: Ada wrote.', accepted=['True'], group='0:3')
    """
    answer = label(row, TRUTH, "label")
    question, paragraph = text(row, "question").strip(), text(row, "paragraph", "passage")
    said = f"multirc question: {question} answer: {text(row, 'answer').strip()} paragraph: {paragraph}"
    inputs = re.sub("</?b>", "", said.replace("<br>", " ")).strip()
    place = row.get("idx")
    if isinstance(place, dict) and {"paragraph", "question"} <= place.keys():
        group = f"{place['paragraph']}:{place['question']}"
    else:  # a file without the numbers: the same question about the same paragraph
        group = sha256(f"{question}\n{paragraph}".encode()).hexdigest()[:12]
    return Pair(inputs, [answer], group) if answer else None


def record_pair(row: Row) -> Pair | None:
    """
    >>> passage = "Ada met Charles\\n@highlight\\nThey built it."
    >>> row = {"query": "@placeholder built it", "entities": ["Ada", "Charles"], "passage": passage}
    >>> record_pair(row | {"answers": ["Ada", "Charles"]})
    Pair(inputs='record query: @placeholder built it entities: Ada, Charles passage: Ada met Charles. They built it.', \
accepted=['Ada', 'Charles'])
    """
    accepted = list(dict.fromkeys(answers(row, "answers")))
    passage = SENTENCE_ENDED.sub(" ", text(row, "passage")).replace(HIGHLIGHT, ". ").strip()
    entities = ", ".join(answers(row, "entities"))
    inputs = f"record query: {text(row, 'query').strip()} entities: {entities} passage: {passage}"
    return Pair(inputs, accepted) if accepted else None


def super_glue_rte_pair(row: Row) -> Pair | None:
    """The items of GLUE's RTE in another order, since SuperGLUE names the fields otherwise.

    >>> super_glue_rte_pair({"premise": "Ada wrote it.", "hypothesis": "It was written.", "label": 0})
    Pair(inputs='rte hypothesis: It was written. premise: Ada wrote it.', accepted=['entailment'])
    """
    return worded("rte", row, ENTAILMENT, ("hypothesis", "sentence2"), ("premise", "sentence1"))


def wic_pair(row: Row) -> Pair | None:
    """
    >>> wic_pair({"word": "place", "sentence1": "Do you want to come over to my place later?",
    ...     "sentence2": "A political system with no place for the less prominent groups.", "label": 0}).accepted
    ['False']
    >>> wic_pair({"word": "bed", "sentence1": "A river bed.", "sentence2": "Go to bed!", "label": 0}).inputs
    'wic sentence1: A river bed. sentence2: Go to bed! word: bed'
    """
    return worded("wic", row, TRUTH, ("sentence1",), ("sentence2",), ("word",))


def wsc_pair(row: Row) -> Pair | None:
    """
    >>> row = {"text": "Ada asked Mary if she could come.", "span2_text": "she", "span2_index": 4}
    >>> wsc_pair(row | {"span1_text": "Mary", "label": 1})
    Pair(inputs='wsc: Ada asked Mary if *she* could come.', accepted=['Mary'])
    >>> wsc_pair(row | {"span1_text": "Ada", "label": 0})
    Pair(inputs='wsc: Ada asked Mary if *she* could come.', accepted=['Ada'], negated=True)
    """
    answer = label(row, TRUTH, "label")
    inputs = f"wsc: {starred(text(row, 'text'), text(row, 'span2_text').strip(), column(row, 'span2_index'))}"
    return Pair(inputs, [text(row, "span1_text").strip()], negated=answer == "False") if answer else None


def starred(sentence: str, pronoun: str, place: object) -> str:
    """The sentence with stars about the pronoun that is, or begins nearest to, the word number `place` from 0.

    What follows without a space is set apart, as in T5's own texts. The data set's place is not always the pronoun's.

    >>> starred('"Good for him," he said.', "him", 2), starred("They want to use it , now", "it", "3")
    ('"Good for *him* ," he said.', 'They want to use *it* , now')
    """
    try:
        before = sentence.split(" ")[: int(str(place))]
    except ValueError:
        raise UserError(f"column span2_index must be a number, not {place!r}") from None
    start = len(" ".join(before)) + 1 if before else 0
    found = list(re.finditer(rf"(?<!\w){re.escape(pronoun)}(?!\w)", sentence))
    if not found:
        raise UserError(f"the pronoun {pronoun!r} does not stand in {sentence!r}")
    nearest = min(found, key=lambda match: abs(match.start() - start))
    after = sentence[nearest.end() :].rstrip()
    apart = " " if after and not after[0].isspace() else ""
    return f"{sentence[: nearest.start()]}*{pronoun}*{apart}{after}"


def splits(config: str) -> dict[str, Source]:
    return {split: hub("aps/super_glue", split, config=config) for split in ("train", "validation")}


add(
    Task(
        name="boolq",
        version=1,
        about="BoolQ: a question that people typed, answered yes or no from a passage of Wikipedia",
        paper="arXiv:1905.10044",
        sources=splits("boolq"),
        to_pair=boolq_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=512,
        target_tokens=8,
        labels=TRUTH,
    )
)

add(
    Task(
        name="cb",
        version=1,
        about="CommitmentBank: is the author of a text committed to a clause in it; 250 training rows",
        paper="arXiv:1905.00537",
        sources=splits("cb"),
        to_pair=cb_pair,
        metrics=(macro_f1, accuracy),
        baseline=COMMONEST_LABEL,
        input_tokens=320,
        target_tokens=8,
        labels=COMMITMENT,
    )
)

add(
    Task(
        name="copa",
        version=1,
        about="Choice of Plausible Alternatives: which of two sentences is the cause or the effect; 400 training rows",
        paper="arXiv:1905.00537",
        sources=splits("copa"),
        to_pair=copa_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=CHOICES,
    )
)

add(
    Task(
        name="multirc",
        version=1,
        about="MultiRC: is an answer to a question about a paragraph right; a question may have several right ones",
        paper="ACL:N18-1023",
        sources=splits("multirc"),
        to_pair=multirc_pair,
        metrics=(multirc_f1, multirc_exact_match),
        baseline=always("True"),
        input_tokens=512,
        target_tokens=8,
        labels=TRUTH,
    )
)

add(
    Task(
        name="record",
        version=1,
        about="ReCoRD: which entity of a news text a gap in a sentence stands for; trained on every right one",
        paper="arXiv:1810.12885",
        sources=splits("record"),
        to_pair=record_pair,
        metrics=(token_f1, exact_match),
        baseline=COMMONEST_ENTITY,
        input_tokens=512,
        target_tokens=32,
        every_answer=True,
    )
)

add(
    Task(
        name="super_glue_rte",
        version=1,
        about="Recognizing Textual Entailment in SuperGLUE's wording; the items are those of rte",
        paper="arXiv:1905.00537",
        sources=splits("rte"),
        to_pair=super_glue_rte_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=320,
        target_tokens=8,
        labels=ENTAILMENT,
    )
)

add(
    Task(
        name="wic",
        version=1,
        about="Word in Context: has a word the same sense in two sentences",
        paper="arXiv:1808.09121",
        sources=splits("wic"),
        to_pair=wic_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=TRUTH,
    )
)

add(
    Task(
        name="wsc",
        version=1,
        about="Winograd Schema Challenge as T5 put it: write the noun that a pronoun stands for",
        paper="arXiv:1905.00537",
        sources=splits("wsc.fixed"),
        to_pair=wsc_pair,
        metrics=(wsc_accuracy,),
        baseline=NOBODY,
        input_tokens=128,
        target_tokens=32,
    )
)
