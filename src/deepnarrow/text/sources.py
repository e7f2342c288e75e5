"""Where text comes from: files and folders, the standard library of this Python, a hub. One document at a time.

    corpus/            every text and table in it, folders within folders, in sorted order
    notes.txt          the whole file; above 1 MB, cut at blank lines into documents of about 100 kB
    c4.jsonl.zst       one document a line, in the field "text"
    wiki.parquet       one document a row
    crawl.warc.gz      one document a page (see warc.py); also .warc.wet.gz, the text that Common Crawl drew from it
    builtin:python     the English prose in this Python's standard library (see builtin.py)
    builtin:python-train   the same without what the tasks made from it validate and test on
    hub:allenai/c4:en:validation      a data set of the Hugging Face hub, streamed; configuration and split if wanted

Memory stays flat whatever the size. A document's `source` names file and line. Empty documents, and records whose
field is null, are passed over.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from deepnarrow.errors import UserError, nearest
from deepnarrow.text.records import TABLES, Record, read_records
from deepnarrow.text.streams import opened, suffix, text_blocks

TEXTS = (".txt", ".text", ".md")
WARCS = (".warc", ".wet")
READABLE = TEXTS + TABLES + WARCS
TRAIN = "builtin:python-train"
BUILTIN = ("builtin:python", TRAIN)
WHOLE = 2**20  # characters; a longer text file is cut
PIECE = 100_000  # characters at which the next blank line ends a document of a long file
SPLITS = ("train", "validation", "test")
PARQUET_COPY = "refs/convert/parquet"  # of a data set whose own files are a script, which `datasets` no longer runs
BLANK_LINE = re.compile(r"\n[^\S\n]*\n")


class Document(NamedTuple):
    text: str
    source: str  # where it came from: "file.jsonl:17", "builtin:python:json.decoder:JSONDecoder"


@dataclass(frozen=True)
class Memory:
    """Texts that a program already holds, as a source like any other. The name is for messages and provenance.

    >>> [document.source for document in documents(Memory("letters", ["Dear Ada,", "Dear Charles,"]))]
    ['memory:letters:1', 'memory:letters:2']
    """

    name: str
    texts: Sequence[str] = field(repr=False)

    def __str__(self) -> str:
        return f"memory:{self.name}"


Spec = str | Path | Memory


def documents(spec: Spec, *, field: str = "text") -> Iterator[Document]:
    """The documents of one source. `field` names the column of text in tables.

    Raises UserError for a missing file, text that is not UTF-8 (with the byte), a broken line (with its number), a
    missing field (with those there are), and a source without any text.
    """
    found = False
    for document in unchecked_documents(spec, field):
        if document.text.strip():
            found = True
            yield document
    if not found:
        raise UserError(f"{spec} holds no text: it is empty, or every document in it is blank")


def rows(spec: str | Path) -> Iterator[dict[str, Any]]:
    """The records of one source as dicts: JSONL, a JSON list, CSV, TSV, Parquet, a folder of these, builtin or hub."""
    name = str(spec)
    if is_builtin(name):
        from deepnarrow.text import builtin

        yield from builtin.records()
    elif name.startswith("hub:"):
        yield from (record.fields for record in hub_records(name))
    else:
        for path in files(spec, TABLES):
            yield from (record.fields for record in read_records(path))


def unchecked_documents(spec: Spec, field: str) -> Iterator[Document]:
    name = str(spec)
    if isinstance(spec, Memory):
        for number, text in enumerate(spec.texts, start=1):
            if not isinstance(text, str):
                raise UserError(f"{spec}:{number} is a {type(text).__name__}, not text")
            yield Document(text, f"{spec}:{number}")
    elif is_builtin(name):
        from deepnarrow.text import builtin

        found = builtin.training_documents() if name == TRAIN else builtin.documents()
        yield from (Document(text, f"builtin:python:{source}") for text, source in found)
    elif name.startswith("hub:"):
        for record in hub_records(name):
            yield Document(text_of(record, field, name), f"{name}:{record.number}")
    else:
        for path in files(spec, READABLE):
            if suffix(path) in WARCS:
                from deepnarrow.text import warc

                for number, text in warc.pages(path):
                    yield Document(text, f"{path}:{number}")
            elif suffix(path) in TABLES:
                for record in read_records(path, [field]):
                    yield Document(text_of(record, field, path), f"{path}:{record.number}")
            else:
                yield from text_file(path)


def is_builtin(name: str) -> bool:
    if name.startswith("builtin:") and name not in BUILTIN:
        raise UserError(f"no built-in text named {name}; {nearest(name, BUILTIN)}")
    return name in BUILTIN


def text_of(record: Record, field: str, origin: str | Path) -> str:
    if field not in record.fields:
        raise UserError(
            f"{origin}:{record.number} has no field {field!r}; its fields are {', '.join(record.fields) or 'none'}: "
            "name the right one with --field"
        )
    text = record.fields[field]
    if text is not None and not isinstance(text, str):
        raise UserError(f"{origin}:{record.number} holds a {type(text).__name__} in field {field!r}, not text")
    return text or ""


def files(spec: str | Path, kinds: tuple[str, ...]) -> list[Path]:
    """The one file, or a folder's files of these kinds in the order of their paths; hidden ones are left out."""
    path = Path(spec)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"no such file or folder: {spec} (or builtin:python, or hub:OWNER/NAME)")
    found = sorted(
        (entry for entry in path.rglob("*") if suffix(entry) in kinds and entry.is_file()),
        key=lambda entry: entry.relative_to(path).parts,
    )
    shown = [entry for entry in found if not any(part.startswith(".") for part in entry.relative_to(path).parts)]
    if not shown:
        raise UserError(f"no file in {spec} ends in {', '.join(kinds)} (or these with .gz or .zst)")
    return shown


