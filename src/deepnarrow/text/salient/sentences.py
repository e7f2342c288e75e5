"""Sentences of encyclopedic prose, by rules: a line's end always ends one, a full stop if what surrounds it allows.

A full stop does not end a sentence behind an initial ("J. R. R. Tolkien"), behind an abbreviation that a name or a
number follows ("Dr. Marsh", "c. 1450"), inside a number ("5.25"), or before a small letter. After "Inc.", "U.S.",
"B.C." and their kind it does if the next word is one that opens sentences ("The", "In", "He").

>>> text = "He met J. R. Smith in 1950. It rained, \\"hard.\\" Mr. Smith of Acme Inc. left."
>>> [text[start:end] for start, end in sentences(text)]
['He met J. R. Smith in 1950.', 'It rained, "hard."', 'Mr. Smith of Acme Inc. left.']
"""

import re
from bisect import bisect_right
from collections.abc import Iterable

from deepnarrow.text.salient.lexicon import words
from deepnarrow.text.salient.spans import Span, from_characters

# Never the end: a name or number follows.
LEADING = words(
    """mr mrs ms mx dr prof st ste mt ft gen col capt cpt lt cmdr adm sgt maj rev fr sr hon gov sen rep pres supt
    messrs mme mlle no nos vol vols fig figs pp p ch sec art op c ca cf vs v e.g i.e viz approx est b d r fl
    nr var subsp ssp sp jan feb mar apr jun jul aug sep sept oct nov dec"""
)
# The end only if the next word opens sentences.
TRAILING = words(
    """inc ltd co corp bros jr sr esq etc u.s u.k u.n u.s.a u.s.s.r d.c b.c a.d b.c.e c.e a.m p.m ph.d m.d b.a m.a bc
    ave blvd rd dept univ assn ed eds al"""
)
OPENING = words(
    """the a an in on at by from of for with as to he she it they we i you his her its their our this that these those
    there here when while after before during since until although though because if but and or so however then
    thus also some many most several all both each one two another other no not what who how why where later
    today"""
)

# The mark, closing quotes or brackets, white space, then what the next sentence starts with. A mark of Chinese,
# Japanese or Hindi needs no white space; the Arabic and Urdu ones do.
END = re.compile(
    "[.!?\u2026\u061f\u06d4][.!?\u2026\u061f\u06d4]*[\"'\u201d\u2019\u00bb)\\]]*(?:\\[\\d+\\])*[ \t\u00a0]+"
    "|[\u3002\uff01\uff1f\u0964][\u300d\u300f\u201d\uff09]*[ \t\u00a0]*"
    "|[\n\r\u2028\u2029]\\s*"
)
START = re.compile("[\"'\u201c\u2018\u00ab(\\[\u00bf\u00a1]*(\\w[\\w'\u2019-]*)?")
PROSE = re.compile(
    "[.!?\u2026\u061f\u06d4\u3002\uff01\uff1f\u0964][\"'\u201d\u2019\u00bb)\\]\u300d\u300f\uff09]*\\s*(?:\\[\\d+\\])*$"
)


def sentences(text: str) -> list[tuple[int, int]]:
    """(first character, character behind the last) of each sentence, without the white space around it."""
    found = []
    start = len(text) - len(text.lstrip())
    for match in END.finditer(text):
        if match.start() < start or not ends(text, match):
            continue
        mark = match[0]
        end = match.start() + len(mark.rstrip())
        if mark[0].isspace():  # a line's end, perhaps behind spaces
            end = start + len(text[start:end].rstrip())
        if end > start:
            found.append((start, end))
        start = match.end()
    end = len(text.rstrip())
    return [*found, (start, end)] if end > start else found


def ends(text: str, match: re.Match[str]) -> bool:
    """Whether a sentence ends at this mark."""
    mark = match[0]
    first = mark[0]
    if first != ".":
        if first in "!?\u2026\u061f\u06d4":
            return not following(text, match.end())[:1].islower()
        return True  # a line's end, or a mark that has no other use
    word = following(text, match.end())
    if word[:1].islower():
        return False
    if mark[1:2] in (")", "]") or mark.startswith(".."):
        return True
    before = preceding(text, match.start())
    lower = before.lower()
    if lower in TRAILING or (len(before) == 1 and before.isupper()) or ("." in before and before not in LEADING):
        return word.lower() in OPENING and (len(before) > 1 or word.lower() not in ("a", "i"))
    if lower in LEADING:
        # "no." and "art." are words as well: they abbreviate only before a number.
        return lower in ("no", "art", "sec", "fig", "mar", "sun") and not word[:1].isdigit()
    return True


def following(text: str, place: int) -> str:
    """The word after white space and opening quotes, "" if there is none."""
    match = START.match(text, place)
    return (match and match[1]) or ""


def preceding(text: str, place: int) -> str:
    """The word that ends here, with its inner full stops: "U.S" before the last stop of "U.S."."""
    begin = place
    while begin and place - begin < 12 and (text[begin - 1].isalnum() or text[begin - 1] == "."):
        begin -= 1
    return text[begin:place]


def is_prose(sentence: str) -> bool:
    """Whether it ends as sentences do and is more than a heading; table cells and items of lists mostly are not.

    >>> is_prose("He left for Rome."), is_prose("Early life and education"), is_prose("Early life.")
    (True, False, False)
    """
    spaced = sentence.isascii() or " " in sentence  # Chinese and Japanese put no spaces between words
    heading = spaced and (
        sentence.count(" ") < 3 or "::::" in sentence
    )  # "Section::::Early life", as extractors write it
    return not heading and PROSE.search(sentence) is not None


def by_sentence(text: str, spans: Iterable[Span]) -> list[tuple[str, list[Span]]]:
    """Each sentence with the spans inside it, their offsets counted from its own first byte.

    Spans that reach over a sentence's end are dropped, as in the corpus T5's closed-book models saw.

    >>> by_sentence("Ada died. Bob left.", [Span(0, 3, "PER"), Span(4, 13, "?"), Span(10, 13, "PER")])
    [('Ada died.', [Span(start=0, end=3, kind='PER')]), ('Bob left.', [Span(start=0, end=3, kind='PER')])]
    """
    places = sentences(text)
    edges = from_characters(text, [(start, end, "") for start, end in places])
    inside: list[list[Span]] = [[] for _ in places]
    starts = [edge.start for edge in edges]
    for span in sorted(spans):
        index = bisect_right(starts, span.start) - 1
        if index >= 0 and span.end <= edges[index].end:
            offset = edges[index].start
            inside[index].append(Span(span.start - offset, span.end - offset, span.kind))
    return [(text[start:end], found) for (start, end), found in zip(places, inside, strict=True)]
