"""The native library as an `Engine`: a converted file opened, encoded with, stepped.

Shape key   N positions   V vocabulary   D d_model   T most ids asked for   W ceil(V / 32)

The library is compiled when the package is installed (native/build.py) and lies beside this file; another can be named
by `DEEPNARROW_LIBRARY`. It chooses the best instructions that the processor has; `kernels`, or `DEEPNARROW_KERNELS`,
names others. `DEEPNARROW_NATIVE=0` switches it off. All work is done outside Python's lock.
"""

import ctypes
import mmap
import os
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int32, c_int64, c_void_p
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import cast

import numpy as np

from deepnarrow.errors import UserError, nearest
from deepnarrow.runtime.engine import Chosen, Draw, Memory, Row
from deepnarrow.runtime.format import ModelFile, open_file
from deepnarrow.runtime.rows import check_rows
from deepnarrow.shapes.shape import FEED_FORWARDS, Shape

SWITCH, LIBRARY, KERNELS = "DEEPNARROW_NATIVE", "DEEPNARROW_LIBRARY", "DEEPNARROW_KERNELS"
VERSION = 2  # of the interface, as in native/engine.cpp
PRECISIONS = ("float32", "bfloat16", "int8")
ERROR_BYTES = 256


class _Shape(Structure):
    _fields_ = (
        *(
            (name, c_int64)
            for name in (
                "d_model", "d_ff", "heads", "encoder_layers", "decoder_layers", "d_kv", "kv_heads", "vocab", "buckets",
                "distance",
            )
        ),
        *((name, c_int32) for name in ("tie_kv", "shared", "activation", "tied", "precision", "padding")),
    )  # fmt: skip


class _Draw(Structure):
    _fields_ = (("uniform", c_double), ("temperature", c_float), ("top_p", c_float), ("top_k", c_int64))


class NotBuiltError(Exception):
    """Why there is no library, in one line."""


@cache
def library() -> ctypes.CDLL:
    """The compiled library; raises `NotBuiltError` where it is switched off, missing or of another version."""
    if os.environ.get(SWITCH, "1") == "0":
        raise NotBuiltError(f"it is switched off by {SWITCH}=0")
    path = Path(os.environ.get(LIBRARY) or Path(__file__).with_name("_native.so"))
    try:
        found = ctypes.CDLL(str(path))
    except OSError as error:
        raise NotBuiltError(
            f"{path.name} cannot be loaded: {error}"
            if path.exists()
            else "it was not built; install a C++ compiler, then deepnarrow again"
        ) from None
    if found.dn_version() != VERSION:
        raise NotBuiltError(f"{path.name} is of another version; install deepnarrow again")
    for name, result in (
        ("dn_open", c_void_p), ("dn_begin", c_void_p), ("dn_memory", c_void_p), ("dn_start", c_void_p),
        ("dn_fork", c_void_p), ("dn_kernels", c_char_p), ("dn_name", c_char_p), ("dn_layers", c_int64),
        ("dn_memory_length", c_int64), ("dn_memory_bytes", c_int64), ("dn_row_length", c_int64),
        ("dn_row_pieces", c_int64), ("dn_piece_bytes", c_int64), ("dn_close", None), ("dn_encoding_free", None),
        ("dn_memory_free", None), ("dn_row_free", None),
    ):  # fmt: skip
        getattr(found, name).restype = result
    found.dn_open.argtypes = (POINTER(_Shape), c_void_p, c_int64, c_int32, c_char_p, c_char_p)
    found.dn_begin.argtypes = (c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_char_p)
    found.dn_advance.argtypes = (c_void_p, c_void_p, c_int64, c_char_p)
    found.dn_hidden.argtypes = (c_void_p, c_void_p, c_void_p, c_char_p)
    found.dn_memory.argtypes = (c_void_p, c_int64)
    found.dn_cut.argtypes = (c_void_p, c_void_p, c_int64, c_char_p)
    found.dn_step.argtypes = (
        c_void_p, c_int64, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int64, c_int64, c_void_p,
        c_void_p, c_void_p, c_char_p,
    )  # fmt: skip
    for name in (
        "dn_close", "dn_name", "dn_layers", "dn_encoding_free", "dn_memory_length", "dn_memory_bytes", "dn_memory_free",
        "dn_start", "dn_fork", "dn_row_free", "dn_row_length", "dn_row_pieces", "dn_piece_bytes",
    ):  # fmt: skip
        getattr(found, name).argtypes = (c_void_p,)
    return found


def usable() -> bool:
    try:
        library()
    except NotBuiltError:
        return False
    return True


