"""Topics: what a text is about. T5 knew no such task; the wording is in the manner of its GLUE tasks."""

from deepnarrow.tasks import Pair, Row, Task, add, hub, label, text
from deepnarrow.tasks.baselines import COMMONEST_LABEL
from deepnarrow.tasks.metrics import accuracy, macro_f1

NEWS = ("World", "Sports", "Business", "Sci/Tech")


def ag_news_pair(row: Row) -> Pair | None:
    """
    >>> ag_news_pair({"text": "Oil prices fell on Monday.", "label": 2})
    Pair(inputs='ag_news text: Oil prices fell on Monday.', accepted=['Business'])
    """
    answer = label(row, NEWS, "label")
    return Pair(f"ag_news text: {text(row, 'text').strip()}", [answer]) if answer else None


add(
    Task(
        name="ag_news",
        version=1,
        about="AG News: which of four desks a news item belongs to",
        paper="arXiv:1509.01626",
        sources={
            "train": hub("fancyzhx/ag_news", "train", stop=108_000),  # of 120,000; the data set has no held-out part
            "validation": hub("fancyzhx/ag_news", "train", start=108_000),
            "test": hub("fancyzhx/ag_news", "test"),
        },
        to_pair=ag_news_pair,
        metrics=(accuracy, macro_f1),
        baseline=COMMONEST_LABEL,
        input_tokens=192,
        target_tokens=8,
        labels=NEWS,
    )
)
