"""The converted file `model.dn`: written whole, mapped into memory, refused where anything about it is wrong.

    bytes 0..7      b"DNARROW1"
          8..11     the format's version, uint32, little-endian as all numbers
          12..15    J, the length of the description, uint32
          16..47    SHA-256 of everything from byte 64 to the end
          48..63    zero
          64..64+J  the description, JSON in UTF-8
    and from the next multiple of 4096 the payload, to the end: the sections of layout.py

The description says shape and precision, from which everything else follows; what else stands in it is for readers, and
has to agree. docs/native.md is the specification.
"""

import hashlib
import json
import mmap
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from deepnarrow import __version__
from deepnarrow.errors import UserError
from deepnarrow.files import sync_folder
from deepnarrow.runtime.layout import ALIGNED, PRECISIONS, Layout, aligned, layout, packed, unpacked_tensors
from deepnarrow.shapes.shape import Shape, parse

MAGIC = b"DNARROW1"
VERSION = 1
FRONT = 64  # bytes before the description
PAGE = 4096  # the payload starts at a multiple of it, so that it can be mapped
LONGEST = 1 << 26  # bytes of a description; a thousand layers need two million
PIECE = 1 << 24  # bytes hashed at once: an interrupt is heard in between
NAME = "model.dn"
AGAIN = "write it again with deepnarrow export MODEL --to native --out FOLDER"


@dataclass(frozen=True)
class ModelFile:
    """A file that was looked through. Its bytes are mapped as long as `payload` or a view of it is alive."""

    path: Path
    shape: Shape
    precision: str  # float32, bfloat16 or int8
    vocab_limit: int  # ids from here on have no token
    eos: int
    source: dict[str, Any]  # what it was made of
    offset: int  # of the payload in the file
    payload: np.ndarray  # uint8, read-only
    sha256: str  # as the file states it

    @property
    def address(self) -> int:
        """Of the payload in this process, a multiple of 4096."""
        return self.payload.ctypes.data

    @property
    def bytes(self) -> int:
        return len(self.payload)

    def tensors(self) -> dict[str, np.ndarray]:
        """The weights as they compute, float32, under our names."""
        return unpacked_tensors(self.shape, self.precision, self.payload)


