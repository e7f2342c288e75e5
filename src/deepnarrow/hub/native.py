"""Models in the native library's format: folders that are exported, and a cache of those made on the way.

The cache is $DEEPNARROW_CACHE/native, or ~/.cache/deepnarrow/native: one folder for each model folder and precision,
with made_from.json, which lists the files it was made of by size and times. A model whose files have changed since is
converted anew in its place; conversions of models that are gone, and those used longest ago where all together exceed
`LARGEST`, are removed.
"""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deepnarrow import __version__
from deepnarrow.errors import UserError, nearest
from deepnarrow.files import read_json, whole_folder, write_json
from deepnarrow.model import hub_files
from deepnarrow.model.head_file import is_head
from deepnarrow.model.places import Found, find
from deepnarrow.runtime import format
from deepnarrow.runtime.folder import PROMPT, cache, is_native, mark_checked, save_prompt, state_of
from deepnarrow.runtime.layout import PRECISIONS, Section, bfloat16, from_bfloat16, layout, unpacked
from deepnarrow.text.piece_index import NAME as INDEX
from deepnarrow.text.piece_index import write_index

if TYPE_CHECKING:
    from deepnarrow.model.folder import Opened

MADE_FROM = "made_from.json"
FILES = (format.NAME, PROMPT, INDEX, MADE_FROM)
ADAPTER, BASE = "adapter_config.json", "base.json"
READ = (*hub_files.SETTINGS, *hub_files.VOCABULARY, *hub_files.SAFE, *hub_files.OLD, *hub_files.ADAPTER, BASE)
LARGEST = 16 << 30  # bytes of all conversions together; the one just made is kept in any case
LEFT_BEHIND = 24 * 3600.0  # seconds until what an ended process left half-written is removed


def check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UserError(f"unknown precision {precision!r}; {nearest(precision, PRECISIONS)}")


def to_native(opened: "Opened", out: Path, *, precision: str = "float32") -> None:
    """A folder that `generate` and `serve` run without torch, written whole or not at all, then read back.

    A soft prompt becomes prompt.safetensors, which stands in front of every input; the model itself stays as it is.
    """
    from deepnarrow.model.folder import check_replaceable

    check_precision(precision)
    check_replaceable(out, also=FILES)
    write_folder(opened, out, precision)


def write_folder(opened: "Opened", out: Path, precision: str, made_from: dict[str, Any] | None = None) -> None:
    from deepnarrow.model.published import write_config
    from deepnarrow.model.weights import fingerprint

    model, tokenizer = opened.model, opened.tokenizer
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name != "prompt"}
    state = {name: tensor.detach().float().cpu().numpy() for name, tensor in tensors.items()}
    eos = tokenizer.eos if tokenizer else 1
    source = {"origin": opened.origin, "fingerprint": fingerprint(tensors)}
    config = write_config(model.shape, dtype=precision, dropout=model.dropout, eos=eos)
    with whole_folder(out) as temporary:
        if tokenizer is not None:
            tokenizer.save(temporary)
            write_index(temporary)
        if model.prompt is not None:
            save_prompt(temporary, model.prompt.detach().float().cpu().numpy())
        write_json(temporary / "config.json", config)
        if made_from is not None:
            write_json(temporary / MADE_FROM, made_from)
        format.write(
            temporary / format.NAME,
            model.shape,
            precision,
            state,
            vocab_limit=tokenizer.size if tokenizer else None,
            eos=eos,
            source=source,
        )
    check_written(out / format.NAME, state)


def check_written(path: Path, state: dict[str, np.ndarray]) -> None:
    """Read a file back: every number of it is what its precision makes of the weights."""
    state_now = state_of(path)
    file = format.open_file(path)
    mark_checked(path, state_now)
    for section in layout(file.shape, file.precision).sections:
        wanted = np.concatenate([np.atleast_2d(state[name]) for name, _ in section.parts])
        if not holds(section, unpacked(section, file.payload), wanted):
            raise OSError(f"{path} does not hold what was written to it ({section.name} differs); check the disk")


def holds(section: Section, found: np.ndarray, wanted: np.ndarray) -> bool:
    if section.precision == "float32":
        return np.array_equal(found, wanted)
    if section.precision == "bfloat16":
        return np.array_equal(found, from_bfloat16(bfloat16(wanted)))
    step = np.abs(wanted).max(axis=1, keepdims=True) / 127
    return bool((np.abs(found - wanted) <= 0.501 * step).all())


