"""GLUE (arXiv:1804.07461), worded as T5 worded it: the task's name, the fields in the order of the alphabet, each with
its own name before it, and for an answer the label as words.

The hub's test splits carry no labels and are not offered. Files may name a field as the hub does or, where both are
given, as the tasks of this folder with the same content do ("text" for "sentence", "premise" for RTE's "sentence1").
"""

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Source, Task, add, column, hub, label, text
from deepnarrow.tasks.baselines import COMMONEST_LABEL, SHARED_WORDS, always
from deepnarrow.tasks.metrics import accuracy, binary_f1, matthews, pearson, spearman

SENTIMENT = ("negative", "positive")
ACCEPTABILITY = ("unacceptable", "acceptable")
EQUIVALENCE = ("not_equivalent", "equivalent")
DUPLICATION = ("not_duplicate", "duplicate")
INFERENCE = ("entailment", "neutral", "contradiction")
ENTAILMENT = ("entailment", "not_entailment")
SIMILARITY = tuple(f"{fifths / 5:.1f}" for fifths in range(26))  # "0.0", "0.2", ..., "5.0"


def cola_pair(row: Row) -> Pair | None:
    """
    >>> cola_pair({"sentence": "She is eat apples.", "label": 0})
    Pair(inputs='cola sentence: She is eat apples.', accepted=['unacceptable'])
    """
    return worded("cola", row, ACCEPTABILITY, ("sentence", "text"))


def sst2_pair(row: Row) -> Pair | None:
    """
    >>> sst2_pair({"sentence": "a charming film", "label": 1})
    Pair(inputs='sst2 sentence: a charming film', accepted=['positive'])
    >>> sst2_pair({"text": "a dull film", "label": "negative"})
    Pair(inputs='sst2 sentence: a dull film', accepted=['negative'])
    """
    return worded("sst2", row, SENTIMENT, ("sentence", "text"))


def mrpc_pair(row: Row) -> Pair | None:
    """
    >>> mrpc_pair({"sentence1": "He won.", "sentence2": "He lost.", "label": 0})
    Pair(inputs='mrpc sentence1: He won. sentence2: He lost.', accepted=['not_equivalent'])
    """
    return worded("mrpc", row, EQUIVALENCE, ("sentence1",), ("sentence2",))


def stsb_pair(row: Row) -> Pair | None:
    """The similarity, 0 to 5, goes to the nearest fifth, as in T5; its own evaluation too compared with that.

    >>> stsb_pair({"sentence1": "A dog runs.", "sentence2": "A dog is running.", "label": 4.75})
    Pair(inputs='stsb sentence1: A dog runs. sentence2: A dog is running.', accepted=['4.8'])
    """
    score = similarity(column(row, "label", "score"))
    inputs = f"stsb sentence1: {text(row, 'sentence1').strip()} sentence2: {text(row, 'sentence2').strip()}"
    return Pair(inputs, [score]) if score else None


def qqp_pair(row: Row) -> Pair | None:
    """
    >>> qqp_pair({"question1": "Why read?", "question2": "Why do we read?", "label": 1})
    Pair(inputs='qqp question1: Why read? question2: Why do we read?', accepted=['duplicate'])
    """
    return worded("qqp", row, DUPLICATION, ("question1",), ("question2",))


def mnli_pair(row: Row) -> Pair | None:
    """
    >>> mnli_pair({"premise": "It rained.", "hypothesis": "It was wet.", "label": 0})
    Pair(inputs='mnli hypothesis: It was wet. premise: It rained.', accepted=['entailment'])
    """
    return worded("mnli", row, INFERENCE, ("hypothesis",), ("premise",))


def qnli_pair(row: Row) -> Pair | None:
    """
    >>> qnli_pair({"question": "Who won?", "sentence": "It rained.", "label": 1})
    Pair(inputs='qnli question: Who won? sentence: It rained.', accepted=['not_entailment'])
    """
    return worded("qnli", row, ENTAILMENT, ("question",), ("sentence",))


def rte_pair(row: Row) -> Pair | None:
    """
    >>> rte_pair({"sentence1": "Ada wrote it.", "sentence2": "It was written.", "label": 0})
    Pair(inputs='rte sentence1: Ada wrote it. sentence2: It was written.', accepted=['entailment'])
    """
    return worded("rte", row, ENTAILMENT, ("sentence1", "premise"), ("sentence2", "hypothesis"))


def wnli_pair(row: Row) -> Pair | None:
    """
    >>> wnli_pair({"sentence1": "The fish ate the worm. It was tasty.", "sentence2": "The fish was tasty.", "label": 0})
    Pair(inputs='wnli sentence1: The fish ate the worm. It was tasty. sentence2: The fish was tasty.', \
accepted=['not_entailment'])
    """
    return worded("wnli", row, ENTAILMENT[::-1], ("sentence1",), ("sentence2",))


