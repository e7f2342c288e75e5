"""Building a corpus: read documents, tokenise them in batches, append them to shards; resumable at any moment.

A checkpoint (`progress.json`) says which source and how many of its documents are on disk for good. Killed and started
again, the build cuts its files back to the last checkpoint and goes on there, so that the result is, byte for byte,
that of a build never interrupted: no file holds a time, a host or a count of attempts.

With a pipeline (pipeline.py) the sources are first cleaned into parts, below `.pipeline/` in the corpus' folder; the
parts are then tokenised in the same way. That folder goes when the corpus is whole.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deepnarrow import __version__
from deepnarrow.errors import UserError
from deepnarrow.files import read_json, sha256, whole_folder, write_json
from deepnarrow.progress import Bar, progress
from deepnarrow.text import pipeline
from deepnarrow.text.cleaning import Settings
from deepnarrow.text.corpus import FORMAT, HELD_OUT, MANIFEST, PROGRESS, TOKENIZER, Corpus, open_corpus
from deepnarrow.text.pipeline import Execution
from deepnarrow.text.shards import DOCUMENTS, Documents, Stream, concatenated, joined, only, token_dtype, without
from deepnarrow.text.sources import READABLE, Memory, Spec, files, is_builtin, unchecked_documents
from deepnarrow.text.vocabulary import whole

if TYPE_CHECKING:
    from deepnarrow.text.tokenizer import Tokenizer

BATCH_DOCUMENTS, BATCH_CHARACTERS = 1024, 2**21  # what one call of encode_batch gets at most, whichever comes first
CHECKPOINT_TOKENS = 2**22  # some seconds of tokenising: what a kill costs at most
PARTS = ("train", "held_out")
WORK = ".pipeline"  # where a pipeline keeps what it has done, until the corpus is whole
PACKED = 0.4  # bytes of a compressed file per byte of its text, until the first such file is done


class Salient(NamedTuple):
    """Store examples of salient span masking instead of texts (objectives/salient.py)."""

    form: str
    tagger: str = "builtin"

    def check(self) -> None:
        """Refuse a form or a tagger that does not exist."""
        from deepnarrow.text.objectives.salient import check_form
        from deepnarrow.text.salient.taggers import load

        check_form(self.form)
        load(self.tagger)


@dataclass(frozen=True)
class Plan:
    """Everything that decides a corpus. Two equal plans build equal bytes."""

    tokenizer: str  # fingerprint
    vocab: int
    dtype: str
    field: str
    shard_tokens: int
    held_out_every: int | None  # one document in so many
    sources: list[dict[str, Any]]  # source, file, bytes, sha256
    salient: dict[str, str] | None = None  # form and tagger
    pipeline: dict[str, Any] | None = None  # settings, and the number of tasks

    def written(self) -> dict[str, Any]:
        """As in the manifest, where what a plain corpus does not have is left out."""
        return {key: value for key, value in asdict(self).items() if value is not None or key == "held_out_every"}


@dataclass
class State:
    """How far a build is; what stands in pairs is for training, then held out."""

    source: int  # number of the source being read
    read: int  # documents taken from it, empty ones too
    source_documents: list[list[int]]  # documents written, by source
    text_bytes: list[int] = field(default_factory=lambda: [0, 0])
    streams: Sequence[Any] = (None, None)  # of Stream.checkpoint

    @classmethod
    def fresh(cls, sources: int) -> "State":
        return cls(0, 0, [[0] * sources, [0] * sources])


class Piece(NamedTuple):
    """A batch of documents of one source, tokenised; pairs as in State."""

    ids: tuple[Documents, Documents]
    text_bytes: tuple[int, int]
    read: int


def build(
    specs: Sequence[Spec],
    tokenizer: "Tokenizer",
    out: str | Path,
    *,
    field: str = "text",
    shard_tokens: int = 2**24,
    held_out: float = 0.0,
    salient: Salient | None = None,
    cleaning: Settings | None = None,
    execution: Execution | None = None,
    tasks: int | None = None,
) -> Corpus:
    """Build `out` from `specs`, go on with an interrupted build of the same, or open it if it is finished.

    `held_out` is the share of documents kept out of training, chosen by a hash of their text, so that copies of one
    document stay together. `salient` stores examples instead of texts. `cleaning` runs a pipeline first, in `tasks`
    tasks (by default one for each 64 MB of sources) where `execution` says.

    Raises UserError when `out` belongs to other sources, another tokenizer or other options, or when the sources hold
    no text; OSError (a full disk) leaves a folder to go on from.
    """
    out = Path(out)
    execution = execution or Execution()
    if cleaning:
        pipeline.check(cleaning, execution)
    plan = make_plan(
        specs, tokenizer, text_field=field, shard_tokens=shard_tokens, held_out=held_out,
        salient=salient, cleaning=cleaning, tasks=tasks,
    )  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    with _alone(out):
        if (out / MANIFEST).exists():
            open_corpus(out)
            _require_same(out, read_json(out / MANIFEST)["plan"], plan)
        else:
            memory = {str(spec): spec for spec in specs if isinstance(spec, Memory)}
            begun = _Build(plan, tokenizer, out, memory)
            if cleaning:
                begun.clean(cleaning, execution)
            begun.run()
        (out / PROGRESS).unlink(missing_ok=True)
        shutil.rmtree(out / WORK, ignore_errors=True)
    return open_corpus(out)


def make_plan(
    specs: Sequence[Spec],
    tokenizer: "Tokenizer",
    *,
    text_field: str,
    shard_tokens: int,
    held_out: float,
    salient: Salient | None = None,
    cleaning: Settings | None = None,
    tasks: int | None = None,
) -> Plan:
    """Look at the sources and hash their files."""
    if not specs:
        raise UserError("name at least one source: a file, a folder, builtin:python or hub:owner/name")
    if shard_tokens < 1:
        raise UserError(f"shard_tokens is the number of tokens per file; it must be at least 1, not {shard_tokens}")
    if tasks is not None and tasks < 1:
        raise UserError(f"tasks is into how many tasks the sources are dealt; it must be at least 1, not {tasks}")
    if not 0 <= held_out <= 0.5:
        raise UserError(f"held_out is the share of documents kept out of training: between 0 and 0.5, not {held_out}")
    if salient:
        salient.check()
    sources = _look_at(specs)
    return Plan(
        tokenizer=tokenizer.fingerprint,
        vocab=tokenizer.size,
        dtype=token_dtype(tokenizer.size).name,
        field=text_field,
        shard_tokens=shard_tokens,
        held_out_every=round(1 / held_out) if held_out else None,
        sources=sources,
        salient=salient._asdict() if salient else None,
        pipeline=_pipeline(cleaning, pipeline.groups_of([source["bytes"] for source in sources], tasks))
        if cleaning
        else None,
    )


def _pipeline(cleaning: Settings, groups: list[list[int]]) -> dict[str, Any]:
    words = "\n".join(cleaning.bad_words).encode()
    return {
        "name": cleaning.pipeline,
        "language": cleaning.language,
        "dedup": cleaning.dedup,
        "bad_words": hashlib.sha256(words).hexdigest() if words else None,
        "tasks": len(groups),
    }


class _Build:
    def __init__(self, plan: Plan, tokenizer: "Tokenizer", out: Path, memory: Mapping[str, Memory]) -> None:
        self.plan, self.tokenizer, self.out, self.memory = plan, tokenizer, out, memory
        self.cleaned: dict[str, Any] | None = None  # what each rule did
        self.state = self._resume()
        self._save_tokenizer(out)
        dtype = token_dtype(tokenizer.size)
        self.streams = (
            Stream(out, dtype, plan.shard_tokens, self.state.streams[0]),
            Stream(out / HELD_OUT, dtype, plan.shard_tokens, self.state.streams[1]),
        )

    def clean(self, cleaning: Settings, execution: Execution) -> None:
        assert self.plan.pipeline is not None
        sources: list[Spec] = [self._source(source) for source in self.plan.sources]
        groups = pipeline.groups_of([source["bytes"] for source in self.plan.sources], self.plan.pipeline["tasks"])
        work = (self.out / WORK).resolve()  # a task may run elsewhere
        try:
            self.cleaned = pipeline.run(sources, groups, self.plan.field, cleaning, execution, work)
        except BaseException:
            for stream in self.streams:
                stream.abandon()
            raise

    def run(self) -> None:
        try:
            self._read_sources()
            for stream in self.streams:
                stream.finish()
        finally:
            for stream in self.streams:
                stream.abandon()
        if not self.streams[0].tokens:
            self._refuse_empty()
        if self.streams[1].tokens:
            self._save_tokenizer(self.out / HELD_OUT)
            self._finish(1)
        else:
            shutil.rmtree(self.out / HELD_OUT)
        for left in list(self.out.glob("**/.*.tmp")):  # of an earlier process, killed while it wrote one
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        self._finish(0)

    def _source(self, source: dict[str, Any]) -> Spec:
        return self.memory.get(source["source"]) or source["file"] or source["source"]

    def _texts(self, number: int) -> Iterator[str]:
        if self.cleaned is not None:
            return pipeline.texts(self.out / WORK, number)
        spec = self._source(self.plan.sources[number])
        return (document.text for document in unchecked_documents(spec, self.plan.field))

    def _resume(self) -> State:
        path = self.out / PROGRESS
        if path.exists():
            found = read_json(path)
            if found["format"] != FORMAT:
                raise UserError(f"{self.out} was begun by another version of deepnarrow; delete it and build it anew")
            state = State(**found["state"])
            begun = state.streams[0] is not None or any(self.out.glob(f"{WORK}/*/completions/*"))
            if not begun and found["plan"] != self.plan.written():
                self._discard()  # nothing was written yet: a mistyped option should not cost a new folder
            else:
                _require_same(self.out, found["plan"], self.plan)
                return state
        if any(not entry.name.startswith(".") for entry in self.out.iterdir()):
            raise UserError(f"{self.out} is not empty and is not a corpus; name a new folder with --out")
        state = State.fresh(len(self.plan.sources))
        self._write_progress(state)  # the first file of all: it marks the folder as ours
        return state

    def _read_sources(self) -> None:
        state, plan = self.state, self.plan
        meter = _Meter(plan.sources, state.source, self.tokens)
        encode = _encoder(self.tokenizer, Salient(**plan.salient) if plan.salient else None)
        every = min(plan.shard_tokens, CHECKPOINT_TOKENS)
        checkpoint_at = self.tokens + every
        with progress("corpus", meter.total, done=meter.done) as bar:
            for number in range(state.source, len(plan.sources)):
                if number > state.source:
                    state.source, state.read = number, 0
                meter.begin(number)
                texts = islice(self._texts(number), state.read, None)
                for piece in _pieces(texts, encode, self.streams[0].dtype, plan.held_out_every):
                    self._add(piece)
                    meter.advance(bar, piece, self.tokens)
                    if self.tokens >= checkpoint_at:
                        self._checkpoint()
                        checkpoint_at = self.tokens + every
                meter.end(bar)

    @property
    def tokens(self) -> int:
        return self.streams[0].tokens + self.streams[1].tokens

    def _add(self, piece: Piece) -> None:
        state = self.state
        for part, stream in enumerate(self.streams):
            stream.add(piece.ids[part])
            state.source_documents[part][state.source] += len(piece.ids[part].lengths)
            state.text_bytes[part] += piece.text_bytes[part]
        state.read += piece.read

    def _checkpoint(self) -> None:
        train, held_out = self.streams
        self._write_progress(replace(self.state, streams=(train.checkpoint(), held_out.checkpoint())))

    def _write_progress(self, state: State) -> None:
        write_json(self.out / PROGRESS, {"format": FORMAT, "plan": self.plan.written(), "state": asdict(state)})

    def _save_tokenizer(self, folder: Path) -> None:
        if not (folder / TOKENIZER).exists():
            with whole_folder(folder / TOKENIZER) as temporary:
                self.tokenizer.save(temporary)

    def _finish(self, part: int) -> None:
        stream = self.streams[part]
        manifest = {
            "format": FORMAT,
            "part": PARTS[part],
            "tokens": stream.tokens,
            "documents": stream.documents,
            "text_bytes": self.state.text_bytes[part],
            "plan": self.plan.written(),
            "source_documents": self.state.source_documents[part],
            "shards": [shard._asdict() for shard in stream.shards],
            "documents_sha256": sha256(stream.folder / DOCUMENTS),
            "deepnarrow": __version__,
        }
        if self.cleaned is not None:
            manifest["cleaning"] = self.cleaned
        write_json(stream.folder / MANIFEST, manifest)

    def _discard(self) -> None:
        """Remove what a build wrote, the mark that the folder is ours last."""
        for folder in (TOKENIZER, HELD_OUT, WORK):
            shutil.rmtree(self.out / folder, ignore_errors=True)
        for path in (*self.out.glob("shard-*.bin"), self.out / DOCUMENTS, self.out / PROGRESS):
            path.unlink(missing_ok=True)

    def _refuse_empty(self) -> None:
        """Say why there is nothing, and leave nothing behind, so that the next try starts afresh."""
        self._discard()
        where = ", ".join(dict.fromkeys(source["source"] for source in self.plan.sources))
        if self.streams[1].tokens:
            raise UserError(f"{where}: every document fell to the held-out part; add text or lower --held-out")
        if self.cleaned and self.cleaned["read"].get("documents"):
            raise UserError(
                f"{where}: the pipeline left none of {self.cleaned['read']['documents']:,} documents; "
                "it is made for web pages in the language of --language"
            )
        if self.plan.salient:
            raise UserError(f"{where}: the tagger found no name and no date to hide; check the source and --tagger")
        raise UserError(f"{where}: no text found; check the source and --field (now {self.plan.field!r})")


def _look_at(specs: Sequence[Spec]) -> list[dict[str, Any]]:
    """Every input file with its size and hash; a source without files as itself."""
    found: list[dict[str, Any]] = []
    for given in specs:
        spec = str(given)
        if isinstance(given, Memory) or is_builtin(spec):
            texts = [document.text.encode() for document in unchecked_documents(given, "text")]
            found.append(_source(spec, None, sum(map(len, texts)), hashlib.sha256(b"\0".join(texts)).hexdigest()))
        elif spec.startswith("hub:"):
            found.append(_source(spec, None, None, None))
        else:
            found += [_source(spec, str(path), path.stat().st_size, None) for path in files(spec, READABLE)]
    hashed = [source for source in found if source["file"]]
    with progress("hash sources", sum(source["bytes"] for source in hashed)) as bar:
        for source in hashed:
            source["sha256"] = sha256(Path(source["file"]))
            bar.advance(source["bytes"], source["file"])
    return found


def _source(source: str, file: str | None, size: int | None, digest: str | None) -> dict[str, Any]:
    return {"source": source, "file": file, "bytes": size, "sha256": digest}


class _Meter:
    """How much is read, in bytes of the input files: guessed from the text within a file, exact after each.

    Where a source has no files, documents are counted instead, towards no known total.
    """

    def __init__(self, sources: Sequence[dict[str, Any]], first: int, tokens: int) -> None:
        sizes = [source["bytes"] for source in sources]
        self.total = None if None in sizes else sum(sizes)
        self.done = 0 if self.total is None else sum(sizes[:first])
        self.sources, self.left = sources, 0
        self.began, self.tokens = time.monotonic(), tokens

    def begin(self, number: int) -> None:
        self.left = self.sources[number]["bytes"] or 0
        packed = (self.sources[number]["file"] or "").endswith((".gz", ".zst", ".parquet"))
        self.ratio = PACKED if packed else 1.0

    def advance(self, bar: Bar, piece: Piece, tokens: int) -> None:
        step = piece.read
        if self.total is not None:
            step = min(int(sum(piece.text_bytes) * self.ratio), self.left)
            self.left -= step
        rate = (tokens - self.tokens) / max(time.monotonic() - self.began, 1e-9)
        bar.advance(step, f"{tokens:,} tokens, {rate:,.0f}/s")

    def end(self, bar: Bar) -> None:
        if self.total is not None:
            bar.advance(self.left)


class Found(NamedTuple):
    """What a batch of texts became: documents, and how many of them each text has given."""

    documents: Documents  # none is empty
    counts: np.ndarray


Encode = Callable[[list[str], np.dtype], Found]


def _encoder(tokenizer: "Tokenizer", salient: Salient | None) -> Encode:
    if salient is None:
        return _Ordinary(tokenizer)
    from deepnarrow.text.objectives.salient import documents
    from deepnarrow.text.salient.taggers import load

    tagger = load(salient.tagger)

    def encode(texts: list[str], dtype: np.dtype) -> Found:
        found = [documents(text, tokenizer, tagger, salient.form) for text in texts]
        return Found(joined(list(chain.from_iterable(found)), dtype), np.array([len(of_text) for of_text in found]))

    return encode


def _pieces(texts: Iterable[str], encode: Encode, dtype: np.dtype, held_out_every: int | None) -> Iterator[Piece]:
    for batch in _batches(texts):
        clean = [whole(text) for text in batch]
        found = encode(clean, dtype)
        part = np.full(len(batch), -1)  # of no part: an empty text, or white space alone, is no document
        sizes = [0, 0]
        for index, text in enumerate(clean):
            if found.counts[index] and not text.isspace():
                if held_out_every is None:
                    part[index] = 0
                    sizes[0] += len(text) if text.isascii() else len(text.encode())
                else:
                    data = text.encode()
                    part[index] = held = int(_hash(data) % held_out_every == 0)
                    sizes[held] += len(data)
        parts = np.repeat(part, found.counts)
        ids = only(found.documents, parts == 0), only(found.documents, parts == 1)
        yield Piece(ids, (sizes[0], sizes[1]), len(batch))


class _Ordinary:
    """Ids less padding, EOS and sentinels, which a text has if it writes out their names.

    Inside a row they would be read as what they are not: a page about T5 that says `<pad>` would end there.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self.tokenizer = tokenizer
        sentinels = [tokenizer.sentinel(n) for n in range(tokenizer.sentinels)]
        self.special = np.zeros(tokenizer.size, bool)
        self.special[[tokenizer.pad, tokenizer.eos, *sentinels]] = True

    def __call__(self, texts: list[str], dtype: np.dtype) -> Found:
        documents = concatenated(self.tokenizer.encode_arrays(texts), dtype)
        special = self.special[documents.ids]
        if special.any():
            documents = without(documents, special)
        some = documents.lengths > 0
        return Found(documents._replace(lengths=documents.lengths[some]), some.astype(np.intp))


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        batch.append(text)
        characters += len(text)
        if len(batch) == BATCH_DOCUMENTS or characters >= BATCH_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _hash(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def _require_same(out: Path, found: dict[str, Any], plan: Plan) -> None:
    """Refuse a folder that another plan made. Only what files hold counts, not where they lie."""
    found, wanted = {"salient": None, "pipeline": None, **found}, asdict(plan)
    what = {
        "tokenizer": "another tokenizer",
        "field": f"--field {found['field']}",
        "shard_tokens": f"--shard-tokens {found['shard_tokens']}",
        "salient": "--salient {form} --tagger {tagger}".format(
            **found["salient"] or {"form": "none", "tagger": "none"}
        ),
        "pipeline": _words(found["pipeline"]),
        "held_out_every": f"--held-out {1 / found['held_out_every'] if found['held_out_every'] else 0:.4g}",
    }
    differences = [words for key, words in what.items() if found[key] != wanted[key]]
    if list(map(_contents, found["sources"])) != list(map(_contents, wanted["sources"])):
        differences.append(f"other sources ({_first_difference(found['sources'], wanted['sources'])})")
    if differences:
        raise UserError(
            f"{out} was built with {' and '.join(differences)}; name another folder with --out, "
            "or delete this one to build it anew"
        )


def _words(pipeline: dict[str, Any] | None) -> str:
    if pipeline is None:
        return "no --pipeline"
    words = "--pipeline {name} --language {language} --dedup {dedup} --tasks {tasks}".format(**pipeline)
    return f"{words} and a list of bad words" if pipeline["bad_words"] else words


def _contents(source: dict[str, Any]) -> str:
    return source["sha256"] or source["source"]


def _first_difference(found: list[dict[str, Any]], wanted: list[dict[str, Any]]) -> str:
    for there, here in zip_longest(found, wanted):
        if there is None:
            return f"{here['file'] or here['source']} is new"
        if here is None:
            return f"{there['file'] or there['source']} is not named now"
        if _contents(there) != _contents(here):
            name, now = there["file"] or there["source"], here["file"] or here["source"]
            return f"{name} has changed" if name == now else f"{name} then, {now} now"
    return "none"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder while the block runs: two builds at once would mix their tokens."""
    try:
        import fcntl
    except ImportError:  # Windows has no such lock
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{folder} is being built by another process; wait for it or name another folder") from None
        yield
    finally:
        os.close(handle)
