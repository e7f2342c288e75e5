"""The steps of a pipeline that are ours, in datatrove's form: they read sources, clean, count, and keep parts.

A part holds what is left of one source, as JSONL: its file appears whole or not at all. What a step counts is written
when the last document has passed, whole too, so that a task that was killed leaves nothing to be counted twice.
"""

import io
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zstandard
from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep

from deepnarrow.errors import UserError
from deepnarrow.files import write_json, write_text
from deepnarrow.text.cleaning import Counts, clean
from deepnarrow.text.cleaning.rule import Rule
from deepnarrow.text.records import read_records
from deepnarrow.text.sources import Spec, unchecked_documents
from deepnarrow.text.vocabulary import whole

Numbered = tuple[int, Spec]  # a source and its number in the plan
Documents = Iterable[Document]


class ReadSources(PipelineStep):
    """The documents of the sources of a task. `groups[rank]` lists them."""

    type, name = "reader", "sources"

    def __init__(self, groups: Sequence[Sequence[Numbered]], field: str, failures: Path) -> None:
        super().__init__()
        self.groups, self.field, self.failures = groups, field, failures

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        try:
            for number, spec in self.groups[rank]:
                for found in unchecked_documents(spec, self.field):
                    text = whole(found.text)
                    if text and not text.isspace():
                        yield Document(text=text, id=found.source, metadata={"source": number})
        except UserError as error:
            write_text(self.failures / f"{rank:05d}.txt", str(error))  # whoever runs the task, the user reads it
            raise


class Clean(PipelineStep):
    type, name = "filter", "rules"

    def __init__(self, rules: tuple[Rule, ...], counts: Path) -> None:
        super().__init__()
        self.rules, self.counts = rules, counts

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        counts: Counts = Counter()
        for document in data:
            text = clean(document.text, self.rules, counts)
            if text:
                document.text = text
                yield document
        found: dict[str, dict[str, int]] = {}
        for (rule, what), number in sorted(counts.items()):
            found.setdefault(rule, {})[what] = number
        write_json(self.counts / f"{rank:05d}.json", found)


class Tally(PipelineStep):
    """Counts what passes."""

    type, name = "stats", "tally"

    def __init__(self, counts: Path) -> None:
        super().__init__()
        self.counts = counts

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        documents = characters = 0
        for document in data:
            documents += 1
            characters += len(document.text)
            yield document
        write_json(self.counts / f"{rank:05d}.json", {"documents": documents, "characters": characters})


class WriteParts(PipelineStep):
    """One part for each source of the task, also for one of which nothing is left."""

    type, name = "writer", "parts"

    def __init__(self, groups: Sequence[Sequence[Numbered]], folder: Path) -> None:
        super().__init__()
        self.numbers = [[number for number, _ in group] for group in groups]
        self.folder = folder

    def run(self, data: Documents, rank: int = 0, world_size: int = 1) -> None:
        waiting = iter(data)
        document = next(waiting, None)
        for number in self.numbers[rank]:
            with whole_part(part(self.folder, number)) as file:
                while document is not None and document.metadata["source"] == number:
                    file.write(json.dumps({"text": document.text}, ensure_ascii=False) + "\n")
                    document = next(waiting, None)
        assert document is None


class ReadParts(PipelineStep):
    type, name = "reader", "parts"

    def __init__(self, groups: Sequence[Sequence[Numbered]], folder: Path) -> None:
        super().__init__()
        self.numbers = [[number for number, _ in group] for group in groups]
        self.folder = folder

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        for number in self.numbers[rank]:
            for index, text in enumerate(read_part(self.folder, number)):
                yield Document(text=text, id=f"{number}/{index}", metadata={"source": number})


def part(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.jsonl.zst"


def read_part(folder: Path, number: int) -> Iterator[str]:
    for record in read_records(part(folder, number)):
        yield record.fields["text"]


@contextmanager
def whole_part(path: Path) -> Iterator[io.TextIOWrapper]:
    """A compressed text file that appears when the block ends, under a name of this process until then."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            with zstandard.ZstdCompressor().stream_writer(raw, closefd=False) as packed:
                text = io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
                yield text
                text.flush()
                text.detach()
            raw.flush()
            os.fsync(raw.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
