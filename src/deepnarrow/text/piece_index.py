"""The pieces of a tokenizer.json, laid out to be used at once: for a program that reads one text and ends.

To make a unigram model ready the tokenizers library parses and sorts 32,000 pieces, a third of the way from nothing to
a small model's first token. Sorted beforehand they are read in a millisecond, and a few words are cut into them as
quickly by hand. Only texts that leave no doubt are cut here: printable ASCII without `<`, each character a piece, no
two cuts of a word equally good. The best cut is that of Kudo 2018 (arXiv:1804.10959, section 3.2), as the library's, so
ids are the same, which tests hold over documents; every other text goes to the library.

FOLDER/pieces.idx: seven uint64 (size and CRC-32 of tokenizer.json, its ids, its sentinels, the sorted pieces, the bytes
of the longest of them, the texts), then the pieces, each padded with zeros to the longest, their scores (float64) and
ids (uint32), the ends of the texts by id (uint32), and the texts. Numbers are little-endian.
"""

import struct
import zlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deepnarrow.files import write_bytes
from deepnarrow.text.vocabulary import Tokenizer

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer_json import JsonTokenizer

NAME, JSON = "pieces.idx", "tokenizer.json"
SPACE = "\u2581"  # how a piece writes a space
PRINTABLE = "".join(map(chr, range(33, 127)))
LONGEST_TEXT = 4000  # characters; beyond, the library is quicker
TIE = 1e-9  # of sums that are nearer the last bit decides, and libraries read numbers differently to that
FRONT = struct.Struct("<7Q")


def write_index(folder: Path) -> bool:
    """Write the index of a folder's tokenizer.json, where texts can be cut by it; whether that is so."""
    path = folder / JSON
    if not path.is_file():
        return False
    from deepnarrow.text.tokenizer_json import JsonTokenizer

    data = path.read_bytes()
    full = JsonTokenizer(data, path)
    if not is_simple(full):
        return False
    scored = full.layout["model"]["vocab"]
    usable = set(PRINTABLE + SPACE)
    first: dict[bytes, int] = {}
    for index, (text, _) in enumerate(scored):
        if text and usable.issuperset(text):
            first[text.encode("utf-8")] = index  # of two alike the library keeps the later
    pieces = sorted(first)
    longest = max(map(len, pieces), default=1)
    texts = [(full.engine.id_to_token(index) or "").encode("utf-8") for index in range(full.size)]
    ids = np.array([first[piece] for piece in pieces], "<u4")
    parts = (
        FRONT.pack(len(data), zlib.crc32(data), full.size, full.sentinels, len(pieces), longest, len(texts)),
        np.array(pieces, f"S{longest}").tobytes(),
        np.array([scored[index][1] for index in ids.tolist()], "<f8").tobytes(),
        ids.tobytes(),
        np.cumsum([len(text) for text in texts]).astype("<u4").tobytes(),
        b"".join(texts),
    )
    write_bytes(folder / NAME, b"".join(parts))
    return True


def is_simple(full: "JsonTokenizer") -> bool:
    """Whether texts of printable ASCII are cut word by word into pieces, and put together from them, and no more."""
    decoder = full.layout.get("decoder") or {}
    return (
        full.words is not None  # a unigram model that treats words alone
        and decoder.get("type") == "Metaspace"
        and decoder.get("replacement") == SPACE
        and decoder.get("prepend_scheme", "always") == "always"
        and decoder.get("add_prefix_space", True)
        and all(token["content"].startswith("<") for token in full.layout.get("added_tokens") or [])
        and full.engine.normalizer.normalize_str("a" + "a".join(PRINTABLE)) == "a" + "a".join(PRINTABLE)
    )


