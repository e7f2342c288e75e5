"""Spans of a text by UTF-8 byte offsets: what salient span masking hides.

REALM's annotated Wikipedia, which T5's closed-book models were trained on, gives a span as the byte where it starts,
the byte where it ends and its type (Guu et al. 2020, arXiv:2002.08909, section 3.4; tfds `salient_span_wikipedia`).
Bytes mean the same in every language and library, so offsets here are bytes too; Python's own are characters.

>>> text = "Zoe met Bj\\u00f6rk."
>>> [Span(0, 3, "PER"), *from_characters(text, [(8, 13, "PER")])]
[Span(start=0, end=3, kind='PER'), Span(start=8, end=14, kind='PER')]
>>> cut(text, Span(8, 14, "PER")) == "Bj\\u00f6rk"
True
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple


class Span(NamedTuple):
    start: int  # first byte
    end: int  # the byte behind the last
    kind: str  # "DATE", "PER", "LOC", "ORG", "MISC", or what a tagger calls it


Tagger = Callable[[str], list[Span]]  # the spans of one text, in any order, perhaps overlapping


def cut(text: str, span: Span) -> str:
    """The words of a span. ValueError where an offset lies inside a character or outside the text."""
    return cut_bytes(text.encode("utf-8"), span)


def cut_bytes(data: bytes, span: Span) -> str:
    if not 0 <= span.start <= span.end <= len(data):
        raise ValueError(f"span {span.start}-{span.end} lies outside a text of {len(data)} bytes")
    return data[span.start : span.end].decode("utf-8")


def from_characters(text: str, found: Iterable[tuple[int, int, str]]) -> list[Span]:
    """Spans of (first character, character behind the last, kind).

    One pass over the text however many spans there are.
    """
    spans = [Span(*span) for span in found]
    if text.isascii():
        return spans
    places = sorted({place for span in spans for place in span[:2]})
    bytes_at, total = {}, 0
    for before, place in pairwise([0, *places]):
        total += len(text[before:place].encode("utf-8"))
        bytes_at[place] = total
    return [Span(bytes_at[start], bytes_at[end], kind) for start, end, kind in spans]


def to_characters(text: str, spans: Iterable[Span]) -> list[tuple[int, int, str]]:
    """The reverse of `from_characters`. ValueError where an offset lies inside a character.

    >>> to_characters("\\u00e9t\\u00e9 1921", [Span(6, 10, "DATE")])
    [(4, 8, 'DATE')]
    """
    data, spans = text.encode("utf-8"), list(spans)
    if len(data) == len(text):
        return [(start, end, kind) for start, end, kind in spans]
    places = sorted({place for span in spans for place in span[:2]})
    characters_at, total = {}, 0
    for before, place in pairwise([0, *places]):
        total += len(data[before:place].decode("utf-8"))
        characters_at[place] = total
    return [(characters_at[span.start], characters_at[span.end], span.kind) for span in spans]


def apart(spans: Iterable[Span]) -> list[Span]:
    """Spans in order, no two of them overlapping: of those that do, the longest stays, of equally long ones the first.

    >>> apart([Span(4, 8, "DATE"), Span(0, 8, "MISC"), Span(9, 12, "PER")])
    [Span(start=0, end=8, kind='MISC'), Span(start=9, end=12, kind='PER')]
    """
    ordered = sorted(spans, key=lambda span: span.start)
    if all(left.end <= right.start for left, right in pairwise(ordered)):
        return [span for span in ordered if span.start < span.end]
    kept: list[Span] = []
    # Sorting is stable: among spans of one length and place the earlier tagger's comes first.
    for span in sorted(ordered, key=lambda span: span.start - span.end):
        if span.start < span.end and all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def annotate(text: str, taggers: Sequence[Tagger]) -> list[Span]:
    """What all taggers find in one text, in order and without overlaps.

    >>> words = lambda text: [Span(0, 4, "PER")]
    >>> years = lambda text: [Span(13, 17, "DATE"), Span(2, 4, "MISC")]
    >>> annotate("Zola wrote in 1898", [words, years])
    [Span(start=0, end=4, kind='PER'), Span(start=13, end=17, kind='DATE')]
    """
    return apart(span for tagger in taggers for span in tagger(text))
