"""SentencePiece unigram models (Kudo 2018, arXiv:1804.10959), as T5's spiece.model, with the sentinels set on top.

T5's model is lossy: it has no pieces for `{`, `}`, `<`, `~`, `^`, a backquote, a backslash or a newline. Newlines and
tabs become spaces, runs of spaces one space; a character without a piece becomes the unknown id and cannot be decoded.
Models trained here can keep every character with `byte_fallback`.

The library knows nothing of sentinels, so the text is cut at them here, in the reference's manner (tokenizer_json.py):
a special token is matched wherever its exact name stands; the text behind it starts with U+2581 only if it starts
with white space.

Ids are exactly the sentencepiece library's. From those of the same model's tokenizer.json they differ in three cases:
    ties     two cuts of nearly the same score ("----" as "-", "---" or "---", "-"): the library adds scores up in
             float32 over the whole text, tokenizers in float64 word by word; in 6.1 million ids of test data 115 cuts
             fall elsewhere, in 23 of 3,963 documents
    U+0085   at the end of a text: unknown here, stripped as white space there
    marks    a combining mark right behind a character that the map rewrites (a no-break space, a full-width letter, a
             fraction) is kept or composed here and lost there, where the map is applied to grapheme clusters
(tests/text/test_tokenizer.py compares every assigned code point; test_tokenizer_documents.py all documents.)
"""

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece

from deepnarrow.errors import UserError
from deepnarrow.files import write_bytes, write_json, write_text
from deepnarrow.text import sentencepiece_format, tokenizer_json
from deepnarrow.text.sentencepiece_format import BYTE, UNIGRAM, WITHOUT_DUMMY_PREFIX
from deepnarrow.text.vocabulary import SENTINEL, Tokenizer, check_layout, cores, whole

ARRAYS = hasattr(sentencepiece.SentencePieceProcessor, "encode_as_numpy")  # 0.2.3 has it, early ones do not