def worded(name: str, row: Row, labels: tuple[str, ...], *fields: tuple[str, ...]) -> Pair | None:
    """The pair of a row in T5's wording. A field is the names it may have in the row; the first of them is printed."""
    answer = label(row, labels, "label")
    written = " ".join(f"{names[0]}: {text(row, *names).strip()}" for names in fields)
    return Pair(f"{name} {written}", [answer]) if answer else None


def similarity(value: object) -> str | None:
    """The text of a similarity: the nearest of 0.0, 0.2, ..., 5.0; None for -1, GLUE's "unknown".

    >>> similarity(1.66), similarity("3"), similarity(-1.0)
    ('1.6', '3.0', None)
    """
    try:
        score = float(str(value))
    except ValueError:
        raise UserError(f"a similarity is a number from 0 to 5, not {value!r}") from None
    if score == -1:
        return None
    if not 0 <= score <= 5:
        raise UserError(f"a similarity is a number from 0 to 5, not {value!r}")
    return SIMILARITY[round(score * 5)]


def splits(config: str, validation: str = "validation") -> dict[str, Source]:
    return {
        "train": hub("nyu-mll/glue", "train", config=config),
        "validation": hub("nyu-mll/glue", validation, config=config),
    }


add(
    Task(
        name="cola",
        version=1,
        about="Corpus of Linguistic Acceptability: is a sentence good English",
        paper="arXiv:1805.12471",
        sources=splits("cola"),
        to_pair=cola_pair,
        metrics=(matthews, accuracy),  # 70 % are acceptable, so accuracy alone flatters
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=ACCEPTABILITY,
    )
)

add(
    Task(
        name="sst2",
        version=1,
        about="Stanford Sentiment Treebank: is a film review's sentence positive",
        paper="ACL:D13-1170",
        sources=splits("sst2"),
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
        name="mrpc",
        version=1,
        about="Microsoft Research Paraphrase Corpus: do two sentences of the news say the same",
        paper="ACL:I05-5002",
        sources=splits("mrpc"),
        to_pair=mrpc_pair,
        metrics=(binary_f1("equivalent"), accuracy),
        baseline=COMMONEST_LABEL,
        input_tokens=192,
        target_tokens=8,
        labels=EQUIVALENCE,
    )
)

add(
    Task(
        name="stsb",
        version=1,
        about="Semantic Textual Similarity Benchmark: how alike two sentences are, 0 to 5 in fifths",
        paper="arXiv:1708.00055",
        sources=splits("stsb"),
        to_pair=stsb_pair,
        metrics=(pearson, spearman),
        baseline=SHARED_WORDS,
        input_tokens=192,
        target_tokens=8,
        labels=SIMILARITY,
    )
)

add(
    Task(
        name="qqp",
        version=1,
        about="Quora Question Pairs: do two questions ask the same",
        paper="arXiv:1804.07461",
        sources=splits("qqp"),
        to_pair=qqp_pair,
        metrics=(binary_f1("duplicate"), accuracy),
        baseline=always("duplicate"),
        input_tokens=192,
        target_tokens=8,
        labels=DUPLICATION,
    )
)

for name, validation, where in (
    ("mnli", "validation_matched", "the genres of the training part"),
    ("mnli_mismatched", "validation_mismatched", "genres it was not trained on"),
):
    add(
        Task(
            name=name,
            version=1,
            about=f"MultiNLI: does a text entail, contradict or leave open a sentence; validated on {where}",
            paper="arXiv:1704.05426",
            sources=splits("mnli", validation),
            to_pair=mnli_pair,
            metrics=(accuracy,),
            baseline=COMMONEST_LABEL,
            input_tokens=256,
            target_tokens=8,
            labels=INFERENCE,
        )
    )

add(
    Task(
        name="qnli",
        version=1,
        about="Question NLI: does a sentence of Wikipedia hold the answer to a question (drawn from SQuAD)",
        paper="arXiv:1804.07461",
        sources=splits("qnli"),
        to_pair=qnli_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=256,
        target_tokens=8,
        labels=ENTAILMENT,
    )
)

add(
    Task(
        name="rte",
        version=1,
        about="Recognizing Textual Entailment: does a text entail a sentence; GLUE's wording",
        paper="arXiv:1804.07461",
        sources=splits("rte"),
        to_pair=rte_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=320,
        target_tokens=8,
        labels=ENTAILMENT,
    )
)

add(
    Task(
        name="wnli",
        version=1,
        about="Winograd NLI: is a sentence with its pronoun replaced still true; 635 training rows, odd by design",
        paper="arXiv:1804.07461",
        sources=splits("wnli"),
        to_pair=wnli_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=ENTAILMENT[::-1],
    )
)
