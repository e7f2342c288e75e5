"""The few fields we need of a SentencePiece model file, one protocol-buffer message (sentencepiece_model.proto).

    ModelProto       1 pieces*   2 trainer_spec   3 normalizer_spec
    SentencePiece    1 piece     2 score (float)  3 type
    TrainerSpec      3 model_type (1 unigram)
    NormalizerSpec   2 precompiled_charsmap       3 add_dummy_prefix   4 remove_extra_whitespaces

Reading the wire format ourselves spares a dependency on protobuf and its generated code.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # SentencePiece.Type
UNIGRAM = 1

# A repeated occurrence of an embedded message is merged into the first (protobuf encoding guide, "Last One Wins"),
# so these bytes behind a model file switch its add_dummy_prefix off: field 3, two bytes long: field 3 = 0.
WITHOUT_DUMMY_PREFIX = bytes([3 << 3 | 2, 2, 3 << 3 | 0, 0])


class Piece(NamedTuple):
    text: str
    score: float
    type: int = NORMAL


class Model(NamedTuple):
    pieces: list[Piece]  # in the order of their ids
    model_type: int
    character_map: bytes  # the compiled normalisation table, empty for the identity
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool


def read(data: bytes) -> Model:
    """Parse a model file. Raises ValueError where the bytes are no such message."""
    pieces: list[Piece] = []
    model_type, character_map, dummy, remove = UNIGRAM, b"", True, True
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            pieces.append(read_piece(value))
        elif field == 2 and isinstance(value, bytes):
            model_type = next((int(v) for f, v in fields(value) if f == 3 and isinstance(v, int)), UNIGRAM)
        elif field == 3 and isinstance(value, bytes):
            for inner, setting in fields(value):
                if inner == 2 and isinstance(setting, bytes):
                    character_map = setting
                elif inner == 3:
                    dummy = bool(setting)
                elif inner == 4:
                    remove = bool(setting)
    if not pieces:
        raise ValueError("it holds no pieces")
    return Model(pieces, model_type, character_map, dummy, remove)


def read_piece(data: bytes) -> Piece:
    text, score, type_ = "", 0.0, NORMAL
    for field, value in fields(data):
        if field == 1 and isinstance(value, bytes):
            text = value.decode("utf-8")
        elif field == 2 and isinstance(value, bytes):
            (score,) = struct.unpack("<f", value)
        elif field == 3 and isinstance(value, int):
            type_ = value
    return Piece(text, score, type_)


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of one message: numbers as int, everything else as its bytes.

    >>> list(fields(bytes([3 << 3 | 2, 2, 3 << 3 | 0, 0])))
    [(3, b'\\x18\\x00')]
    """
    position = 0
    while position < len(data):
        key, position = varint(data, position)
        field, wire = key >> 3, key & 7
        if wire == 0:
            number, position = varint(data, position)
            yield field, number
            continue
        if wire == 2:
            length, position = varint(data, position)
        elif wire in (1, 5):
            length = 8 if wire == 1 else 4
        else:
            raise ValueError(f"unknown wire type {wire} at byte {position}")
        if position + length > len(data):
            raise ValueError(f"it ends in the middle of a field, at byte {len(data)}")
        yield field, data[position : position + length]
        position += length


def varint(data: bytes, position: int) -> tuple[int, int]:
    """A number in seven-bit groups, lowest first, and the position behind it."""
    number = shift = 0
    while True:
        if position >= len(data) or shift > 63:
            raise ValueError(f"it breaks off in a number at byte {position}")
        byte = data[position]
        position += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, position
        shift += 7
