"""Bytes as ids: ByT5 (Xue et al. 2022, arXiv:2105.13626), a tokenizer without a vocabulary file.

    0 padding   1 EOS   2 unknown   3 ... 258 the bytes 0 ... 255   259 ... 383 sentinels

256 bytes, 3 special ids and 125 sentinels make 384 ids. Here <extra_id_0> is 383 and the sentinels run downward, as
everywhere in this package. Two other numberings exist. transformers' ByT5Tokenizer, made without arguments, names 259
<extra_id_0> and counts upward; the folders saved here list the names so that it counts as we do. The released ByT5
models were pretrained on seqio's ByteVocabulary without extra ids, whose highest ids, 258 downward, served as
sentinels although they are also bytes (paper, section 3.1); fine-tuning such a model is not touched by this.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from deepnarrow.files import write_json
from deepnarrow.text.vocabulary import Tokenizer, fingerprint_of, whole

OFFSET = 3  # ids before the first byte
NAMES = {"<pad>": 0, "</s>": 1, "<unk>": 2}


class ByteTokenizer(Tokenizer):
    """UTF-8 bytes shifted by three.

    >>> ByteTokenizer().encode("hi")
    [107, 108]
    >>> ByteTokenizer().decode([107, 108, 1, 0, 383])
    'hi<extra_id_0>'
    """

    kind = "bytes"

    def __init__(self, *, sentinels: int = 125) -> None:
        self.sentinels = sentinels
        self.size = OFFSET + 256 + sentinels
        self.names = NAMES | {f"<extra_id_{n}>": self.size - 1 - n for n in range(sentinels)}
        self.special = re.compile("|".join(re.escape(name) for name in self.names))

    @cached_property
    def fingerprint(self) -> str:  # type: ignore[override]
        return fingerprint_of(kind=self.kind, sentinels=self.sentinels)

    def encode(self, text: str) -> list[int]:
        if "<" not in text:
            return shifted(text)
        ids: list[int] = []
        position, bare = 0, False
        for match in self.special.finditer(text):
            swallows = match[0] in NAMES  # ByT5 drops white space around <pad>, </s> and <unk>, not around sentinels
            ids += shifted(stretch(text[position : match.start()], bare, swallows))
            ids.append(self.names[match[0]])
            position, bare = match.end(), swallows
        return ids + shifted(stretch(text[position:], bare, False))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; bytes that are not UTF-8 are passed over, as ByT5's own decoder does."""
        return b"".join(self.surface[index] for index in self.known(ids)).decode("utf-8", "ignore")

    @cached_property
    def surface(self) -> list[bytes]:
        """What each id adds to a decoded text."""
        top = [f"<extra_id_{n}>".encode() for n in reversed(range(self.sentinels))]
        return [name.encode() for name in NAMES] + [bytes([byte]) for byte in range(256)] + top

    def piece(self, index: int) -> str:
        """The character of an ASCII byte, `<0xE9>` for any other byte, or a special token's name."""
        if not 0 <= index < self.size:
            raise ValueError(f"id {index} does not exist: this tokenizer has {self.size}")
        surface = self.surface[index]
        if len(surface) > 1:
            return surface.decode("ascii")
        return chr(surface[0]) if 32 <= surface[0] < 127 else f"<0x{surface[0]:02X}>"

    def save(self, folder: Path) -> None:
        names = [f"<extra_id_{n}>" for n in reversed(range(self.sentinels))]
        special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
        settings = {"tokenizer_class": "ByT5Tokenizer", "extra_ids": self.sentinels, **special}
        write_json(folder / "tokenizer_config.json", {**settings, "additional_special_tokens": names})


def stretch(text: str, bare_before: bool, bare_behind: bool) -> str:
    """Text between special tokens, less the white space that they swallow."""
    text = text.lstrip() if bare_before else text
    return text.rstrip() if bare_behind else text


def shifted(text: str) -> list[int]:
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError:
        data = whole(text).encode("utf-8")
    return [byte + OFFSET for byte in data]
