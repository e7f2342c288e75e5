"""Where sentences end. C4 used NLTK's Punkt, whose model is a download of its own; these few rules need none.

A sentence ends at a line's end, and behind `.`, `!` or `?` (with closing quotes and brackets) where white space
follows, unless the next word starts with a small letter or the point belongs to a title (Dr.) or an initial (J.).
"""

import re

END = re.compile(r"[.!?]+[\"'\u201d\u2019)\]]*(?=\s)|\n")
NEXT = re.compile(r"\s*[\"'\u201c\u2018(\[]*")
TITLE = re.compile(r"(?:^|[\s(\"'])(?:[A-Z]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|e\.g|i\.e|etc|No|Fig)\.$")


def spans(text: str) -> list[tuple[int, int]]:
    """Start and end of each sentence, without the white space around it.

    >>> text = 'Dr. Who left. "Why?" she asked. No answer came.'
    >>> [text[start:end] for start, end in spans(text)]
    ['Dr. Who left.', '"Why?" she asked.', 'No answer came.']
    """
    found = []
    start = 0
    for mark in END.finditer(text):
        if mark[0] == "\n" or ends_sentence(text, start, mark.end()):
            found.append((start, mark.end()))
            start = mark.end()
    found.append((start, len(text)))
    return [trimmed for span in found if (trimmed := trim(text, *span)) is not None]


def count(text: str) -> int:
    """How many sentences.

    >>> count("It rained. It stopped.\\nThe sun came out"), count(" ")
    (3, 0)
    """
    return len(spans(text))


def ends_sentence(text: str, start: int, end: int) -> bool:
    following = NEXT.match(text, end)
    place = following.end() if following else end
    if place < len(text) and text[place].islower():
        return False
    return not TITLE.search(text, max(start, end - 12), end)


def trim(text: str, start: int, end: int) -> tuple[int, int] | None:
    piece = text[start:end]
    bare = piece.strip()
    if not bare:
        return None
    start += len(piece) - len(piece.lstrip())
    return start, start + len(bare)
