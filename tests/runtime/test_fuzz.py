"""Converted files that are wrong in every way: refused by a `UserError`, or a model that works. Never a crash.

The mutations know the format, and most mend the hash afterwards, so that what lies behind it is reached: the numbers of
the front, the description, the shape in it, the weights. As a script it goes on for as long as one likes (`make fuzz`,
under sanitizers); the file at hand is left where it says if the process dies.
"""

import argparse
import ctypes
import hashlib
import json
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from deepnarrow.errors import UserError
from deepnarrow.runtime import native
from deepnarrow.runtime.engine import Draw
from deepnarrow.runtime.format import FRONT, MAGIC, VERSION, open_file, payload_offset, sections_json, write
from deepnarrow.runtime.layout import PRECISIONS, layout
from deepnarrow.shapes.shape import parse

SHAPES = (
    "tiny-nl1-dm32-ff64-kv8-nh4-v99",
    "tiny-nl1-dm32-ff64-kv8-nh4-kh2-v99-sh",
    "tiny-el2-dl1-dm20-ff36-kv5-nh4-kh1-skv-v67-geglu-untied",
    "tiny-el1-dl0-dm16-ff16-kv4-nh2-v40",
)
ODD = (
    0,
    1,
    -1,
    2,
    3,
    7,
    15,
    16,
    17,
    255,
    256,
    2**15,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**53,
    2**63 - 1,
    2**63,
    10**30,
)
STRANGE = (
    None,
    True,
    False,
    "",
    "int8",
    "small",
    [],
    {},
    [[]],
    {"a": [None]},
    0.5,
    -0.0,
    1e308,
    "\x00",
    "\ud800",
    "x" * 9000,
)
FLOATS = (0.0, -0.0, 1.0, -1.0, 1e30, -1e30, 3e38, 1e-40, float("inf"), float("-inf"), float("nan"))


def whole_files(folder: Path) -> list[bytes]:
    """A model of every shape and precision, with weights of the size that training leaves."""
    files = []
    for name in SHAPES:
        shape = parse(name)
        for precision in PRECISIONS:
            rng = np.random.default_rng(len(files))
            tensors = {
                part: rng.normal(size=(rows, section.columns)).astype(np.float32) * 0.2
                for section in layout(shape, precision).sections
                for part, rows in section.parts
            }
            path = folder / "whole.dn"
            write(path, shape, precision, tensors, vocab_limit=shape.vocab - 3, source={"origin": "made here"})
            files.append(path.read_bytes())
    return files


def parts(file: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack_from("<I", file, 12)[0]
    return json.loads(file[FRONT : FRONT + length]), file[payload_offset(length) :]


def joined(described: bytes, payload: bytes) -> bytes:
    """A file whose front, padding and hash are right, whatever stands in it."""
    rest = described + bytes(payload_offset(len(described)) - FRONT - len(described)) + payload
    return MAGIC + struct.pack("<II", VERSION, len(described)) + hashlib.sha256(rest).digest() + bytes(16) + rest


def mended(file: bytes) -> bytes:
    return file[:16] + hashlib.sha256(file[64:]).digest() + file[48:] if len(file) >= 64 else file


def flipped(random: Random, data: bytes, first: int = 0, last: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 64))):
        at = random.randrange(first, len(data) if last is None else last)
        changed[at] = random.choice((changed[at] ^ 1 << random.randrange(8), random.randrange(256), 0, 255))
    return bytes(changed)


def front(random: Random, file: bytes) -> bytes:
    changed = flipped(random, file, 0, FRONT)
    if random.random() < 0.5:
        changed = MAGIC + struct.pack("<II", random.choice((0, 1, 1, 2)), random.choice(ODD) % 2**32) + changed[16:]
    return mended(changed) if random.random() < 0.7 else changed


def length(random: Random, file: bytes) -> bytes:
    size = random.choice((0, 1, 63, 64, 65, 4095, 4096, random.randrange(len(file)), len(file) - 1, len(file) + 64))
    return mended((file + bytes(64))[:size])


def text(random: Random, file: bytes) -> bytes:
    """The description's letters."""
    return mended(flipped(random, file, FRONT, FRONT + struct.unpack_from("<I", file, 12)[0]))