def native_folder(
    name: str | Path,
    precision: str | None = None,
    *,
    revision: str | None = None,
    say: Callable[[str], None] | None = None,
    encoder: bool = False,
) -> Found:
    """The converted folder of any model: itself if it is one, else the one in the cache, made if it is not there.

    precision   float32 (the default), bfloat16 or int8; a converted folder has its own, and another is a `UserError`
    say         told in one line when a model has to be converted first
    encoder     whether the encoder is enough: of one with a head it is what is converted, else that is a `UserError`

    torch is imported only where something has to be converted.
    """
    found = find(name, revision)
    if is_native(found.folder):
        if precision is not None:
            held = format.open_file(found.folder / format.NAME, verify=False).precision
            if held != precision:
                raise UserError(f"{found.origin} was converted to {held}; for {precision} name what it was made from")
        return found
    precision = precision or "float32"
    check_precision(precision)
    if not encoder:
        refuse_head(found.folder, found.origin)
    wanted = made_from(found.folder, precision)
    entry = cache() / entry_name(found.folder, precision)
    if is_fresh(entry, wanted):
        with suppress(OSError):  # a cache that is read only serves as well
            os.utime(entry / MADE_FROM)
        return Found(entry, found.origin)
    with alone(entry.parent):
        if not is_fresh(entry, wanted):  # another process may have made it meanwhile
            if say:
                say(f"converting {found.origin} for the native runtime, once ({precision}, into {entry})")
            write_folder(opened_whole(name, found, revision), entry, precision, wanted)
            prune(entry)
    return Found(entry, found.origin)


def opened_whole(name: str | Path, found: Found, revision: str | None) -> "Opened":
    """A model opened for conversion; of an encoder with a head the encoder."""
    from deepnarrow.model.folder import Opened, open_model, read_model, read_tokenizer

    if not is_head(found.folder):
        return open_model(name, revision=revision)
    model = read_model(found.folder)
    return Opened(model.eval(), read_tokenizer(found.folder), model.shape, found.origin)


def refuse_head(folder: Path, origin: str) -> None:
    if is_head(folder):
        raise UserError(
            f"{origin} is an encoder with a head, which writes no text and has no native format: score it with "
            "`deepnarrow evaluate`, get vectors with `deepnarrow embed`, or export it to hf or sentence-transformers"
        )


def entry_name(folder: Path, precision: str) -> str:
    """One name for one model folder: what is made anew replaces what was there."""
    whole = folder.resolve()
    return f"{whole.name[:40]}-{precision}-{hashlib.sha256(os.fsencode(whole)).hexdigest()[:16]}"


def made_from(folder: Path, precision: str) -> dict[str, Any]:
    """All that a conversion depends on."""
    return {
        "format": format.VERSION,
        "made_by": __version__,
        "folder": str(folder.resolve()),
        "precision": precision,
        "files": files_of(folder),
    }


def files_of(folder: Path, depth: int = 3) -> list[list[Any]]:
    """[name, size, times, number] of each file of a model; of an adapter those of its base too.

    Times are those of content and of entry: a file copied over with its old time has a new one of the second kind.
    """
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and any(path.match(pattern) for pattern in READ):
            state = path.stat()
            found.append([path.name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino])
    if (folder / ADAPTER).is_file() and not (folder / "config.json").is_file() and depth:
        settings = read_json(folder / ADAPTER)
        base = settings.get("base_model_name_or_path") if isinstance(settings, dict) else None
        if isinstance(base, str) and Path(base).expanduser().is_dir():
            under = find(base).folder
            found += [[f"{under.resolve()}/{name}", *rest] for name, *rest in files_of(under, depth - 1)]
    return found


def is_fresh(entry: Path, wanted: dict[str, Any]) -> bool:
    if not (entry / MADE_FROM).is_file() or not is_native(entry):
        return False
    try:
        return read_json(entry / MADE_FROM) == wanted
    except UserError:
        return False


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Of several processes that convert one does so at a time."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # not Unix: the last one wins
        yield
        return
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def prune(keep: Path) -> None:
    """Remove conversions of what is gone, then the longest unused ones beyond `LARGEST`."""
    held = []
    for entry in sorted(keep.parent.iterdir()):
        if entry.is_dir() and entry.name.startswith("."):
            if time.time() - entry.stat().st_mtime > LEFT_BEHIND:
                shutil.rmtree(entry, ignore_errors=True)  # a process that has its file mapped keeps it
        elif entry.is_dir() and entry != keep and (entry / MADE_FROM).is_file():
            if source_is_gone(entry):
                shutil.rmtree(entry, ignore_errors=True)
            else:
                held.append(((entry / MADE_FROM).stat().st_mtime_ns, entry))
    total = folder_bytes(keep)
    for _, entry in sorted(held, reverse=True):
        total += folder_bytes(entry)
        if total > LARGEST:
            shutil.rmtree(entry, ignore_errors=True)


def source_is_gone(entry: Path) -> bool:
    try:
        return not Path(str(read_json(entry / MADE_FROM).get("folder"))).is_dir()
    except (UserError, AttributeError):
        return True


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
