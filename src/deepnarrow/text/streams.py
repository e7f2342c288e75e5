"""Bytes and text out of files, plain or compressed (.gz, .zst), a block at a time, with errors that name the place."""

import codecs
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NoReturn

import zstandard

from deepnarrow.errors import UserError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK = 2**20  # bytes
COMPRESSED = (".gz", ".zst")
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error, zstandard.ZstdError)


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file's content, decompressed where its name ends in .gz or .zst. A damaged archive is a UserError."""
    try:
        if path.suffix == ".gz":
            with gzip.open(path, "rb") as file:
                yield io.BufferedReader(file, BLOCK)  # its own buffer is of 8 kB: many calls
        elif path.suffix == ".zst":
            with path.open("rb") as packed:
                yield io.BufferedReader(Zstandard(packed), BLOCK)
        else:
            with path.open("rb") as file:
                yield file
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except DAMAGED as error:
        raise UserError(
            f"{path} is damaged or not a {path.suffix} file ({error}); fetch or compress it again"
        ) from None


class Zstandard(io.RawIOBase):
    """The content of all frames of a .zst file. The library's own reader takes a file cut short for a whole one."""

    def __init__(self, packed: BinaryIO) -> None:
        self.packed, self.waiting = packed, memoryview(b"")
        self.frame = zstandard.ZstdDecompressor().decompressobj()
        self.inside = False  # a frame has begun and not ended

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer).cast("B")
        while not self.waiting:
            packed = self.frame.unused_data or self.packed.read(2**14)
            if not packed:
                if self.inside:
                    raise EOFError("it ends in the middle of a frame")
                return 0
            if self.frame.eof:
                self.frame = zstandard.ZstdDecompressor().decompressobj()
            self.waiting = memoryview(self.frame.decompress(packed))
            self.inside = not self.frame.eof
        size = min(len(view), len(self.waiting))
        view[:size], self.waiting = self.waiting[:size], self.waiting[size:]
        return size


def suffix(path: Path) -> str:
    """The ending that says what a file holds, without the compression: `.jsonl` for `a.jsonl.gz`.

    >>> suffix(Path("a.b.JSONL.gz")), suffix(Path("notes"))
    ('.jsonl', '')
    """
    inner = path.with_suffix("") if path.suffix in COMPRESSED else path
    return inner.suffix.lower()


def text_blocks(file: BinaryIO, path: Path) -> Iterator[str]:
    """A file's text in blocks, line ends as `\\n`, no byte order mark. Bytes that are not UTF-8 are a UserError."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0  # bytes decoded before this block
    while block := file.read(BLOCK):
        waiting = len(decoder.getstate()[0])
        try:
            text = decoder.decode(block)
        except UnicodeDecodeError as error:
            refuse(path, offset - waiting + error.start, error)
        if offset == 0:
            text = text.removeprefix("\ufeff")
        offset += len(block)
        yield newlines.decode(text)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        refuse(path, offset - len(decoder.getstate()[0]) + error.start, error)
    if rest := newlines.decode("", final=True):
        yield rest


def text_lines(file: BinaryIO, path: Path) -> Iterator[tuple[int, str]]:
    """A file's lines with their numbers, from 1, without the line ends. Blank lines are left out."""
    offset = 0
    for number, line in enumerate(file, start=1):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            refuse(path, offset + error.start, error)
        if number == 1:
            text = text.removeprefix("\ufeff")
        offset += len(line)
        if text and not text.isspace():
            yield number, text.rstrip("\r\n")


def refuse(path: Path, offset: int, error: UnicodeDecodeError) -> NoReturn:
    byte = error.object[error.start]
    raise UserError(f"{path} is not UTF-8: byte {offset} is 0x{byte:02x} ({error.reason}); convert it first") from None
