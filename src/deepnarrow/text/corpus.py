"""A corpus: documents joined into one stream of token ids, on disk, memory-mapped.

    out/manifest.json    what it was built from and what it holds; written last, so that its presence means finished
    out/shard-00000.bin  the tokens (shards.py)
    out/documents.bin    where each document starts
    out/tokenizer/       the tokenizer, so that the folder needs nothing beside it
    out/held_out/        the same again, for the documents kept out of training
    out/progress.json    only while the build is unfinished: how far it got

Documents follow one another with nothing between them, as in T5's pretraining (`t5/data/preprocessors.py`,
reduce_concat_tokens).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, sha256
from deepnarrow.progress import progress
from deepnarrow.text.shards import DOCUMENTS, START, Shard, shard_name

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer import Tokenizer

FORMAT = 1
MANIFEST, PROGRESS = "manifest.json", "progress.json"
TOKENIZER, HELD_OUT = "tokenizer", "held_out"
OPEN_SHARDS = 64  # mapped at most: 2 GB at the usual size of shards


@dataclass(frozen=True, kw_only=True)
class Source:
    """One input file, or one whole source where it has no files (`builtin:python`)."""

    source: str  # as it was given on the command line
    file: str | None
    bytes: int | None
    sha256: str | None
    documents: int  # of this corpus that came from it


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """An opened corpus, read only. `tokens` ids below `vocab`, in `documents` documents."""

    folder: Path
    tokens: int
    documents: int
    text_bytes: int  # of UTF-8, before tokenising
    vocab: int  # the tokenizer's size, sentinels included
    fingerprint: str  # the tokenizer's
    dtype: np.dtype
    shard_tokens: int
    shards: tuple[Shard, ...] = dataclasses.field(repr=False)
    documents_sha256: str
    sources: tuple[Source, ...] = dataclasses.field(repr=False)
    built_with: str  # version of this package
    kind: str = "text"  # or "salient": each document is the ids of an example's inputs, EOS, the ids of its target
    salient: dict[str, str] | None = None  # form and tagger, where kind is "salient"
    pipeline: dict[str, Any] | None = None  # what cleaned the text, if anything did
    cleaning: dict[str, Any] | None = dataclasses.field(default=None, repr=False)  # what each of its rules dropped
    _maps: dict[int, np.ndarray] = dataclasses.field(default_factory=dict, repr=False, compare=False)

    def rows(self, length: int) -> int:
        """How many rows of `length` tokens the stream holds."""
        return self.tokens // length

    def row(self, index: int, length: int) -> np.ndarray:
        """Row `index` as int32 [length]. It may span documents and shards."""
        return self.read(np.array([index]), length)[0]

    def read(self, indices: np.ndarray, length: int) -> np.ndarray:
        """Several rows as int32 [B, length]. Raises IndexError outside 0..rows(length)-1."""
        starts = np.asarray(indices, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() >= self.rows(length)):
            raise IndexError(f"{self.folder} has {self.rows(length)} rows of {length} tokens")
        rows = np.empty((len(starts), length), np.int32)
        for row, start in zip(rows, (starts * length).tolist(), strict=True):
            self._copy(start, row)
        return rows

    def span(self, start: int, length: int) -> np.ndarray:
        """`length` tokens of the stream from position `start` on, int32; over documents and shards."""
        if start < 0 or length < 0 or start + length > self.tokens:
            raise IndexError(f"{self.folder} has {self.tokens} tokens")
        tokens = np.empty(length, np.int32)
        self._copy(start, tokens)
        return tokens

    def document(self, number: int) -> np.ndarray:
        """The tokens of one document, int32."""
        if not 0 <= number < self.documents:
            raise IndexError(f"{self.folder} has {self.documents} documents")
        start, end = self.starts[number], self.starts[number + 1] if number + 1 < self.documents else self.tokens
        tokens = np.empty(int(end) - int(start), np.int32)
        self._copy(int(start), tokens)
        return tokens

    def document_at(self, position: int) -> int:
        """The document that the token at `position` of the stream belongs to."""
        if not 0 <= position < self.tokens:
            raise IndexError(f"{self.folder} has {self.tokens} tokens")
        return int(np.searchsorted(self.starts, np.uint64(position), side="right")) - 1

    def source_of(self, document: int) -> Source:
        """The file that a document came from."""
        ends = np.cumsum([source.documents for source in self.sources])
        return self.sources[int(np.searchsorted(ends, document, side="right"))]

    @property
    def starts(self) -> np.ndarray:
        """Where each document starts in the stream, memory-mapped, uint64 [documents]."""
        return self._map(-1, self.folder / DOCUMENTS, START)

    def tokenizer(self) -> "Tokenizer":
        """The tokenizer saved in the folder."""
        from deepnarrow.text.tokenizer import load

        return load(self.folder / TOKENIZER)

    def held_out(self) -> "Corpus | None":
        """The part kept out of training, if the corpus was built with one."""
        folder = self.folder / HELD_OUT
        return open_corpus(folder) if (folder / MANIFEST).exists() else None

    def verify(self) -> None:
        """Read everything and compare its hashes; UserError naming the damaged files."""
        files = [(shard.file, shard.sha256) for shard in self.shards] + [(DOCUMENTS, self.documents_sha256)]
        damaged = []
        with progress("verify", len(files)) as bar:
            for name, expected in files:
                if sha256(self.folder / name) != expected:
                    damaged.append(name)
                bar.advance()
        if self.tokenizer().fingerprint != self.fingerprint:
            damaged.append(TOKENIZER)
        if damaged:
            raise UserError(
                f"{self.folder} is damaged in {', '.join(damaged)}: the contents changed after the build; "
                "delete the folder and build it again"
            )
        if held_out := self.held_out():
            held_out.verify()

    def _copy(self, start: int, out: np.ndarray) -> None:
        done = 0
        while done < len(out):
            number, offset = divmod(start + done, self.shard_tokens)
            piece = self._piece(number, offset, len(out) - done)
            out[done : done + len(piece)] = piece
            done += len(piece)

    def _piece(self, number: int, offset: int, length: int) -> np.ndarray:
        """Tokens of one shard: from its map, or read from the file where there are many shards.

        Maps of many shards would let resident memory grow towards the whole corpus (the page cache seen through them),
        and to map one and let another go for it costs several times as much as to read a row.
        """
        path = self.folder / shard_name(number)
        if len(self.shards) <= OPEN_SHARDS:
            return self._map(number, path, self.dtype)[offset : offset + length]
        return np.fromfile(
            path, self.dtype, min(length, self.shard_tokens - offset), offset=offset * self.dtype.itemsize
        )

    def _map(self, key: int, path: Path, dtype: np.dtype) -> np.ndarray:
        if key not in self._maps:
            # asarray drops the memmap subclass, whose every slice costs microseconds; the map stays its base.
            self._maps[key] = np.asarray(np.memmap(path, dtype, mode="r"))
        return self._maps[key]

    def __reduce__(self) -> tuple[Any, ...]:
        return open_corpus, (self.folder,)  # a worker process maps the files itself


def open_corpus(folder: str | Path) -> Corpus:
    """Open a finished corpus. Only the manifest and the files' sizes are read, so it takes no time.

    Raises UserError when the folder is no corpus, is unfinished, or a file has not the size it was built with.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).exists():
        if (folder / PROGRESS).exists():
            raise UserError(
                f"{folder} is unfinished; run the same `deepnarrow corpus build` again, it goes on by itself"
            )
        raise UserError(f"{folder} is not a corpus (no {MANIFEST}); make one with `deepnarrow corpus build`")
    corpus = _from_manifest(folder, read_json(folder / MANIFEST))
    sizes = {shard.file: shard.tokens * corpus.dtype.itemsize for shard in corpus.shards}
    for name, expected in {**sizes, DOCUMENTS: corpus.documents * START.itemsize}.items():
        path = folder / name
        found = path.stat().st_size if path.exists() else None
        if found != expected:
            is_now = "is missing" if found is None else f"has {found:,} bytes instead of {expected:,}"
            raise UserError(f"{path} {is_now}: the corpus is damaged; delete {folder} and build it again")
    return corpus


