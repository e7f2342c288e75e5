"""Writing one stream of tokens as shards, so that a build killed at any moment goes on as if it had not been.

The files only ever grow. A checkpoint syncs them and notes how far each had got; going on cuts them back to that.

    shard-00000.bin    token ids, little-endian, two bytes each where the vocabulary allows, else four; all shards but
    shard-00001.bin    the last hold equally many tokens, so that a position tells its shard by one division
    documents.bin      where each document starts in the stream, in tokens: little-endian, eight bytes each
"""

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.files import sync_folder

DOCUMENTS = "documents.bin"
START = np.dtype("<u8")
SHORT, LONG = np.dtype("<u2"), np.dtype("<u4")
SHORT_VOCABULARY = 2**16


class Shard(NamedTuple):
    file: str
    tokens: int
    sha256: str


class Documents(NamedTuple):
    """Documents behind one another."""

    ids: np.ndarray  # of all, in the type they are stored in
    lengths: np.ndarray  # in tokens, one for each


def joined(documents: Sequence[Sequence[int]], dtype: np.dtype) -> Documents:
    """
    >>> joined([[5, 6], [7]], SHORT)
    Documents(ids=array([5, 6, 7], dtype=uint16), lengths=array([2, 1], dtype=uint64))
    """
    lengths = np.fromiter(map(len, documents), START, count=len(documents))
    ids = np.fromiter(chain.from_iterable(documents), dtype, count=int(lengths.sum()))
    return Documents(ids, lengths)


def concatenated(documents: Sequence[np.ndarray], dtype: np.dtype) -> Documents:
    """As `joined`, of arrays.

    >>> concatenated([np.array([5, 6]), np.array([7])], SHORT)
    Documents(ids=array([5, 6, 7], dtype=uint16), lengths=array([2, 1], dtype=uint64))
    """
    lengths = np.fromiter(map(len, documents), START, count=len(documents))
    return Documents(np.concatenate([np.empty(0, dtype), *documents], dtype=dtype, casting="unsafe"), lengths)


def only(documents: Documents, wanted: np.ndarray) -> Documents:
    """The documents at which `wanted` is true.

    >>> only(joined([[5, 6], [7]], SHORT), np.array([False, True])).ids
    array([7], dtype=uint16)
    """
    if wanted.all():
        return documents
    return Documents(documents.ids[np.repeat(wanted, documents.lengths.astype(np.intp))], documents.lengths[wanted])


def without(documents: Documents, unwanted: np.ndarray) -> Documents:
    """Less the ids at which `unwanted` (one for each id) is true; a document of none but these is left with no id.

    >>> without(joined([[5, 0], [], [0]], SHORT), np.array([False, True, True]))
    Documents(ids=array([5], dtype=uint16), lengths=array([1, 0, 0], dtype=uint64))
    """
    kept = np.concatenate([[0], np.cumsum(~unwanted)])  # before each id, and in all
    ends = np.cumsum(documents.lengths).astype(np.intp)
    lengths = np.diff(kept[ends], prepend=0).astype(START)
    return Documents(documents.ids[~unwanted], lengths)


def token_dtype(vocabulary: int) -> np.dtype:
    """The narrowest type that holds every id.

    >>> token_dtype(32_100).name, token_dtype(250_100).name
    ('uint16', 'uint32')
    """
    return SHORT if vocabulary <= SHORT_VOCABULARY else LONG


def shard_name(number: int) -> str:
    return f"shard-{number:05d}.bin"


class Stream:
    """Appends documents to the shards of one folder. `state` is what an earlier `checkpoint` returned, or None."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int, state: dict[str, Any] | None = None) -> None:
        state = state or {"shards": [], "open_tokens": 0, "documents": 0}
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.shards = [Shard(**shard) for shard in state["shards"]]
        self.documents: int = state["documents"]
        self.tokens = sum(shard.tokens for shard in self.shards) + state["open_tokens"]
        folder.mkdir(parents=True, exist_ok=True)
        self._starts = _cut_back(folder / DOCUMENTS, self.documents * START.itemsize)
        for later in folder.glob("shard-*.bin"):
            if later.name > shard_name(len(self.shards)) or (
                later.name == shard_name(len(self.shards)) and not state["open_tokens"]
            ):
                later.unlink()
        self._shard: BinaryIO | None = None
        self._hash = hashlib.sha256()
        if state["open_tokens"]:
            self._open_shard(state["open_tokens"])

    def add(self, documents: Documents) -> None:
        """Append documents, each at least one token long."""
        lengths, stream = documents.lengths, documents.ids
        self._starts.write((self.tokens + np.cumsum(lengths) - lengths).astype(START).tobytes())
        self.documents += len(lengths)
        while stream.size:
            if self._shard is None:
                self._open_shard(0)
            room = self.shard_tokens - self.tokens % self.shard_tokens
            self._write(stream[:room].tobytes())
            self.tokens += min(room, stream.size)
            stream = stream[room:]
            if self.tokens % self.shard_tokens == 0:
                self._close_shard()

    def checkpoint(self) -> dict[str, Any]:
        """Sync everything to disk; return the state to go on from."""
        _sync(self._starts)
        if self._shard:
            _sync(self._shard)
        sync_folder(self.folder)
        full = sum(shard.tokens for shard in self.shards)
        return {
            "shards": [shard._asdict() for shard in self.shards],
            "open_tokens": self.tokens - full,
            "documents": self.documents,
        }

    def finish(self) -> None:
        """Close the last, shorter shard. The stream cannot be added to any more."""
        if self._shard:
            self._close_shard()
        self.checkpoint()
        self._starts.close()

    def abandon(self) -> None:
        """Let go of the files after an error; what was not synced may be lost, and the next build makes it again."""
        for file in (self._starts, self._shard):
            with suppress(OSError):  # a full disk refuses the rest of the buffer once more
                if file:
                    file.close()

    def _open_shard(self, tokens: int) -> None:
        path = self.folder / shard_name(len(self.shards))
        self._shard = _cut_back(path, tokens * self.dtype.itemsize)
        self._hash = hashlib.sha256(path.read_bytes())

    def _write(self, data: bytes) -> None:
        assert self._shard is not None
        self._shard.write(data)
        self._hash.update(data)

    def _close_shard(self) -> None:
        assert self._shard is not None
        _sync(self._shard)
        self._shard.close()
        self._shard = None
        tokens = self.tokens - sum(shard.tokens for shard in self.shards)
        self.shards.append(Shard(shard_name(len(self.shards)), tokens, self._hash.hexdigest()))


def _cut_back(path: Path, size: int) -> BinaryIO:
    """Open a file for appending after its first `size` bytes; whatever follows them is dropped."""
    path.touch()
    if path.stat().st_size < size:
        raise UserError(f"{path} is shorter than when the build stopped; delete {path.parent} and build it again")
    file = path.open("r+b")
    file.truncate(size)
    file.seek(size)
    return file


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
