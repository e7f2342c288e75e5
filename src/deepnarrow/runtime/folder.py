"""A converted model's folder: all that is needed to answer texts, and nothing that needs torch to be read.

model.dn             the weights (format.py)
tokenizer.json, ...  the tokenizer's files, where the model has one
prompt.safetensors   of a soft prompt: vectors [P, D] that stand in front of every input
config.json          for people and other tools; the shape that counts is model.dn's own
"""

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from deepnarrow.errors import UserError
from deepnarrow.files import cache_folder, write_bytes
from deepnarrow.runtime.format import NAME
from deepnarrow.shapes.shape import Shape

PROMPT, VECTORS = "prompt.safetensors", "prompt_embeddings"


def is_native(folder: Path) -> bool:
    return (folder / NAME).is_file()


def prompt_in(folder: Path, shape: Shape) -> np.ndarray | None:
    """The soft prompt of a folder, float32 [P, D], or None where it has none."""
    path = folder / PROMPT
    if not path.is_file():
        return None
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        held = load(path.read_bytes())
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}); export the soft prompt again") from None
    vectors = held.get(VECTORS)
    if vectors is None or vectors.ndim != 2 or vectors.shape[1] != shape.d_model or not len(vectors):
        found = {name: list(tensor.shape) for name, tensor in held.items()}
        raise UserError(f"{path} should hold {VECTORS} [length, {shape.d_model}], but holds {found}")
    return np.asarray(vectors, np.float32)


def save_prompt(folder: Path, vectors: np.ndarray) -> None:
    """Write [P, D] where `prompt_in` finds it."""
    from safetensors.numpy import save

    write_bytes(folder / PROMPT, save({VECTORS: np.ascontiguousarray(vectors, np.float32)}))


def cache() -> Path:
    """Where conversions are kept, and what was seen of converted files."""
    return cache_folder() / "native"


def was_checked(path: Path) -> bool:
    """Whether this very file had its hash checked before, here and by this user.

    A file is known by its size, its times (of content and of entry, which nothing but the system's clock sets) and its
    number. So a program that starts a hundred times does not read a gigabyte a hundred times over.
    """
    try:
        return (cache() / "checked" / name_of(path)).read_text("ascii") == state_of(path)
    except (OSError, UnicodeDecodeError):
        return False


def mark_checked(path: Path, state: str) -> None:
    """Note that the file, which was in this `state_of` before the check, has the right hash. May fail silently."""
    with suppress(OSError):
        write_bytes(cache() / "checked" / name_of(path), state.encode("ascii"))


def state_of(path: Path) -> str:
    found = path.stat()
    return json.dumps([found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev])


def name_of(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]