def write(
    path: Path,
    shape: Shape,
    precision: str,
    tensors: Mapping[str, np.ndarray],
    *,
    vocab_limit: int | None = None,
    eos: int = 1,
    source: Mapping[str, Any] | None = None,
) -> None:
    """Convert a model, whole or not at all. `tensors` are a T5's state by our names; one is asked for at a time.

    vocab_limit   how many ids the tokenizer has; ids from there on are never chosen (default: all of the vocabulary)
    source        what the weights are from, for readers of the file

    Tensors of a wrong size and infinite ones are a `UserError`.
    """
    limit = shape.vocab if vocab_limit is None else vocab_limit
    check_ids(shape, limit, eos)
    found = layout(shape, precision)
    described = json.dumps(
        description(shape, precision, found, vocab_limit=limit, eos=eos, source=dict(source or {}))
    ).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("w+b") as file:
            write_into(file, described, found, tensors)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_into(file: BinaryIO, described: bytes, found: Layout, tensors: Mapping[str, np.ndarray]) -> None:
    digest = hashlib.sha256()

    def put(data: Any) -> None:
        digest.update(data)
        file.write(data)

    file.write(bytes(FRONT))
    put(described + bytes(payload_offset(len(described)) - FRONT - len(described)))
    for section in found.sections:
        for piece in packed(section, tensors):
            put(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        put(bytes(aligned(section.bytes) - section.bytes))
    file.seek(0)
    file.write(MAGIC + struct.pack("<II", VERSION, len(described)) + digest.digest())


def payload_offset(described: int) -> int:
    """Where the payload starts behind a description of so many bytes.

    >>> payload_offset(100), payload_offset(4032), payload_offset(4033)
    (4096, 4096, 8192)
    """
    return aligned(FRONT + described, PAGE)


def description(
    shape: Shape, precision: str, found: Layout, *, vocab_limit: int, eos: int, source: dict[str, Any]
) -> dict[str, Any]:
    """The JSON of a file. `payload` depends on the length of the JSON itself, so it is found by trying."""
    described = {
        "format": VERSION,
        "shape": str(shape),
        "precision": precision,
        "payload": PAGE,
        "bytes": found.bytes,
        "vocab_limit": vocab_limit,
        "eos": eos,
        "source": source,
        "made_by": f"deepnarrow {__version__}",
        "sections": sections_json(found),
    }
    while (start := payload_offset(len(json.dumps(described).encode()))) != described["payload"]:
        described["payload"] = start
    return described


def sections_json(found: Layout) -> list[dict[str, Any]]:
    return [
        {
            "name": section.name,
            "kind": section.kind,
            "offset": section.offset,
            "rows": section.rows,
            "columns": section.columns,
        }
        for section in found.sections
    ]


def check_ids(shape: Shape, vocab_limit: int, eos: int) -> None:
    if not 1 <= vocab_limit <= shape.vocab:
        raise UserError(f"the tokenizer has {vocab_limit:,} ids but the model {shape.vocab:,} rows of embedding")
    if not 0 <= eos < vocab_limit:
        raise UserError(f"the id of EOS must be from 0 to {vocab_limit - 1:,}, not {eos}")


def open_file(path: str | Path, *, verify: bool = True) -> ModelFile:
    """Map a converted file and look it through; whatever is wrong with it is a `UserError` that says what to do.

    `verify` hashes the whole file, a second for a gigabyte. Without, every number of the front and of the description
    is checked all the same, so nothing outside the file can be read; what goes unseen is a weight that changed.
    """
    path = Path(path)
    data = mapped(path)
    length, stated = front(path, data)
    start = payload_offset(length)
    if len(data) < start:
        raise cut(path, len(data), start)
    if verify:
        check_hash(path, data, stated)
    said = described_in(path, data[FRONT : FRONT + length])
    try:
        shape, precision, limit, eos, source, size = understood(said, len(data) - start)
    except UserError as error:
        raise UserError(f"{path} has a description that makes no sense ({error}); {AGAIN}") from None
    if len(data) != start + size:
        if len(data) < start + size:
            raise cut(path, len(data), start + size)
        raise UserError(f"{path} has {len(data) - start - size:,} bytes more than its {shape} needs; {AGAIN}")
    expected = said | {"payload": start, "bytes": size, "sections": sections_json(layout(shape, precision))}
    if expected != said:
        wrong = next(name for name, value in expected.items() if said.get(name) != value)
        raise UserError(f"{path} states {wrong!r} otherwise than its {shape} in {precision} implies; {AGAIN}")
    return ModelFile(path, shape, precision, limit, eos, source, start, data[start:], stated.hex())


def mapped(path: Path) -> np.ndarray:
    """A file's bytes, read-only, uint8. They stay mapped until the last view of them is gone."""
    if path.is_dir():
        raise UserError(f"{path} is a folder; name the file in it, {path / NAME}")
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < FRONT:
                raise UserError(f"{path} is {'empty' if not size else 'cut short'} and no converted model; {AGAIN}")
            return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
    except FileNotFoundError:
        raise UserError(f"no converted model {path}; {AGAIN}") from None


def front(path: Path, data: np.ndarray) -> tuple[int, bytes]:
    """The length of the description, and the hash."""
    head = data[:FRONT].tobytes()
    if head[: len(MAGIC)] != MAGIC:
        raise UserError(f"{path} is not a converted model (it does not begin with {MAGIC.decode()}); {AGAIN}")
    version, length = struct.unpack_from("<II", head, len(MAGIC))
    if version > VERSION:
        raise UserError(
            f"{path} has format {version}, this program reads up to {VERSION}; update deepnarrow, or {AGAIN}"
        )
    if version < 1 or not 2 <= length <= LONGEST or head[48:] != bytes(16):
        raise UserError(f"{path} is damaged: its first {FRONT} bytes make no sense; {AGAIN}")
    return length, head[16:48]


def cut(path: Path, size: int, wanted: int) -> UserError:
    return UserError(f"{path} is cut short: {size:,} of {wanted:,} bytes; copy it again, or {AGAIN}")


def check_hash(path: Path, data: np.ndarray, stated: bytes) -> None:
    digest = hashlib.sha256()
    for first in range(FRONT, len(data), PIECE):
        digest.update(data[first : first + PIECE].data)
    if digest.digest() != stated:
        raise UserError(f"{path} is damaged: its SHA-256 is not what it states; copy it again, or {AGAIN}")


def described_in(path: Path, data: np.ndarray) -> dict[str, Any]:
    said: object = None
    with suppress(ValueError, RecursionError):
        said = json.loads(data.tobytes().decode("utf-8"))
    if not isinstance(said, dict):
        raise UserError(f"{path} is damaged: its description is no JSON object; copy it again, or {AGAIN}")
    return said


def understood(said: dict[str, Any], held: int) -> tuple[Shape, str, int, int, dict[str, Any], int]:
    """Shape, precision, vocabulary limit, EOS, source, bytes of the payload: checked one by one.

    `held` is how much payload the file has: a shape of so many layers that they cannot be in there is not laid out.
    """
    if said.get("format") != VERSION:
        raise UserError(f"its format is {said.get('format')!r}, not {VERSION}")
    name, precision, limit, eos = (said.get(key) for key in ("shape", "precision", "vocab_limit", "eos"))
    if not isinstance(name, str):
        raise UserError(f"its shape is {name!r}")
    shape = parse(name)
    if str(shape) != name:
        raise UserError(f"its shape is {name!r}, which is written {shape}")
    if not isinstance(precision, str) or precision not in PRECISIONS:
        raise UserError(f"its precision is {precision!r}")
    if type(limit) is not int or type(eos) is not int:
        raise UserError(f"its vocab_limit is {limit!r} and its eos {eos!r}")
    check_ids(shape, limit, eos)
    if not isinstance(source := said.get("source"), dict):
        raise UserError(f"its source is {source!r}")
    if (shape.encoder_layers + shape.decoder_layers) * ALIGNED > held + ALIGNED:
        raise UserError(f"{held:,} bytes cannot be a {shape}")
    return shape, precision, limit, eos, source, layout(shape, precision).bytes
