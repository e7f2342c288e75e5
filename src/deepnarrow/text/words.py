"""Words and their pieces: where in a row of ids each word of a sentence begins, for tags that belong to words.

A sentence comes as a list of words, and is read as these words with one space between each two. A word is encoded by
itself, which gives the ids of the whole text: T5's pieces never reach over a space, and each word's first piece carries
the space before it (of bytes the space is one, and the word's own first byte comes behind it). Real sentences are
compared in tests/text/test_words.py, with all three kinds of tokenizer; they may differ where a text has two cuts of
equal score (sentencepiece_tokenizer.py), and then training and use still see the same ids.

A sentence too long for one row is read in several, cut between words.
"""

from collections.abc import Sequence
from typing import NamedTuple

from deepnarrow.text.vocabulary import Tokenizer


class Row(NamedTuple):
    """Consecutive words of one sentence as ids, EOS last. `firsts` has the place of each word's first piece."""

    sentence: int
    word: int  # the number of the first word in its sentence
    ids: list[int]
    firsts: list[int]


def rows_of_words(sentences: Sequence[Sequence[str]], tokenizer: Tokenizer, most: int) -> list[Row]:
    """Every word of every sentence, in rows of at most `most` ids, EOS included; no row holds two sentences.

    A word that leaves no piece, such as a lone zero-width space, is one unknown id; one that alone is longer than a
    row keeps its beginning.

    >>> from deepnarrow.text.byte_tokenizer import ByteTokenizer
    >>> rows_of_words([["to", "be", "or"]], ByteTokenizer(), 7)
    [Row(sentence=0, word=0, ids=[119, 114, 35, 101, 104, 1], firsts=[0, 3]), Row(sentence=0, word=2, \
ids=[114, 117, 1], firsts=[0])]
    """
    found: list[Row] = []
    for number, pieces in enumerate(pieces_of_words(sentences, tokenizer)):
        row = Row(number, 0, [], [])
        for place, (bare, spaced) in enumerate(pieces):
            word = spaced if row.ids else bare
            if row.ids and len(row.ids) + len(word) > most - 1:
                found.append(ended(row, tokenizer))
                row, word = Row(number, place, [], []), bare
            row.firsts.append(len(row.ids) + len(word) - len(bare))
            row.ids.extend(word[: most - 1])
        if row.ids:
            found.append(ended(row, tokenizer))
    return found


def ended(row: Row, tokenizer: Tokenizer) -> Row:
    return row._replace(ids=[*row.ids, tokenizer.eos])


def pieces_of_words(
    sentences: Sequence[Sequence[str]], tokenizer: Tokenizer
) -> list[list[tuple[list[int], list[int]]]]:
    """The ids of each word at the beginning of a text, and behind another word. Each distinct word is encoded once."""
    words = list(dict.fromkeys(word for sentence in sentences for word in sentence))
    bare = tokenizer.encode_batch(words)
    spaced = tokenizer.encode_batch([f" {word}" for word in words]) if tokenizer.kind == "bytes" else bare
    known = {
        word: (first or [tokenizer.unk], later or [tokenizer.unk])
        for word, first, later in zip(words, bare, spaced, strict=True)
    }
    return [[known[word] for word in sentence] for sentence in sentences]
