"""What every tokenizer promises: ids in T5's layout.

    0 padding   1 end of sequence (EOS)   2 unknown   3 ... pieces ...   size-1 first sentinel

Sentinels run downward from the top: in T5 `<extra_id_0>` is 32099 and `<extra_id_99>` is 32000 (t5 `sentinel_id`;
Raffel et al. 2020, arXiv:1910.10683, section 3.1.4). A model's embedding may have more rows than the tokenizer has
ids (32,128 against 32,100): those rows mean nothing, and `decode` passes over them.
"""

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from deepnarrow.errors import UserError

SENTINEL = re.compile(r"<extra_id_(\d+)>")


class Tokenizer(ABC):
    """Text to ids and back. Instances never change; `fingerprint` names what an id means."""

    kind: str  # "sentencepiece", "json" or "bytes"
    size: int  # ids 0 .. size-1 exist, sentinels included
    sentinels: int
    fingerprint: str  # SHA-256, hexadecimal, of all that decides ids; a spiece.model and its tokenizer.json share one
    pad: int = 0
    eos: int = 1
    unk: int = 2

    @abstractmethod
    def encode(self, text: str) -> list[int]:
        """Ids of one text, without EOS. `<extra_id_0>` in the text becomes that sentinel's id."""

    @abstractmethod
    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of many texts, on all cores; equal to `encode` one by one."""

    def encode_arrays(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `encode_batch`, in arrays of int32, which may be read only: for corpora, where a list would cost time."""
        return [np.fromiter(ids, np.int32, len(ids)) for ids in self.encode_batch(texts)]

    @abstractmethod
    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids: padding and EOS dropped, sentinels kept as `<extra_id_0>`, ids outside 0 .. size-1 left out."""

    @abstractmethod
    def piece(self, index: int) -> str:
        """The written form of one id: a piece of text with its spaces as U+2581, or a name such as `</s>`."""

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the files from which `load(folder)` gives an equal tokenizer, and which transformers reads too."""

    def sentinel(self, n: int) -> int:
        """The id of `<extra_id_n>`: from the top of the ids downward."""
        if not 0 <= n < self.sentinels:
            raise ValueError(f"sentinel {n} does not exist: this tokenizer has {self.sentinels}")
        return self.size - 1 - n

    def known(self, ids: Iterable[int]) -> list[int]:
        """The ids that stand for text: in range, neither padding nor EOS."""
        hidden = (self.pad, self.eos)
        return [int(index) for index in ids if 0 <= index < self.size and index not in hidden]

    def __len__(self) -> int:
        return self.size

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.size} ids, {self.sentinels} sentinels, {self.fingerprint[:12]}>"


def whole(text: str) -> str:
    """Text that UTF-8 can carry: a lone surrogate, as broken JSON escapes leave behind, becomes U+FFFD.

    >>> whole("a\\ud800b") == "a\\ufffdb"
    True
    """
    try:
        text.encode()  # at several times the speed of what mends it
    except UnicodeEncodeError:
        pass
    else:
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def fingerprint_of(**parts: object) -> str:
    """SHA-256 of everything that decides ids, in one canonical writing.

    >>> fingerprint_of(kind="bytes", sentinels=125)[:12]
    '6f3294e5c86d'
    """
    return hashlib.sha256(json.dumps(parts, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def check_layout(origin: str | Path, *, pad: int | None, eos: int | None, unk: int | None) -> None:
    """Refuse a vocabulary whose first ids are not T5's: the models read 0 as padding and 1 as the end."""
    if (pad, eos, unk) != (Tokenizer.pad, Tokenizer.eos, Tokenizer.unk):
        raise UserError(
            f"{origin} has padding {pad}, end {eos} and unknown {unk}; a T5 tokenizer has 0, 1 and 2: "
            "use a T5 vocabulary or train one with `deepnarrow tokenizer train`"
        )
