"""Files as records, one dict each: JSONL, a JSON list, CSV, TSV, Parquet; each also as .gz or .zst. One at a time.

A file ending in .json holds either one list or, as C4's shards do, one object a line; its first character tells.
"""

import csv
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from deepnarrow.errors import UserError
from deepnarrow.text.streams import COMPRESSED, opened, suffix, text_blocks, text_lines

TABLES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
ROWS_AT_ONCE = 1024  # of a Parquet file
LONGEST_FIELD = 2**30  # characters in one CSV field


class Record(NamedTuple):
    """`number` is the line the record stands on (its row in a Parquet file or a JSON list), from 1."""

    number: int
    fields: dict[str, Any]


def read_records(path: Path, columns: list[str] | None = None) -> Iterator[Record]:
    """Every record of one file, in order. `columns` spares a Parquet file from reading others."""
    kind = suffix(path)
    if kind == ".parquet":
        yield from parquet(path, columns)
        return
    if kind not in TABLES:
        raise UserError(f"{path} is no table of records: expected {', '.join(TABLES)}, each also .gz or .zst")
    with opened(path) as file:
        if kind in (".csv", ".tsv"):
            yield from table(file, path, kind)
        elif kind == ".json" and starts_list(path):
            yield from json_list(file, path)
        else:
            yield from json_lines(file, path)


def json_lines(file: BinaryIO, path: Path) -> Iterator[Record]:
    for number, line in text_lines(file, path):
        try:
            fields = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number} is not valid JSON ({error.msg} at column {error.colno})") from None
        except RecursionError:
            raise UserError(f"{path}:{number} is nested too deeply to be read") from None
        yield Record(number, checked(fields, f"{path}:{number}"))


def starts_list(path: Path) -> bool:
    with opened(path) as file:
        return file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"["


def json_list(file: BinaryIO, path: Path) -> Iterator[Record]:
    try:
        items = json.loads("".join(text_blocks(file, path)))
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno} is not valid JSON ({error.msg} at column {error.colno})") from None
    for number, fields in enumerate(items, start=1):
        yield Record(number, checked(fields, f"{path}:{number}"))


def checked(fields: Any, place: str) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise UserError(f"{place} holds a {type(fields).__name__}, not an object with named fields")
    return fields


def table(file: BinaryIO, path: Path, kind: str) -> Iterator[Record]:
    """CSV as RFC 4180 quotes it; in TSV a quotation mark is a letter like any other, as in the files of GLUE."""
    csv.field_size_limit(LONGEST_FIELD)
    lines = lines_kept(file, path)
    if kind == ".csv":
        reader = csv.reader(lines, strict=True)
    else:
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    header: list[str] | None = None
    place = 1
    try:
        for row in reader:
            if row and header is None:
                header = row
                if len(set(header)) < len(header):
                    raise UserError(f"{path}:{place} names a column twice: {', '.join(header)}")
            elif row and header is not None:
                if len(row) != len(header):
                    raise UserError(f"{path}:{place} has {len(row)} fields, the header has {len(header)}")
                yield Record(place, dict(zip(header, row, strict=True)))
            place = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path}:{place} is not valid {kind[1:].upper()} ({error})") from None


def lines_kept(file: BinaryIO, path: Path) -> Iterator[str]:
    """Lines with their ends, since a quoted CSV field may hold some."""
    rest = ""
    for block in text_blocks(file, path):
        lines = (rest + block).split("\n")
        rest = lines.pop()
        for line in lines:
            yield line + "\n"
    if rest:
        yield rest


def parquet(path: Path, columns: list[str] | None) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet as library

    with seekable(path) as file:
        try:
            table = library.ParquetFile(file)
            names = table.schema_arrow.names
            wanted = columns if columns and set(columns) <= set(names) else None
            number = 0
            for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, columns=wanted):
                for fields in batch.to_pylist():
                    number += 1
                    yield Record(number, fields)
        except pyarrow.ArrowException as error:
            raise UserError(f"{path} is not a whole Parquet file ({error})") from None


@contextmanager
def seekable(path: Path) -> Iterator[BinaryIO]:
    """Parquet keeps its index at the end: a compressed file is unpacked to a temporary one first."""
    with opened(path) as file:
        if path.suffix not in COMPRESSED:
            yield file
            return
        with tempfile.TemporaryFile() as unpacked:
            shutil.copyfileobj(file, unpacked, 2**20)
            unpacked.seek(0)
            yield unpacked