def _from_manifest(folder: Path, manifest: Any) -> Corpus:
    path = folder / MANIFEST
    if not isinstance(manifest, dict) or "format" not in manifest:
        raise UserError(f"{path} is not the manifest of a corpus; rebuild {folder} or name another folder")
    if manifest["format"] != FORMAT:
        raise UserError(
            f"{path} has format {manifest['format']}, this version reads format {FORMAT}; "
            "update deepnarrow or build the corpus again"
        )
    try:
        plan, shards = manifest["plan"], tuple(Shard(**shard) for shard in manifest["shards"])
        corpus = Corpus(
            folder=folder,
            tokens=manifest["tokens"],
            documents=manifest["documents"],
            text_bytes=manifest["text_bytes"],
            vocab=plan["vocab"],
            fingerprint=plan["tokenizer"],
            dtype=np.dtype(plan["dtype"]).newbyteorder("<"),
            shard_tokens=plan["shard_tokens"],
            shards=shards,
            documents_sha256=manifest["documents_sha256"],
            sources=tuple(_sources(plan["sources"], manifest["source_documents"])),
            built_with=manifest["deepnarrow"],
            kind="salient" if plan.get("salient") else "text",
            salient=plan.get("salient"),
            pipeline=plan.get("pipeline"),
            cleaning=manifest.get("cleaning"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}: {error}); build the corpus again") from None
    if sum(shard.tokens for shard in shards) != corpus.tokens:
        raise UserError(f"{path} is damaged: its shards do not add up to {corpus.tokens:,} tokens; build it again")
    return corpus


def _sources(sources: Sequence[dict[str, Any]], documents: Sequence[int]) -> Iterator[Source]:
    for source, count in zip(sources, documents, strict=True):
        yield Source(**source, documents=count)
