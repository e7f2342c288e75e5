"""Ids word by word, remembered: the same ids as the whole text at several times the speed.

A T5 tokenizer.json cuts the normalised text before every U+2581 and runs its unigram model on each word alone, so a
word's ids do not depend on its neighbours. Two things could still cross the space between words, and send a text the
slow way: an added token that swallows spaces, and the normaliser, which works on grapheme clusters and joins a space
to a combining mark behind it or a prepended sign before it (Unicode Annex 29, rules GB9 to GB9b).
"""

import re
from collections.abc import Callable
from functools import cache
from itertools import chain
from typing import Any

WORDS = 2**18  # remembered at most, about 70 MB
LONGEST = 40  # characters; longer words seldom come twice

# Characters that no cluster joins to a space: Latin, Greek, Cyrillic, punctuation, currency, kana, Han, Hangul.
APART = (
    "!-~\u00a1-\u00ac\u00ae-\u02ff\u0391-\u0482\u048a-\u052f\u1e00-\u1eff\u2010-\u2027\u2030-\u205e\u20a0-\u20c0"
    "\u2190-\u23ff\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fff\uac00-\ud7a3"
)


@cache
def safe() -> re.Pattern[str]:
    """A word that no cluster joins to a space, at neither end. Compiled when the first text is cut into words."""
    return re.compile(f"[{APART}](?:.*[{APART}])?", re.S)


def is_word_wise(layout: dict[str, Any], normalise: Callable[[str], str]) -> bool:
    """Whether a tokenizer.json treats words alone: T5's splitting, no token that swallows spaces, spaces folded."""
    splitting = layout.get("pre_tokenizer") or {}
    tokens = layout.get("added_tokens") or []
    return (
        layout.get("model", {}).get("type") == "Unigram"
        and splitting.get("type") == "Metaspace"
        and splitting.get("replacement") == "\u2581"
        and splitting.get("split", True)
        and splitting.get("prepend_scheme") in ("first", "always")
        and not any(
            token["lstrip"] or token["rstrip"] or token["content"].split() != [token["content"]] for token in tokens
        )
        and not any(token["normalized"] or token["single_word"] for token in tokens)
        and normalise(" a\tb\nc\rd   e \n") == " a b c d\u2581e"
    )


class WordCache:
    """Remembers what `encode_many` says about words."""

    def __init__(self, encode_many: Callable[[list[str]], list[list[int]]]) -> None:
        self.encode_many = encode_many
        self.known: dict[str, list[int]] = {"": []}

    def ids(self, texts: list[str]) -> list[list[int] | None]:
        """Ids of each text, or None where its words cannot be taken one by one."""
        split = [words_of(text) for text in texts]
        try:
            return [self.joined(words) for words in split]
        except KeyError:
            new = set(chain.from_iterable(split)) - self.known.keys()
        apart = [word for word in new if safe().fullmatch(word)]
        learned = dict(zip(apart, self.encode_many(apart), strict=True))
        if len(self.known) < WORDS:
            self.known.update((word, ids) for word, ids in learned.items() if len(word) <= LONGEST)
        together = new.difference(apart)
        return [
            None
            if together and not together.isdisjoint(words)
            else [index for word in words for index in (learned[word] if word in learned else self.known[word])]
            for words in split
        ]

    def joined(self, words: list[str]) -> list[int]:
        return list(chain.from_iterable(map(self.known.__getitem__, words)))


def words_of(text: str) -> list[str]:
    """The text cut at the white space that every normaliser treats as a space; other kinds stay inside their word."""
    return text.replace("\n", " ").replace("\t", " ").replace("\r", " ").split(" ")
