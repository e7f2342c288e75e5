"""Ids as they come, into text as it grows; and everything into JSON."""

from collections.abc import Sequence

from pydantic_core import to_json as pydantic_json

from deepnarrow.text.vocabulary import Tokenizer

BROKEN = "\N{REPLACEMENT CHARACTER}"  # what decoders write for the first bytes of a character


def to_json(value: object) -> bytes:
    """UTF-8; numbers that JSON cannot write become null.

    >>> to_json({"log": float("-inf"), "text": "\u00e9"}).decode()
    '{"log":null,"text":"\u00e9"}'
    """
    return pydantic_json(value, inf_nan_mode="null")


class Text:
    """The text of a growing sequence, told as it becomes certain: all that `add` and `rest` gave is the whole.

    Decoders look at neighbours (a first piece loses its space, a character may take several tokens), so each new id is
    decoded behind those told last, and what both share is taken away.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self._from = self._told = 0

    def add(self, id: int) -> str:
        self.ids.append(id)
        return self._new(complete=False)

    def rest(self) -> str:
        """What is left where a sequence ends within a character."""
        return self._new(complete=True)

    def _new(self, *, complete: bool) -> str:
        before = self.tokenizer.decode(self.ids[self._from : self._told])
        now = self.tokenizer.decode(self.ids[self._from :])
        if len(now) <= len(before) or (now.endswith(BROKEN) and not complete):
            return ""
        self._from, self._told = self._told, len(self.ids)
        return now[len(before) :]

    def is_special(self, id: int) -> bool:
        """Whether an id is of no text: padding, the end, one the tokenizer does not know."""
        return id in (self.tokenizer.pad, self.tokenizer.eos) or not 0 <= id < self.tokenizer.size


class Until:
    """Text as it grows, up to the first of some ends: what may yet become an end is held back.

    >>> until = Until(["END"])
    >>> until.add("one E"), until.add("N"), until.add("d"), until.add("END two"), until.over
    ('one ', '', 'ENd', '', True)
    """

    def __init__(self, ends: Sequence[str]) -> None:
        self.ends = [end for end in ends if end]
        self.over = False
        self._held = ""

    def add(self, text: str) -> str:
        if self.over:
            return ""
        self._held += text
        found = [self._held.index(end) for end in self.ends if end in self._held]
        if found:
            told, self._held, self.over = self._held[: min(found)], "", True
            return told
        keep = max((common(self._held, end) for end in self.ends), default=0)
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def rest(self) -> str:
        told, self._held = self._held, ""
        return told


def common(text: str, end: str) -> int:
    """The longest end of `text` that `end` begins with.

    >>> common("one EN", "END"), common("one", "END")
    (2, 0)
    """
    for size in range(min(len(text), len(end) - 1), 0, -1):
        if text.endswith(end[:size]):
            return size
    return 0