def text_file(path: Path) -> Iterator[Document]:
    """One document, or a long file's pieces with the lines they start on."""
    buffer, line, cut = "", 1, False
    with opened(path) as file:
        for block in text_blocks(file, path):
            buffer += block
            start = 0
            while len(buffer) - start > WHOLE:
                cut = True
                end = end_of_piece(buffer, start)
                yield Document(buffer[start:end].strip(), f"{path}:{line}")
                line += buffer.count("\n", start, end)
                start = end
            buffer = buffer[start:]
    start = 0
    while cut and len(buffer) - start > 2 * PIECE:
        end = end_of_piece(buffer, start)
        yield Document(buffer[start:end].strip(), f"{path}:{line}")
        line += buffer.count("\n", start, end)
        start = end
    yield Document(buffer[start:].strip(), f"{path}:{line}" if cut else str(path))


def end_of_piece(text: str, start: int) -> int:
    """Where a piece ends: behind the first blank line after PIECE characters, else a line, else a word, else there."""
    last = min(start + WHOLE, len(text))
    if found := BLANK_LINE.search(text, start + PIECE, last):
        return found.end()
    for mark in ("\n", " "):
        place = text.rfind(mark, start + PIECE, last)
        if place >= 0:
            return place + 1
    return last


def hub_records(spec: str) -> Iterator[Record]:
    """Stream a data set: hub:OWNER/NAME, then :CONFIGURATION and :SPLIT where wanted; by default the split "train".

    hub:OWNER/NAME@REVISION reads another revision. The hub's own Parquet copy is one (`PARQUET_COPY`); in it each
    configuration is a folder.
    """
    whole, *parts = spec.removeprefix("hub:").split(":")
    name, _, revision = whole.partition("@")
    if not name or len(parts) > 2 or name.count("/") > 1:
        raise UserError(
            f"cannot read {spec}; write hub:OWNER/NAME, hub:OWNER/NAME:SPLIT or hub:OWNER/NAME:CONFIG:SPLIT"
        )
    split = parts.pop() if parts and (len(parts) == 2 or parts[0] in SPLITS) else "train"
    config = parts[0] if parts else None
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"reading {spec} needs the package `datasets`: pip install 'deepnarrow[data]', or give a local file"
        ) from None
    chosen = {"revision": revision} if revision else {}
    if revision == PARQUET_COPY and config:
        chosen["data_dir"], config = config, None
    try:
        for number, fields in enumerate(load_dataset(name, config, split=split, streaming=True, **chosen), start=1):
            yield Record(number, dict(fields))
    except UserError:
        raise
    except Exception as error:  # network, missing data set, wrong split: the library raises many kinds
        reason = " ".join(str(error).split())[:300]
        raise UserError(
            f"cannot read {spec} from the hub ({type(error).__name__}: {reason}); "
            "it needs the network and the right names, or give local files"
        ) from None
