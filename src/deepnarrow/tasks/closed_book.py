"""Closed-book question answering: the question in, the answer out of the weights alone (arXiv:2002.08910).

Prefixes, and which answer is trained on (the first), are those of that paper's code. So are the splits from the hub:
its `train` is cut in two, and its last split is kept as `test`, because a checkpoint must not be chosen on the items
that judge it. The whole of `train`, on which the checkpoints named -ssm-nq were trained, is "train+validation".
"""

from collections.abc import Mapping

from deepnarrow.tasks import Pair, Row, Task, add, answers, hub, text
from deepnarrow.tasks.baselines import COMMONEST_ANSWER
from deepnarrow.tasks.metrics import exact_match, token_f1, trivia_exact_match, trivia_f1


def nq_open_pair(row: Row) -> Pair | None:
    """
    >>> nq_open_pair({"question": "who wrote the first program", "answers": ["Ada Lovelace", "Lovelace"]})
    Pair(inputs='nq question: who wrote the first program', accepted=['Ada Lovelace', 'Lovelace'])
    """
    return asked("nq question", row)


def web_questions_pair(row: Row) -> Pair | None:
    """
    >>> web_questions_pair({"question": "where was ada born?", "answers": ["London"]})
    Pair(inputs='wq question: where was ada born?', accepted=['London'])
    """
    return asked("wq question", row)


def trivia_qa_pair(row: Row) -> Pair | None:
    """The answer's value is trained on; in judging, every alias will do.

    >>> trivia_qa_pair({"question": "Who wrote it?", "answer": {"value": "Ada", "aliases": ["Ada", "A. Lovelace"]}})
    Pair(inputs='trivia_qa question: Who wrote it?', accepted=['Ada', 'A. Lovelace'])
    """
    answer = row.get("answer")
    if isinstance(answer, Mapping) and "aliases" in answer:
        if answer.get("value") == UNKNOWN:
            return None
        value = [answer["value"]] if answer.get("value") else []
        row = row | {"answer": None, "answers": [*value, *answer["aliases"]]}
    return asked("trivia_qa question", row)


def asked(prefix: str, row: Row) -> Pair | None:
    accepted = list(dict.fromkeys(answers(row, "answers", "answer")))
    return Pair(f"{prefix}: {text(row, 'question')}", accepted) if accepted else None


NQ_OPEN = "google-research-datasets/nq_open"
WEB_QUESTIONS = "stanfordnlp/web_questions"
TRIVIA_QA, NO_CONTEXT = "mandarjoshi/trivia_qa", "unfiltered.nocontext"
UNKNOWN = "<unk>"  # what the hub has for an answer in TriviaQA's test part

add(
    Task(
        name="nq_open",
        version=1,
        about="Natural Questions without the passage: short factual questions people typed into a search engine",
        paper="arXiv:1906.00300",
        sources={
            "train": hub(NQ_OPEN, "train", stop=79_168),
            "validation": hub(NQ_OPEN, "train", start=79_168),
            "test": hub(NQ_OPEN, "validation"),
        },
        to_pair=nq_open_pair,
        metrics=(exact_match, token_f1),
        baseline=COMMONEST_ANSWER,
        input_tokens=64,
        target_tokens=32,
    )
)

add(
    Task(
        name="web_questions",
        version=1,
        about="WebQuestions without Freebase: questions whose answers are entities",
        paper="ACL:D13-1160",
        sources={
            "train": hub(WEB_QUESTIONS, "train", stop=3_417),
            "validation": hub(WEB_QUESTIONS, "train", start=3_417),
            "test": hub(WEB_QUESTIONS, "test"),
        },
        to_pair=web_questions_pair,
        metrics=(exact_match, token_f1),
        baseline=COMMONEST_ANSWER,
        input_tokens=64,
        target_tokens=32,
    )
)

add(
    Task(
        name="trivia_qa",
        version=1,
        about="TriviaQA without evidence (unfiltered): questions of quiz leagues; the official development set is test",
        paper="arXiv:1705.03551",
        sources={
            "train": hub(TRIVIA_QA, "train", config=NO_CONTEXT, stop=78_785),
            "validation": hub(TRIVIA_QA, "train", config=NO_CONTEXT, start=78_785),
            "test": hub(TRIVIA_QA, "validation", config=NO_CONTEXT),
        },
        to_pair=trivia_qa_pair,
        metrics=(trivia_exact_match, trivia_f1),
        baseline=COMMONEST_ANSWER,
        input_tokens=128,
        target_tokens=32,
    )
)