class SentencePieceTokenizer(Tokenizer):
    """A SentencePiece model's pieces, then `sentinels` ids counted downward from the top.

    Where the model's own last pieces are the sentinels (as in mT5's), none are added and `sentinels` is not used.
    """

    kind = "sentencepiece"

    def __init__(self, data: bytes, *, sentinels: int = 100, origin: str | Path = "spiece.model") -> None:
        self.data = data
        try:
            self.model = sentencepiece_format.read(data)
            self.engine = sentencepiece.SentencePieceProcessor(model_proto=data)
        except (ValueError, RuntimeError, UnicodeDecodeError) as error:
            raise UserError(f"{origin} is not a SentencePiece model ({error})") from None
        if self.model.model_type != UNIGRAM:
            raise UserError(f"{origin} is not a unigram SentencePiece model; T5's is, and only that kind is read here")
        check_layout(origin, pad=self.engine.pad_id(), eos=self.engine.eos_id(), unk=self.engine.unk_id())
        pieces = [piece.text for piece in self.model.pieces]
        inside = sentinels_inside(pieces)
        self.appended = 0 if inside else sentinels
        self.sentinels = inside or sentinels
        self.size = len(pieces) + self.appended
        self.names = {name: index for index, name in enumerate(pieces[:3])}
        self.names |= {f"<extra_id_{n}>": self.size - 1 - n for n in range(self.appended)}
        self.special = re.compile("|".join(map(re.escape, sorted(self.names, key=len, reverse=True))))

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return tokenizer_json.fingerprint_of_json(self.layout)

    @cached_property
    def layout(self) -> dict[str, Any]:
        """The content of the tokenizer.json of the same ids."""
        return tokenizer_json.from_sentencepiece(self.model, self.appended)

    def encode(self, text: str) -> list[int]:
        text = clean(text)
        return self.encode_around(text) if self.special.search(text) else self.engine.encode(text)

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        if not ARRAYS:
            return self.encode_many(texts, int)
        return [ids.tolist() for ids in self.encode_arrays(texts)]  # sooner than the library makes its lists

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        return self.encode_many(texts, "numpy") if ARRAYS else super().encode_arrays(texts)

    def encode_many(self, texts: Sequence[str], kind: Any) -> list[Any]:
        """Ids of each text, as the library's `out_type` says: int for lists, "numpy" for arrays."""
        cleaned = [clean(text) for text in texts]
        marked = {index for index, text in enumerate(cleaned) if self.special.search(text)}
        plain = ["" if index in marked else text for index, text in enumerate(cleaned)] if marked else cleaned
        found: list[Any] = self.engine.encode(plain, out_type=kind, num_threads=min(cores(), max(1, len(plain))))
        for index in marked:
            ids = self.encode_around(cleaned[index])
            found[index] = ids if kind is int else np.array(ids, np.int32)
        return found

    def encode_around(self, text: str) -> list[int]:
        """Ids of a text that names special tokens: each stretch between them on its own."""
        ids: list[int] = []
        position = 0
        for match in self.special.finditer(text):
            ids += self.encode_stretch(text[position : match.start()], first=position == 0)
            ids.append(self.names[match[0]])
            position = match.end()
        return ids + self.encode_stretch(text[position:], first=position == 0)

    def encode_stretch(self, text: str, *, first: bool) -> list[int]:
        """Only a stretch that starts the text, or starts with white space, starts with U+2581."""
        if first or self.normalizer.Normalize(text).startswith(" "):
            return self.engine.encode(text)
        return self.engine_inside.encode(text)

    @cached_property
    def engine_inside(self) -> sentencepiece.SentencePieceProcessor:
        """The same model, for text in the middle of a line: no U+2581 in front."""
        return sentencepiece.SentencePieceProcessor(model_proto=self.data + WITHOUT_DUMMY_PREFIX)

    @cached_property
    def normalizer(self) -> sentencepiece.SentencePieceNormalizer:
        """The model's character map alone, to see which characters count as white space."""
        return sentencepiece.SentencePieceNormalizer(
            model_proto=self.data, add_dummy_prefix=False, escape_whitespaces=False, remove_extra_whitespaces=False
        )

    def decode(self, ids: Sequence[int]) -> str:
        known = self.known(ids)
        text = b"".join(self.surface[index] for index in known).decode("utf-8", "replace")
        return text[1:] if known and self.surface[known[0]].startswith(b" ") else text

    @cached_property
    def surface(self) -> list[bytes]:
        """What each id adds to a decoded text."""
        spoken = [
            bytes([int(piece.text[3:5], 16)])
            if piece.type == BYTE
            else piece.text.replace(tokenizer_json.SPACE, " ").encode("utf-8")
            for piece in self.model.pieces
        ]
        return spoken + [f"<extra_id_{n}>".encode() for n in reversed(range(self.appended))]

    def piece(self, index: int) -> str:
        if not 0 <= index < self.size:
            raise ValueError(f"id {index} does not exist: this tokenizer has {self.size}")
        if index < len(self.model.pieces):
            return self.model.pieces[index].text
        return f"<extra_id_{self.size - 1 - index}>"

    def save(self, folder: Path) -> None:
        """spiece.model and the same thing as tokenizer.json, which transformers and `load` prefer."""
        write_bytes(folder / "spiece.model", self.data)
        write_text(folder / "tokenizer.json", json.dumps(self.layout, ensure_ascii=False, separators=(",", ":")))
        write_json(folder / "tokenizer_config.json", tokenizer_json.settings(self.appended))

    def __reduce__(self) -> tuple[object, tuple[bytes, int]]:
        return restored, (self.data, self.sentinels)


def restored(data: bytes, sentinels: int) -> SentencePieceTokenizer:
    """Unpickle, for worker processes."""
    return SentencePieceTokenizer(data, sentinels=sentinels)


def clean(text: str) -> str:
    return text if text.isascii() or text.isprintable() else whole(text)


def sentinels_inside(pieces: Sequence[str]) -> int:
    """How many of the last pieces are <extra_id_n>, counted downward from the top as in mT5.

    >>> sentinels_inside(["a", "<extra_id_1>", "<extra_id_0>"])
    2
    """
    return sum(1 for _ in leading_sentinels(pieces))


def leading_sentinels(pieces: Sequence[str]) -> Iterator[str]:
    for n, text in enumerate(reversed(pieces)):
        match = SENTINEL.fullmatch(text.removeprefix(tokenizer_json.SPACE))
        if not match or int(match[1]) != n:
            return
        yield text
