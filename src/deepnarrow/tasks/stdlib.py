"""Two small tasks from Python's own library, for demonstrations and tests: real prose found on any machine.

They show the whole way from a corpus to a score without a network. Scores depend on the Python whose library is read,
which every origin names, and compare with nothing published.

Both split the library by a hash of an item's qualified name: an item added or removed moves no other, and what is
tested in one task is not trained on in the other. A text that occurs twice is kept once, before splitting.
"""

import platform
from collections.abc import Callable, Iterator

from deepnarrow.errors import UserError
from deepnarrow.tasks import Pair, Row, Source, Task, add, text
from deepnarrow.tasks.baselines import COMMONEST_LABEL, FIRST_SENTENCE
from deepnarrow.tasks.metrics import accuracy, rouge1, rouge2, rougeL
from deepnarrow.text import builtin
from deepnarrow.text.builtin import SHARES, digest, split_of

PACKAGES = {  # area -> the top-level packages whose prose belongs to it
    "concurrency": "asyncio concurrent contextvars multiprocessing queue sched selectors subprocess threading",
    "files": """bz2 filecmp fileinput fnmatch genericpath glob gzip io linecache lzma ntpath os pathlib posixpath _pyio
        shutil stat tarfile tempfile zipapp zipfile""",
    "gui": "curses idlelib tkinter turtle",
    "mail": "base64 email imaplib mailbox mailcap mimetypes nntplib poplib quopri smtpd smtplib",
    "network": """asynchat asyncore cgi cgitb ftplib http ipaddress netrc socket socketserver ssl telnetlib urllib
        webbrowser wsgiref xmlrpc""",
    "numbers": """bisect calendar colorsys datetime decimal fractions heapq numbers _pydecimal _pydatetime random
        statistics _strptime zoneinfo""",
    "testing": "bdb cProfile doctest pdb profile pstats timeit trace traceback tracemalloc unittest warnings",
    "text": """codecs configparser csv difflib gettext html json locale _markupbase plistlib pprint re reprlib shlex
        string textwrap tomllib xml""",
}
AREAS = tuple(PACKAGES)
AREA_OF = {package: area for area, packages in PACKAGES.items() for package in packages.split()}
MOST = 400  # items of an area: the large ones are cut to this, so that no label is the obvious guess
LEAST_WORDS, MOST_WORDS = 8, 80  # of a text to be sorted into an area


def topic_pair(row: Row) -> Pair:
    """
    >>> topic_pair({"text": "Wait until a worker thread has ended.", "label": "concurrency"})
    Pair(inputs='topic: Wait until a worker thread has ended.', accepted=['concurrency'])
    """
    label = text(row, "label")
    if label not in AREAS:
        raise UserError(f"label {label!r} is not one of {', '.join(AREAS)}")
    return Pair(f"topic: {text(row, 'text')}", [label])


def summary_pair(row: Row) -> Pair:
    """
    >>> summary_pair({"summary": "Remove common indentation.", "body": "Lines of white space alone do not count."})
    Pair(inputs='summarize: Lines of white space alone do not count.', accepted=['Remove common indentation.'])
    """
    return Pair(f"summarize: {text(row, 'body')}", [text(row, "summary")])


def topics() -> Iterator[tuple[str, Row]]:
    """Qualified name and row of each item: docstrings and comments of the areas, as many of each as of the others."""
    found: dict[str, dict[str, str]] = {area: {} for area in AREAS}
    seen = set()
    for prose, name in sorted(builtin.documents(), key=lambda document: digest(document[1])):
        words = prose.split()[:MOST_WORDS]
        area = AREA_OF.get(name.partition(":")[0].partition(".")[0])
        key = " ".join(words).lower()
        if area and len(words) >= LEAST_WORDS and key not in seen and len(found[area]) < MOST:
            seen.add(key)
            found[area][name] = " ".join(words)
    for area, texts in found.items():
        for name, prose in texts.items():
            yield name, {"name": name, "text": prose, "label": area}


def summaries() -> Iterator[tuple[str, Row]]:
    """Qualified name and row of each docstring with a summary line and a body; none has either twice."""
    for record in builtin.records():
        name = f"{record['module']}:{record['name']}".rstrip(":")
        yield name, {"name": name, "summary": record["summary"], "body": " ".join(record["body"].split())}


def splits(items: Callable[[], Iterator[tuple[str, Row]]]) -> dict[str, Source]:
    def source(split: str) -> Source:
        def rows() -> Iterator[Row]:
            chosen = ((digest(name), row) for name, row in items() if split_of(name) == split)
            yield from (row for _, row in sorted(chosen, key=lambda pair: pair[0]))  # mixed, so that a limit is fair

        spec = f"builtin:python[{split}]"
        return Source(spec, rows, lambda: f"{spec} of Python {platform.python_version()}")

    return {split: source(split) for split in SHARES}


add(
    Task(
        name="stdlib_topic",
        version=1,
        about="Which part of Python's library a docstring or comment speaks of: eight areas of equal size",
        sources=splits(topics),
        to_pair=topic_pair,
        metrics=(accuracy,),
        baseline=COMMONEST_LABEL,
        input_tokens=128,
        target_tokens=8,
        labels=AREAS,
    )
)

add(
    Task(
        name="stdlib_summary",
        version=1,
        about="The summary line of a docstring in Python's library, from the rest of the docstring",
        sources=splits(summaries),
        to_pair=summary_pair,
        metrics=(rouge1, rouge2, rougeL),
        baseline=FIRST_SENTENCE,
        input_tokens=256,
        target_tokens=48,
    )
)
