"""What a cleaning rule is: a name, where it was published, and a function of one line or of one page."""

from collections.abc import Callable
from enum import Enum
from typing import Literal, NamedTuple


class Drop(Enum):
    """What a rule says instead of a text."""

    LINE = "lines"
    PAGE = "documents"


Verdict = str | Drop


class Rule(NamedTuple):
    """`judge` returns the text, changed or not, or what to drop. A rule of a page sees its lines joined by newlines."""

    name: str
    source: str  # paper and section, or the file of the published code
    unit: Literal["line", "page"]
    judge: Callable[[str], Verdict]
