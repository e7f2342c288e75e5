"""Summarisation: the document in, its summary out.

"summarize: " is T5's prefix for CNN/DailyMail (arXiv:1910.10683, appendix D); the other sets, which it did not
know, are asked for in the same way. Scores are without stemming, as T5's (see rouge.py). A beam of 4 is T5's.
"""

from collections.abc import Sequence

from deepnarrow.tasks import Pair, Row, Task, add, answers, column, hub, text
from deepnarrow.tasks.baselines import FIRST_SENTENCE, FIRST_THREE, FIRST_THREE_LINES
from deepnarrow.tasks.metrics import rouge1, rouge2, rougeL, rougeLsum
from deepnarrow.text.sources import PARQUET_COPY

DIALOGUE = ("document", "dialogue")


def xsum_pair(row: Row) -> Pair | None:
    """
    >>> xsum_pair({"document": "It rained all day.\\nRoads closed.", "summary": "Rain has closed roads."})
    Pair(inputs='summarize: It rained all day.\\nRoads closed.', accepted=['Rain has closed roads.'])
    """
    return summarized(text(row, "document"), answers(row, "references", "summary"))


def cnn_dailymail_pair(row: Row) -> Pair | None:
    """
    >>> cnn_dailymail_pair({"article": "(CNN)It rained all day.", "highlights": "It rained .\\nRoads closed ."})
    Pair(inputs='summarize: (CNN)It rained all day.', accepted=['It rained .\\nRoads closed .'])
    """
    return summarized(text(row, "article", "document"), answers(row, "highlights", "references", "summary"))


def samsum_pair(row: Row) -> Pair | None:
    """
    >>> samsum_pair({"dialogue": "Ann: Lunch?\\r\\nBob: At one.", "summary": "Ann and Bob will have lunch at one."})
    Pair(inputs='summarize: Ann: Lunch?\\nBob: At one.', accepted=['Ann and Bob will have lunch at one.'])
    """
    return summarized(text(row, *DIALOGUE), answers(row, "references", "summary"))


def dialogsum_pair(row: Row) -> Pair | None:
    """
    >>> dialogsum_pair({"dialogue": "#Person1#: Lunch?\\n#Person2#: At one.", "summary": "They have lunch at one."})
    Pair(inputs='summarize: #Person1#: Lunch?\\n#Person2#: At one.', accepted=['They have lunch at one.'])
    """
    return summarized(text(row, *DIALOGUE), answers(row, "references", "summary"))


def scitldr_pair(row: Row) -> Pair | None:
    """The hub cuts an abstract into sentences; they are joined by spaces.

    >>> scitldr_pair({"source": ["We test.", "It works."], "target": ["A test.", "It works, we find."]})
    Pair(inputs='summarize: We test. It works.', accepted=['A test.', 'It works, we find.'])
    """
    document = column(row, "document", "source")
    sentences = [document] if isinstance(document, str) else answers(row, "document", "source")
    return summarized(" ".join(sentences), answers(row, "references", "summary", "target"))


def summarized(document: str, accepted: Sequence[str]) -> Pair | None:
    inputs = document.replace("\r\n", "\n").strip()
    return Pair(f"summarize: {inputs}", list(accepted)) if inputs and accepted else None


CNN_DAILYMAIL = "abisee/cnn_dailymail"
XSUM, SCITLDR = (f"{name}@{PARQUET_COPY}" for name in ("EdinburghNLP/xsum", "allenai/scitldr"))
SPLITS = ("train", "validation", "test")

add(
    Task(
        name="cnn_dailymail",
        version=1,
        about="CNN/DailyMail: a news article in the points printed above it; names kept (version 3.0.0)",
        paper="arXiv:1704.04368",
        sources={split: hub(CNN_DAILYMAIL, split, config="3.0.0") for split in SPLITS},
        to_pair=cnn_dailymail_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_THREE,
        input_tokens=512,
        target_tokens=128,
        beam=4,
    )
)

add(
    Task(
        name="xsum",
        version=1,
        about="XSum: a BBC article in one sentence",
        paper="arXiv:1808.08745",
        sources={split: hub(XSUM, split, config="default") for split in SPLITS},
        to_pair=xsum_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_SENTENCE,
        input_tokens=512,
        target_tokens=64,
        beam=4,
    )
)

add(
    Task(
        name="samsum",
        version=1,
        about="SAMSum: a chat in a few sentences",
        paper="arXiv:1911.12237",
        sources={split: hub("knkarthick/samsum", split) for split in SPLITS},
        to_pair=samsum_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_THREE_LINES,
        input_tokens=512,
        target_tokens=96,
        beam=4,
    )
)

add(
    Task(
        name="dialogsum",
        version=1,
        about="DialogSum: a spoken dialogue in a few sentences; three references for each test dialogue",
        paper="arXiv:2105.06762",
        sources={split: hub("knkarthick/dialogsum", split) for split in SPLITS},
        to_pair=dialogsum_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_THREE_LINES,
        input_tokens=512,
        target_tokens=96,
        beam=4,
    )
)

add(
    Task(
        name="scitldr",
        version=1,
        about="SciTLDR: a paper's abstract in one sentence; several references",
        paper="arXiv:2004.15011",
        sources={split: hub(SCITLDR, split, config="Abstract") for split in SPLITS},
        to_pair=scitldr_pair,
        metrics=(rouge1, rouge2, rougeL, rougeLsum),
        baseline=FIRST_SENTENCE,
        input_tokens=512,
        target_tokens=64,
        beam=4,
    )
)