def kernels() -> list[str]:
    """The sets of instructions that this processor has, best first."""
    names, number = [], 0
    while name := library().dn_kernels(number):
        names.append(name.decode())
        number += 1
    return names


def default_threads() -> int:
    """As many as this process may run on; `OMP_NUM_THREADS` bounds it, as it does for torch."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(there, int(asked))) if asked.isdecimal() and int(asked) else there


def open_engine(
    path: str | Path,
    *,
    threads: int | None = None,
    kernels: str | None = None,
    vocab_limit: int | None = None,
    verify: bool = True,
    resident: bool = False,
) -> "NativeEngine":
    """Open a converted file (`model.dn`).

    threads      None: `default_threads()`
    kernels      None: the best that the processor has; else one of `kernels()`
    vocab_limit  None: the one of the file
    verify       whether to check the file's hash
    resident     copy the weights into memory of large pages, a third faster to read where that is what a step waits for
                 (docs/log.md), if half of the free memory has room for it; else the file itself is mapped, which starts
                 at once and is shared among processes

    Raises `UserError` for a file that is no model or broken, `NotBuiltError` where there is no library.
    """
    file = open_file(Path(path), verify=verify)
    return NativeEngine(file, threads=threads, kernels=kernels, vocab_limit=vocab_limit, resident=resident)


class NativeMemory:
    """See `engine.Memory`."""

    def __init__(self, engine: "NativeEngine", handle: int) -> None:
        self.engine, self.handle = engine, handle
        self.length: int = engine.library.dn_memory_length(handle)
        self.bytes: int = engine.library.dn_memory_bytes(handle)
        weakref.finalize(self, engine.library.dn_memory_free, handle)


class NativeRow:
    """See `engine.Row`."""

    def __init__(self, engine: "NativeEngine", handle: int) -> None:
        self.engine, self.handle = engine, handle
        weakref.finalize(self, engine.library.dn_row_free, handle)

    @property
    def length(self) -> int:
        return self.engine.library.dn_row_length(self.handle)

    @property
    def bytes(self) -> int:
        return self.engine.library.dn_row_pieces(self.handle) * self.engine.piece_bytes


class NativeEncoding:
    """See `engine.Encoding`."""

    def __init__(self, engine: "NativeEngine", handle: int, lengths: list[int]) -> None:
        self.engine, self.handle, self.lengths = engine, handle, lengths
        self.done = False
        weakref.finalize(self, engine.library.dn_encoding_free, handle)

    def advance(self, layers: int) -> bool:
        error = ctypes.create_string_buffer(ERROR_BYTES)
        found = self.engine.library.dn_advance(self.engine.handle, self.handle, layers, error)
        self.done = checked(found, error) == 1
        return self.done

    def memories(self) -> list[NativeMemory]:
        if not self.done:
            raise RuntimeError("the inputs are not encoded yet: advance them until it says so")
        if not self.engine.shape.decoder_layers:
            raise UserError(
                f"{self.engine.shape} is an encoder alone: it can encode, but it has no decoder to answer with"
            )
        library = self.engine.library
        return [NativeMemory(self.engine, library.dn_memory(self.handle, i)) for i in range(len(self.lengths))]

    def hidden(self) -> list[np.ndarray]:
        out = np.empty((sum(self.lengths), self.engine.shape.d_model), np.float32)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        checked(self.engine.library.dn_hidden(self.engine.handle, self.handle, out.ctypes.data, error), error)
        return np.split(out, np.cumsum(self.lengths)[:-1])


class NativeEngine:
    """See `engine.Engine`. The file stays mapped as long as the engine lives."""

    def __init__(
        self,
        file: ModelFile,
        *,
        threads: int | None = None,
        kernels: str | None = None,
        vocab_limit: int | None = None,
        resident: bool = False,
    ) -> None:
        self.library = library()
        copied = resident and has_room(file.bytes)
        self.file = replace(file, payload=in_large_pages(file.payload)) if copied else file
        file = self.file
        self.shape, self.precision = file.shape, file.precision
        self.threads = default_threads() if threads is None else threads
        if self.threads < 1:
            raise UserError(f"threads must be at least 1, not {self.threads}")
        wanted = kernels or os.environ.get(KERNELS) or None
        if wanted is not None and wanted not in available():
            raise UserError(f"this processor has no kernels {wanted!r}; {nearest(wanted, available())}")
        limit = file.vocab_limit if vocab_limit is None else vocab_limit
        self.vocab_limit = min(limit, self.shape.vocab)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        self.handle = self.library.dn_open(
            byref(described(self.shape, self.precision)),
            file.address,
            file.bytes,
            self.threads,
            wanted.encode() if wanted else None,
            error,
        )
        if not self.handle:
            raise UserError(f"{file.path} cannot be opened: {error.value.decode()}")
        self._close = weakref.finalize(self, self.library.dn_close, self.handle)
        self.kernels: str = self.library.dn_name(self.handle).decode()
        self.layers: int = self.library.dn_layers(self.handle)
        self.piece_bytes: int = self.library.dn_piece_bytes(self.handle)
        self.name = f"native {self.precision} {self.kernels}"

    def begin(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> NativeEncoding:
        check_rows(inputs, self.shape.vocab, "input")
        if not inputs:
            raise ValueError("no inputs")
        lengths = np.array([len(ids) for ids in inputs], np.int64)
        ids = np.concatenate([np.asarray(ids, np.int32) for ids in inputs])
        fronts, vectors = self._fronts(prompts, len(inputs))
        error = ctypes.create_string_buffer(ERROR_BYTES)
        handle = self.library.dn_begin(
            self.handle,
            len(inputs),
            lengths.ctypes.data,
            ids.ctypes.data,
            None if fronts is None else fronts.ctypes.data,
            None if vectors is None else vectors.ctypes.data,
            error,
        )
        if not handle:
            checked(-1, error)
        return NativeEncoding(self, handle, (lengths if fronts is None else lengths + fronts).tolist())

    def _fronts(
        self, prompts: Sequence[np.ndarray | None] | None, inputs: int
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Each prompt's length, and their vectors one behind the other."""
        if prompts is None or all(prompt is None for prompt in prompts):
            return None, None
        if len(prompts) != inputs:
            raise UserError(f"there must be one prompt for each input, but there are {len(prompts)} for {inputs}")
        for number, prompt in enumerate(prompts, start=1):
            if prompt is not None and (prompt.ndim != 2 or prompt.shape[1] != self.shape.d_model):
                raise UserError(
                    f"prompt {number} is {list(prompt.shape)}, but the model reads vectors of {self.shape.d_model}"
                )
        there = [np.ascontiguousarray(prompt, np.float32) for prompt in prompts if prompt is not None]
        fronts = np.array([0 if prompt is None else len(prompt) for prompt in prompts], np.int64)
        return fronts, np.concatenate(there)

    def encode(
        self, inputs: Sequence[Sequence[int]], prompts: Sequence[np.ndarray | None] | None = None
    ) -> list[NativeMemory]:
        encoding = self.begin(inputs, prompts)
        encoding.advance(self.layers)
        return encoding.memories()

    def embed(self, inputs: Sequence[Sequence[int]]) -> np.ndarray:
        encoding = self.begin(inputs)
        encoding.advance(self.shape.encoder_layers)
        return np.stack([hidden.mean(0) for hidden in encoding.hidden()])

    def start(self, memory: Memory) -> NativeRow:
        return NativeRow(self, self.library.dn_start(cast(NativeMemory, memory).handle))

    def fork(self, row: Row) -> NativeRow:
        return NativeRow(self, self.library.dn_fork(cast(NativeRow, row).handle))

    def cut(self, row: Row, length: int) -> None:
        error = ctypes.create_string_buffer(ERROR_BYTES)
        checked(self.library.dn_cut(self.handle, cast(NativeRow, row).handle, length, error), error)

    def step(
        self,
        rows: Sequence[Row],
        tokens: Sequence[Sequence[int]],
        *,
        top: int = 1,
        masks: Sequence[np.ndarray | None] | None = None,
        draws: Sequence[Draw | None] | None = None,
        logs: bool = True,
    ) -> Chosen:
        if top < 1:
            raise ValueError(f"top must be at least 1, not {top}")
        positions = sum(len(ids) for ids in tokens)
        found = Chosen(np.empty((positions, top), np.int32), np.full((positions, top), np.nan, np.float32))
        masked, kept = pointers(masks, positions, self.shape.vocab)
        drawn, which = spelt(draws, positions)
        self._step(rows, tokens, masked, drawn, which, top, found, None, logs)
        del kept  # the masks lived until here
        return found

    def logits(self, rows: Sequence[Row], tokens: Sequence[Sequence[int]]) -> np.ndarray:
        out = np.empty((sum(len(ids) for ids in tokens), self.shape.vocab), np.float32)
        self._step(rows, tokens, None, None, None, 1, None, out)
        return out

    def _step(
        self,
        rows: Sequence[Row],
        tokens: Sequence[Sequence[int]],
        masks: np.ndarray | None,
        draws: "ctypes.Array[_Draw] | None",
        drawn: np.ndarray | None,
        top: int,
        found: Chosen | None,
        out: np.ndarray | None,
        logs: bool = True,
    ) -> None:
        if len(rows) != len(tokens):
            raise ValueError(f"{len(rows)} rows, but tokens for {len(tokens)}")
        handles = np.array([cast(NativeRow, row).handle for row in rows], np.uintp)
        counts = np.array([len(ids) for ids in tokens], np.int64)
        flat = np.array([id for ids in tokens for id in ids], np.int32)
        error = ctypes.create_string_buffer(ERROR_BYTES)
        checked(
            self.library.dn_step(
                self.handle,
                len(rows),
                handles.ctypes.data,
                counts.ctypes.data,
                flat.ctypes.data,
                None if masks is None else masks.ctypes.data,
                None if draws is None else ctypes.addressof(draws),
                None if drawn is None else drawn.ctypes.data,
                self.vocab_limit,
                top,
                None if found is None else found.ids.ctypes.data,
                found.logs.ctypes.data if found is not None and logs else None,
                None if out is None else out.ctypes.data,
                error,
            ),
            error,
        )

    def close(self) -> None:
        self._close()