def value(random: Random, file: bytes) -> bytes:
    """One value of the description, or of one of its sections."""
    said, payload = parts(file)
    inside = random.choice((said, said, said, random.choice(said["sections"]), said["source"]))
    name = random.choice([*inside, "new"])
    old = inside.get(name)
    inside[name] = random.choice((random.choice(ODD), random.choice(STRANGE), other(random, old)))
    if random.random() < 0.1:
        del inside[name]
    return joined(json.dumps(said, ensure_ascii=random.random() < 0.9).encode("utf-8", "surrogatepass"), payload)


def other(random: Random, old: object) -> object:
    """Something near to what stood there."""
    if isinstance(old, int):
        return old + random.choice((-64, -1, 1, 64, 4096))
    if isinstance(old, str) and old:
        at = random.randrange(len(old))
        return old[:at] + random.choice("0123456789-vdmxz") + old[at + random.randrange(2) :]
    return old


def shape(random: Random, file: bytes) -> bytes:
    """Another shape, with the description that belongs to it and as much payload as it has, or nearly."""
    said, payload = parts(file)
    name = said["shape"]
    for _ in range(random.choice((1, 1, 2))):
        digits = [at for at, letter in enumerate(name) if letter.isdigit()]
        at = random.choice(digits)
        name = name[:at] + random.choice(("0", "1", "2", "3", "9", "16", "999999999")) + name[at + 1 :]
    said["shape"] = name
    said["precision"] = random.choice((said["precision"], *PRECISIONS))
    with suppress(UserError):
        wanted = parse(name)
        few = wanted.encoder_layers + wanted.decoder_layers < 50  # a list of the sections can be made
        if few and (found := layout(wanted, said["precision"])).bytes < 1 << 22:
            said |= {"shape": str(wanted), "bytes": found.bytes, "sections": sections_json(found)}
            said["vocab_limit"] = min(said["vocab_limit"], wanted.vocab)
            payload = (payload * (found.bytes // len(payload) + 1))[: found.bytes + random.choice((0, 0, 0, -64, 64))]
    for _ in range(2):  # where the payload begins depends on the text itself
        said["payload"] = payload_offset(len(json.dumps(said).encode()))
    return joined(json.dumps(said).encode(), payload)


def weights(random: Random, file: bytes) -> bytes:
    """Numbers that no training leaves, and stretches that moved."""
    said, payload = parts(file)
    changed = bytearray(payload)
    for _ in range(random.choice((1, 4, 100))):
        at = random.randrange(len(payload) // 4) * 4
        kind, count = random.randrange(4), random.choice((1, 16, 1000))
        if kind == 0:
            put = struct.pack("<f", random.choice(FLOATS)) * count
        elif kind == 1:
            put = random.randbytes(4 * count)
        elif kind == 2:
            put = bytes([random.choice((0, 127, 128, 255))]) * (4 * count)
        else:
            start = random.randrange(len(payload))
            put = payload[start : start + 4 * count]
        put = put[: len(payload) - at]
        changed[at : at + len(put)] = put
    return joined(json.dumps(said).encode(), bytes(changed))


def untouched(random: Random, file: bytes) -> bytes:
    return file


MUTATIONS: tuple[Callable[[Random, bytes], bytes], ...] = (
    front, length, text, value, value, shape, shape, weights, weights, weights, untouched,
)  # fmt: skip


def attempt(path: Path, random: Random) -> bool:
    """Open a file and let the model do all it can; whether there was one. Only a `UserError` may come."""
    verify = random.random() < 0.7
    try:
        file = open_file(path, verify=verify)
        if native.usable():
            engine = native.open_engine(
                path, threads=random.choice((1, 1, 2)), kernels=random.choice((None, *native.kernels())), verify=verify
            )
    except UserError as error:
        reason = str(error)
    else:
        reason = ""
    assert "\n" not in reason
    assert len(reason) < 20_000
    if reason:
        return False
    with np.errstate(all="ignore"):  # weights of any size
        assert len(file.tensors()) > 3
    if native.usable():
        try:
            with np.errstate(all="ignore"):
                work(engine, random)
        finally:
            engine.close()
    return True


def work(engine: native.NativeEngine, random: Random) -> None:
    shape, words = engine.shape, (engine.shape.vocab + 31) // 32
    inputs = [[random.randrange(1, shape.vocab) for _ in range(random.choice((1, 2, 30)))] for _ in range(2)]
    assert engine.embed(inputs).shape == (2, shape.d_model)
    if not shape.decoder_layers:
        return
    memories = engine.encode(inputs, [None, np.full((3, shape.d_model), 0.5, np.float32)])
    rows = [engine.start(memory) for memory in memories]
    rows.append(engine.fork(rows[0]))
    mask = np.frombuffer(random.randbytes(4 * words), np.uint32)
    for _ in range(3):
        middle = [random.randrange(shape.vocab)] * random.choice((1, 18))
        chosen = engine.step(
            rows, [[0], middle, [0]], top=random.choice((1, 2, 9, shape.vocab + 5)),
            masks=random.choice((None, [mask] * (len(middle) + 2))),
        )  # fmt: skip
        assert ((chosen.ids >= -1) & (chosen.ids < engine.vocab_limit)).all()
        chosen = engine.step(
            rows, [[0], [0], [0]], top=2, masks=[mask, None, np.zeros(words, np.uint32)],
            draws=[Draw(random.random(), 0.7, random.choice((0, 3)), random.choice((1.0, 0.5))), None, Draw(0.999)],
        )  # fmt: skip
        assert ((chosen.ids >= -1) & (chosen.ids < engine.vocab_limit)).all()
    engine.cut(rows[0], 1)
    assert engine.logits(rows[:1], [[0, 1]]).shape == (2, shape.vocab)


def opened_directly(random: Random, file: bytes) -> bool:
    """The library's own checks, which the file's stand before: any numbers for a shape over a real payload."""
    said, payload = parts(file)
    held = np.frombuffer(payload + bytes(64), np.uint8).copy()
    asked = native.described(parse(said["shape"]), said["precision"])
    for _ in range(random.choice((0, 1, 2, 5))):
        name, kind = random.choice(asked._fields_)
        top = 2**63 if kind is ctypes.c_int64 else 2**31
        near = getattr(asked, name) + random.choice((-1, 1, 2))
        setattr(asked, name, (random.choice((near, near, *ODD)) + top) % (2 * top) - top)
    size = max(0, len(payload) + random.choice((0, 0, 0, -64, -1, 1, -len(payload))))
    error = ctypes.create_string_buffer(native.ERROR_BYTES)
    handle = native.library().dn_open(ctypes.byref(asked), held.ctypes.data, size, 1, None, error)
    if handle:
        native.library().dn_close(handle)
    else:
        assert error.value
    return bool(handle)


def fuzz(seed: int, rounds: int | None, seconds: float | None, folder: Path) -> Counter[str]:
    """So many rounds, or so long. The same seed makes the same files."""
    random, counted = Random(seed), Counter[str]()
    files, end = whole_files(folder), time.monotonic() + (seconds or 1e9)
    path = folder / "current.dn"
    while (rounds is None or counted["files"] < rounds) and time.monotonic() < end:
        file = random.choice(files)
        mutation = random.choice(MUTATIONS)
        path.unlink(missing_ok=True)  # another may still be mapped
        path.write_bytes(mutation(random, file))
        came = attempt(path, random)
        assert came or mutation is not untouched, "a good file was refused"
        counted["files"] += 1
        counted["worked" if came else "refused"] += 1
        if native.usable():
            counted["shapes"] += 1
            counted["shapes opened"] += opened_directly(random, file)
    return counted


def test_wrong_files_are_refused_and_never_crash(tmp_path: Path) -> None:
    found = fuzz(seed=1, rounds=400, seconds=None, folder=tmp_path)
    assert found["refused"] > 100, found  # that mutations hit
    assert found["worked"] > 100, found  # that they are not all refused at the door


def test_the_librarys_own_checks_refuse_too(tmp_path: Path) -> None:
    if not native.usable():
        pytest.skip("the native library is not built")
    files, random = whole_files(tmp_path), Random(2)
    found = Counter(opened_directly(random, random.choice(files)) for _ in range(1000))
    assert found[True] > 50
    assert found[False] > 300


def main() -> None:
    parser = argparse.ArgumentParser(description="Wrong files without end.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the file at hand lies (default: a temporary folder)")
    asked = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = asked.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"the file at hand: {folder / 'current.dn'}", flush=True)
        found = fuzz(asked.seed, None, asked.seconds, folder)
    print(
        f"fuzz: {found['files']:,} files in {time.monotonic() - began:.0f} s (seed {asked.seed}): {found['refused']:,} "
        f"refused, {found['worked']:,} worked; {found['shapes']:,} shapes given to the library itself, "
        f"{found['shapes opened']:,} opened; 0 crashes"
    )


if __name__ == "__main__":
    sys.exit(main())
