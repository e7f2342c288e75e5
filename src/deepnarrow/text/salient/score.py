"""How well a tagger finds the spans of marked sentences: precision, recall and F1, exact and by overlap.

A file of marked sentences is JSON lines of {"split": ..., "text": ..., "spans": [[words, start, end, kind], ...]} with
byte offsets. Print a tagger's table with

    python -m deepnarrow.text.salient.score FILE [TAGGER] [SPLIT]
"""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.text.salient.spans import Span, Tagger, cut


class Marked(NamedTuple):
    split: str
    text: str
    spans: list[Span]


class Score(NamedTuple):
    """Shares between 0 and 1; `marked` and `found` are counts of spans."""

    precision: float
    recall: float
    f1: float
    marked: int
    found: int


def read(path: Path) -> list[Marked]:
    """Marked sentences of a file; UserError where the words of a mark are not those at its offsets."""
    rows = []
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise UserError(f"cannot read marked sentences from {path}: {error.strerror}") from None
    for number, line in enumerate(lines, 1):
        row = json.loads(line)
        spans = [Span(start, end, kind) for _, start, end, kind in row["spans"]]
        for words, span in zip(row["spans"], spans, strict=True):
            if cut(row["text"], span) != words[0]:
                raise UserError(
                    f"{path}, line {number}: bytes {span.start}-{span.end} are not {words[0]!r}; mend the mark"
                )
        rows.append(Marked(row["split"], row["text"], spans))
    return rows


def score(
    rows: Iterable[Marked], tagger: Tagger, *, which: Callable[[Span], bool] = lambda span: True, partial: bool = False
) -> Score:
    """Compare places, not kinds. A span is right if a marked one has the same place, or (`partial`) overlaps it.

    >>> rows = [Marked("test", "Zola wrote in 1898", [Span(0, 4, "PER"), Span(14, 18, "DATE")])]
    >>> score(rows, lambda text: [Span(0, 4, "LOC"), Span(5, 10, "PER")])
    Score(precision=0.5, recall=0.5, f1=0.5, marked=2, found=2)
    """
    marked = found = right = recalled = 0
    for row in rows:
        truth, guess = list(filter(which, row.spans)), list(filter(which, tagger(row.text)))
        marked, found = marked + len(truth), found + len(guess)
        right += sum(any(agree(one, other, partial) for other in truth) for one in guess)
        recalled += sum(any(agree(one, other, partial) for other in guess) for one in truth)
    precision, recall = right / found if found else 0.0, recalled / marked if marked else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return Score(precision, recall, f1, marked, found)


def agree(one: Span, other: Span, partial: bool) -> bool:
    if partial:
        return one.start < other.end and other.start < one.end
    return one[:2] == other[:2]


def kinds_right(rows: Iterable[Marked], tagger: Tagger) -> float:
    """Of the spans at the right place, the share whose kind is right too."""
    pairs = [
        (one.kind, other.kind)
        for row in rows
        for one in tagger(row.text)
        for other in row.spans
        if agree(one, other, False)
    ]
    return sum(one == other for one, other in pairs) / len(pairs) if pairs else 0.0


def is_date(span: Span) -> bool:
    return span.kind == "DATE"


def is_name(span: Span) -> bool:
    return span.kind != "DATE"


def table(rows: list[Marked], tagger: Tagger) -> str:
    """The scores as a Markdown table, in percent."""
    lines = ["| spans | marked | found | precision | recall | F1 | F1 by overlap |", "|---|--:|--:|--:|--:|--:|--:|"]
    for name, which in (("dates", is_date), ("names", is_name), ("all", lambda span: True)):
        exact, overlap = score(rows, tagger, which=which), score(rows, tagger, which=which, partial=True)
        shares = " | ".join(f"{100 * share:.1f}" for share in (*exact[:3], overlap.f1))
        lines.append(f"| {name} | {exact.marked} | {exact.found} | {shares} |")
    return "\n".join([*lines, "", f"Of the exact spans {100 * kinds_right(rows, tagger):.1f}% have the marked kind."])


def main(arguments: list[str]) -> None:
    from deepnarrow.text.salient.taggers import load

    if not 1 <= len(arguments) <= 3:
        raise UserError("usage: python -m deepnarrow.text.salient.score FILE [TAGGER] [SPLIT]")
    path, name, split = [*arguments, *["builtin", "test"][len(arguments) - 1 :]]
    rows = [row for row in read(Path(path)) if row.split == split]
    if not rows:
        raise UserError(f"{path} has no sentences of the split {split!r}; give one of its own, such as dev or test")
    print(f"{name} on {len(rows)} sentences of {split}\n\n{table(rows, load(name))}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(f"error: {error}")