class IndexedTokenizer(Tokenizer):
    """The tokenizer of a folder's tokenizer.json, which is read only when a text needs it."""

    kind = "json"

    def __init__(self, folder: Path, index: bytes) -> None:
        self.folder = folder
        _, _, self.size, self.sentinels, number, longest, texts = FRONT.unpack_from(index)
        at = FRONT.size
        self.pieces = np.frombuffer(index, f"S{longest}", number, at)
        self.longest = longest
        at += number * longest
        self.scores = np.frombuffer(index, "<f8", number, at)
        self.ids = np.frombuffer(index, "<u4", number, at + 8 * number)
        self.ends = np.frombuffer(index, "<u4", texts, at + 12 * number)
        self.texts = index[at + 12 * number + 4 * texts :]

    @cached_property
    def full(self) -> "JsonTokenizer":
        from deepnarrow.text.tokenizer_json import JsonTokenizer

        return JsonTokenizer((self.folder / JSON).read_bytes(), self.folder / JSON)

    @property
    def fingerprint(self) -> str:  # type: ignore[override]
        return self.full.fingerprint

    def sentinel(self, n: int) -> int:
        return self.full.sentinel(n)

    def encode(self, text: str) -> list[int]:
        found = self.cut(text)
        return self.full.encode(text) if found is None else found

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(texts[0])] if len(texts) == 1 else self.full.encode_batch(texts)

    def cut(self, text: str) -> list[int] | None:
        """Ids of a text that leaves no doubt, else None."""
        if len(text) > LONGEST_TEXT or not text.isascii() or not text.isprintable() or "<" in text:
            return None
        words = [SPACE + word for word in text.split(" ") if word]
        known: dict[str, list[int]] = {}
        for word in words:
            if word not in known:
                found = self.cut_word(word)
                if found is None:
                    return None
                known[word] = found
        return [index for word in words for index in known[word]]

    def cut_word(self, word: str) -> list[int] | None:
        """The cut of the highest sum of scores; None where a character is no piece, or two cuts are as good."""
        length = len(word)
        spans = [(start, end) for start in range(length) for end in range(start + 1, length + 1)]
        spans = [span for span in spans if span[1] - span[0] <= self.longest]
        wanted = np.array([word[start:end].encode("utf-8") for start, end in spans])
        places = np.minimum(np.searchsorted(self.pieces, wanted), len(self.pieces) - 1)
        found = self.pieces[places] == wanted
        best: list[tuple[float, int, int] | None] = [(0.0, 0, 0)] + [None] * length  # sum, start of the last piece, id
        single = 0
        scores, ids = self.scores[places].tolist(), self.ids[places].tolist()
        for (start, end), there, score, index in zip(spans, found.tolist(), scores, ids, strict=True):
            before, there_now = best[start], best[end]
            if not there or before is None:
                continue
            single += end == start + 1
            total = score + before[0]
            if there_now is not None and abs(total - there_now[0]) < TIE:
                return None
            if there_now is None or total > there_now[0]:
                best[end] = (total, start, index)
        if single < length:  # a character that is no piece
            return None
        cut: list[int] = []
        end = length
        while end:
            last = best[end]
            assert last is not None
            cut.append(last[2])
            end = last[1]
        return cut[::-1]

    def decode(self, ids: Sequence[int]) -> str:
        pieces = [self.text_of(index) for index in self.known(ids)]
        return "".join(piece.replace(SPACE, " " if place else "") for place, piece in enumerate(pieces))

    def text_of(self, index: int) -> str:
        first = int(self.ends[index - 1]) if index else 0
        return self.texts[first : int(self.ends[index])].decode("utf-8")

    def piece(self, index: int) -> str:
        return self.full.piece(index)

    def save(self, folder: Path) -> None:
        self.full.save(folder)


def open_indexed(folder: Path) -> IndexedTokenizer | None:
    """The tokenizer of a folder with an index of its tokenizer.json as it is now; None where there is none."""
    path = folder / NAME
    if not path.is_file() or not (folder / JSON).is_file():
        return None
    index, data = path.read_bytes(), (folder / JSON).read_bytes()
    if len(index) < FRONT.size or FRONT.unpack_from(index)[:2] != (len(data), zlib.crc32(data)):
        return None
    _, _, size, _, number, longest, texts = FRONT.unpack_from(index)
    start = FRONT.size + number * (longest + 12) + 4 * texts
    if not number or texts != size or start > len(index):
        return None
    found = IndexedTokenizer(folder, index)
    return found if int(found.ends[-1]) == len(found.texts) else None
