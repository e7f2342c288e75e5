"""Summarisation: the document in, its summary out."""

from deepnarrow.tasks import Pair, Row, Task, add, answers, hub, text
from deepnarrow.tasks.baselines import FIRST_SENTENCE
from deepnarrow.tasks.metrics import rouge1, rouge2, rougeL, rougeLsum


def xsum_pair(row: Row) -> Pair | None:
    """
    >>> xsum_pair({"document": "It rained all day.\\nRoads closed.", "summary": "Rain has closed roads."})
    Pair(inputs='summarize: It rained all day.\\nRoads closed.', accepted=['Rain has closed roads.'])
    """
    document, accepted = text(row, "document").strip(), answers(row, "references", "summary")
    return Pair(f"summarize: {document}", accepted) if document and accepted else None


add(
    Task(
        name="xsum",
        version=1,
        about="XSum: a BBC article in one sentence",
        paper="arXiv:1808.08745",
        sources={split: hub("EdinburghNLP/xsum", split) for split in ("train", "validation", "test")},
        to_pair=xsum_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_SENTENCE,
        input_tokens=512,
        target_tokens=64,
    )
)
