"""What a converted file holds, in which order and how laid out: a function of the shape and the precision alone.

Shape key   N a matrix's outputs (rows)   K its inputs (columns)   P panels, ceil(N / 16)   V vocabulary   D d_model

Weights are stored as the native library reads them, so that nothing is rearranged when a file is opened. A matrix lies
in panels of 16 outputs; within a panel the inputs follow one another, 1, 2 or 4 at a time as the processor multiplies
them, each with its 16 outputs side by side:

    float32    [P, K, 16]               element (p, k, j) is W[16p + j, k]
    bfloat16   [P, ceil(K/2), 16, 2]    element (p, k, j, i) is W[16p + j, 2k + i], rounded to nearest, ties to even
    int8       [P, ceil(K/4), 16, 4]    element (p, k, j, i) is Q[16p + j, 4k + i]; then the scales, float32 [16P]

What is beyond N or K is zero. In int8 each output has a scale, max |W[n]| / 127 (1 where there is nothing but zeros),
and Q is W / scale, rounded. Matrices that read the same input stand in one, rows on rows: query | key | value, and
the two of a gated feed-forward. Norms and position tables are float32 whatever the precision, plain rows; so is the
embedding, in bfloat16 unless the precision is float32: looked up, it is no bottleneck. Where output matrix and
embedding are one and of one precision, rows of the embedding are read out of the panels.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.shapes import Shape

PRECISIONS = ("float32", "bfloat16", "int8")
ALIGNED = 64  # bytes: a section starts at a multiple of a cache line
PANEL = 16  # outputs that lie side by side
GROUP = {"float32": 1, "bfloat16": 2, "int8": 4}  # inputs multiplied at once
ITEM = {"float32": 4, "bfloat16": 2, "int8": 1}  # bytes of a number
CHUNK = 1 << 22  # numbers packed at once, so that a large matrix is never held twice


class Section(NamedTuple):
    """One array of the file."""

    name: str  # "decoder.0.self_qkv"
    kind: str  # a precision and how it lies: "float32 rows", "bfloat16 rows", "float32 panels", ..., "int8 panels"
    offset: int  # bytes from the payload's start
    rows: int
    columns: int
    bytes: int  # scales of int8 included, padding behind it not
    parts: tuple[tuple[str, int], ...]  # the tensors it is made of, by our names, and the rows of each

    @property
    def precision(self) -> str:
        return self.kind.split()[0]

    @property
    def panels(self) -> bool:
        return self.kind.endswith("panels")


class Layout(NamedTuple):
    sections: tuple[Section, ...]
    bytes: int  # of the whole payload


def layout(shape: Shape, precision: str) -> Layout:
    """Every section of a shape's file, in order.

    >>> from deepnarrow.shapes import parse
    >>> found = layout(parse("tiny-nl1-dm32-ff64-v96"), "float32")
    >>> [(section.name, section.offset, section.rows) for section in found.sections[:3]]
    [('encoder.position', 0, 32), ('encoder.0.self_norm', 512, 1), ('encoder.0.self_qkv', 640, 768)]
    >>> found.bytes
    440192
    """
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")
    sections: list[Section] = []
    offset = 0
    for name, kind, columns, parts in arrays(shape, precision):
        rows = sum(count for _, count in parts)
        size = stored_bytes(kind, rows, columns)
        sections.append(Section(name, kind, offset, rows, columns, size, parts))
        offset += aligned(size)
    return Layout(tuple(sections), offset)


Array = tuple[str, str, int, tuple[tuple[str, int], ...]]  # name, kind, columns, parts


def arrays(shape: Shape, precision: str) -> Iterator[Array]:
    embedding = (("embedding.weight", shape.vocab),)
    if not embedding_in_output(shape, precision):
        yield "embedding", f"{'float32' if precision == 'float32' else 'bfloat16'} rows", shape.d_model, embedding
    if not shape.share_encoder_decoder:
        yield from stack_arrays(shape, precision, "encoder", shape.encoder_layers)
    if shape.decoder_layers:
        yield from stack_arrays(shape, precision, "decoder", shape.decoder_layers)
        output = embedding if shape.tied else (("output.weight", shape.vocab),)
        yield "output", f"{precision} panels", shape.d_model, output


def embedding_in_output(shape: Shape, precision: str) -> bool:
    """Whether the embedding is the output matrix, kept once."""
    return shape.tied and shape.decoder_layers > 0 and precision != "int8"


def stack_arrays(shape: Shape, precision: str, stack: str, layers: int) -> Iterator[Array]:
    panels, wide, inner, kv = f"{precision} panels", shape.d_model, shape.inner, shape.kv_inner
    keys = (("key", kv),) if shape.tie_kv else (("key", kv), ("value", kv))
    widen = (("wi_0", shape.d_ff), ("wi_1", shape.d_ff)) if shape.gated else (("wi", shape.d_ff),)
    yield f"{stack}.position", "float32 rows", shape.num_heads, ((f"{stack}.position.table", shape.relative_buckets),)
    for layer in range(layers):
        block, short = f"{stack}.blocks.{layer}", f"{stack}.{layer}"

        def norm(which: str, block: str = block, short: str = short) -> Array:
            return f"{short}.{which}_norm", "float32 rows", wide, ((f"{block}.{which}_norm.weight", 1),)

        def matrix(
            name: str,
            module: str,
            which: tuple[tuple[str, int], ...],
            columns: int,
            block: str = block,
            short: str = short,
        ) -> Array:
            parts = tuple((f"{block}.{module}.{part}.weight", rows) for part, rows in which)
            return f"{short}.{name}", panels, columns, parts

        yield norm("self")
        yield matrix("self_qkv", "self_attention", (("query", inner), *keys), wide)
        yield matrix("self_output", "self_attention", (("output", wide),), inner)
        if stack == "decoder":
            yield norm("cross")
            yield matrix("cross_query", "cross_attention", (("query", inner),), wide)
            yield matrix("cross_kv", "cross_attention", keys, wide)
            yield matrix("cross_output", "cross_attention", (("output", wide),), inner)
        yield norm("feed")
        yield matrix("wi", "feed_forward", widen, wide)
        yield matrix("wo", "feed_forward", (("wo", wide),), shape.d_ff)
    yield f"{stack}.norm", "float32 rows", wide, ((f"{stack}.norm.weight", 1),)


def aligned(size: int, to: int = ALIGNED) -> int:
    """
    >>> aligned(0), aligned(1), aligned(64)
    (0, 64, 64)
    """
    return -(-size // to) * to


def stored_bytes(kind: str, rows: int, columns: int) -> int:
    """Bytes of an array as it is stored.

    >>> stored_bytes("bfloat16 rows", 3, 5), stored_bytes("float32 panels", 17, 3), stored_bytes("int8 panels", 17, 3)
    (30, 384, 256)
    """
    precision, lie = kind.split()
    if lie == "rows":
        return rows * columns * ITEM[precision]
    padded = aligned(rows, PANEL)
    size = padded * aligned(columns, GROUP[precision]) * ITEM[precision]
    return size + (4 * padded if precision == "int8" else 0)  # panels of int8 end at a multiple of 64


def packed(section: Section, tensors: Mapping[str, np.ndarray]) -> Iterator[np.ndarray]:
    """A section as stored, in pieces that follow one another. A tensor of a wrong size or not finite is an error."""
    found = []
    for name, rows in section.parts:
        tensor = np.asarray(tensors[name], np.float32)
        tensor = tensor[None] if tensor.ndim == 1 else tensor
        if tensor.shape != (rows, section.columns):
            raise UserError(f"{name} is {tensor.shape}, but the shape makes it {(rows, section.columns)}")
        if not np.isfinite(tensor).all():
            raise UserError(f"{name} holds infinite numbers or NaN; take a checkpoint from before training diverged")
        found.append(tensor)
    whole = found[0] if len(found) == 1 else np.concatenate(found)
    step = aligned(max(1, CHUNK // section.columns), PANEL)
    blocks = (whole[first : first + step] for first in range(0, len(whole), step))
    if not section.panels:
        yield from (
            np.ascontiguousarray(block) if section.precision == "float32" else bfloat16(block) for block in blocks
        )
    elif section.precision == "int8":
        scales = []
        for block in blocks:
            scale = row_scales(block)
            scales.append(np.concatenate([scale, np.ones(aligned(len(scale), PANEL) - len(scale), np.float32)]))
            yield in_panels(quantised(block, scale), GROUP["int8"])
        yield np.concatenate(scales)
    else:
        convert = bfloat16 if section.precision == "bfloat16" else np.ascontiguousarray
        yield from (in_panels(convert(block), GROUP[section.precision]) for block in blocks)


def in_panels(matrix: np.ndarray, group: int) -> np.ndarray:
    """[N, K] -> [P, ceil(K / group), 16, group], zeros beyond N and K.

    >>> in_panels(np.arange(1, 4)[:, None] * 10 + np.arange(3), 2)[0, :, :3].tolist()
    [[[10, 11], [20, 21], [30, 31]], [[12, 0], [22, 0], [32, 0]]]
    """
    rows, columns = matrix.shape
    missing = (aligned(rows, PANEL) - rows, aligned(columns, group) - columns)
    if any(missing):
        matrix = np.pad(matrix, [(0, missing[0]), (0, missing[1])])
    split = matrix.reshape(len(matrix) // PANEL, PANEL, -1, group)
    return np.ascontiguousarray(split.transpose(0, 2, 1, 3))


def out_of_panels(panels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Undo `in_panels`."""
    return panels.transpose(0, 2, 1, 3).reshape(len(panels) * PANEL, -1)[:rows, :columns]