LARGE_PAGE = 1 << 21
SHARE_OF_FREE = 0.5  # of the memory that is free, which a copy may take


def has_room(size: int) -> bool:
    """Whether so many bytes can be copied without crowding out what runs beside."""
    from deepnarrow.machine import free_memory  # only where a copy is asked for

    free = free_memory()
    return free is None or size < SHARE_OF_FREE * free


def in_large_pages(payload: np.ndarray) -> np.ndarray:
    """A copy in memory for which the system is asked for pages of 2 MiB; where it has none, in plain memory."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return payload.copy()
    room = mmap.mmap(-1, len(payload) + 2 * LARGE_PAGE)
    with suppress(OSError):
        room.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(room, np.uint8)
    first = -whole.ctypes.data % LARGE_PAGE
    copied = whole[first : first + len(payload)]
    copied[:] = payload
    return copied


available = kernels  # inside NativeEngine `kernels` is an argument's name


def described(shape: Shape, precision: str) -> _Shape:
    return _Shape(
        d_model=shape.d_model,
        d_ff=shape.d_ff,
        heads=shape.num_heads,
        encoder_layers=shape.encoder_layers,
        decoder_layers=shape.decoder_layers,
        d_kv=shape.d_kv,
        kv_heads=shape.kv_heads or shape.num_heads,
        vocab=shape.vocab,
        buckets=shape.relative_buckets,
        distance=shape.relative_distance,
        tie_kv=shape.tie_kv,
        shared=shape.share_encoder_decoder,
        activation=FEED_FORWARDS.index(shape.feed_forward),
        tied=shape.tied,
        precision=PRECISIONS.index(precision),
    )


def pointers(
    masks: Sequence[np.ndarray | None] | None, positions: int, vocab: int
) -> tuple[np.ndarray | None, list[np.ndarray]]:
    """The address of each position's mask, 0 for none; and what must stay alive for them."""
    if masks is None or all(mask is None for mask in masks):
        return None, []
    if len(masks) != positions:
        raise ValueError(f"{len(masks)} masks for {positions} positions")
    words = (vocab + 31) // 32
    kept, addresses = [], np.zeros(positions, np.uintp)
    for at, mask in enumerate(masks):
        if mask is None:
            continue
        whole = np.ascontiguousarray(mask).view(np.uint32)
        if whole.ndim != 1 or len(whole) < words:
            raise ValueError(f"a mask of {vocab} ids has {words} words, not {whole.shape}")
        kept.append(whole)
        addresses[at] = whole.ctypes.data
    return addresses, kept


def spelt(
    draws: Sequence[Draw | None] | None, positions: int
) -> "tuple[ctypes.Array[_Draw] | None, np.ndarray | None]":
    """Draws as the library reads them, and which positions have one."""
    if draws is None or all(draw is None for draw in draws):
        return None, None
    if len(draws) != positions:
        raise ValueError(f"{len(draws)} draws for {positions} positions")
    written = (_Draw * positions)()
    for at, draw in enumerate(draws):
        if draw is not None:
            written[at] = _Draw(draw.uniform, draw.temperature, draw.top_p, draw.top_k)
    return written, np.array([draw is not None for draw in draws], np.uint8)


def checked(found: int, error: "ctypes.Array[ctypes.c_char]") -> int:
    if found < 0:
        reason = error.value.decode()
        raise MemoryError(reason) if reason == "out of memory" else ValueError(reason)
    return found


def fall_back(reason: str) -> None:
    """Say once, in one line, that PyTorch takes the library's place."""
    if not _said:
        _said.append(reason)
        print(f"deepnarrow: without the native library, which is slower: {reason}", file=sys.stderr)


_said: list[str] = []