def bfloat16(numbers: np.ndarray) -> np.ndarray:
    """Finite float32 as the upper half of its bits, rounded to nearest, ties to even: uint16.

    >>> [hex(bits) for bits in bfloat16(np.array([1.0, 1.00390625, 1.01171875, -2.5], np.float32)).tolist()]
    ['0x3f80', '0x3f80', '0x3f82', '0xc020']
    """
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + 0x7FFF)) >> 16).astype(np.uint16)


def from_bfloat16(bits: np.ndarray) -> np.ndarray:
    """
    >>> from_bfloat16(np.array([0x3f80, 0xc020], np.uint16)).tolist()
    [1.0, -2.5]
    """
    return (bits.astype(np.uint32) << 16).view(np.float32)


def row_scales(matrix: np.ndarray) -> np.ndarray:
    """What one step of int8 is worth in each row, float32 [N]."""
    scale = np.abs(matrix).max(axis=1) / np.float32(127)
    return np.where(scale > 0, scale, np.float32(1)).astype(np.float32)


def quantised(matrix: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """
    >>> rows = np.array([[1.0, -0.5, 0.0], [0.0, 0.0, 0.0]], np.float32)
    >>> quantised(rows, row_scales(rows)).tolist()
    [[127, -64, 0], [0, 0, 0]]
    """
    return np.clip(np.rint(matrix / scale[:, None]), -127, 127).astype(np.int8)


def unpacked(section: Section, payload: np.ndarray) -> np.ndarray:
    """A section of a payload (uint8, all of it) as float32 [rows, columns]: for readers and tests."""
    rows, columns, precision = section.rows, section.columns, section.precision
    data = payload[section.offset : section.offset + section.bytes]
    kind = {"float32": np.float32, "bfloat16": np.uint16, "int8": np.int8}[precision]
    if not section.panels:
        matrix = data.view(kind).reshape(rows, columns)
        return from_bfloat16(matrix) if precision == "bfloat16" else matrix.copy()
    padded, group = aligned(rows, PANEL), GROUP[precision]
    wide = aligned(columns, group)
    panels = data[: padded * wide * ITEM[precision]].view(kind).reshape(-1, wide // group, PANEL, group)
    matrix = out_of_panels(panels, rows, columns)
    if precision == "int8":
        scale = data[padded * wide :].view(np.float32)[:rows]
        return matrix.astype(np.float32) * scale[:, None]
    return from_bfloat16(matrix) if precision == "bfloat16" else matrix.copy()


def unpacked_tensors(shape: Shape, precision: str, payload: np.ndarray) -> dict[str, np.ndarray]:
    """All of a payload under our names of the tensors, float32; what is stored twice is given as stored first."""
    tensors: dict[str, np.ndarray] = {}
    for section in layout(shape, precision).sections:
        matrix, first = unpacked(section, payload), 0
        for name, rows in section.parts:
            part = matrix[first : first + rows]
            tensors.setdefault(name, part[0] if name.endswith("norm.weight") else part)
            first += rows
    return tensors
