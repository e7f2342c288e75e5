"""Files that are whole or absent: written to a temporary name, synced to disk, then renamed."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError


def cache_folder() -> Path:
    """Where what can be made again is kept: $DEEPNARROW_CACHE, else ~/.cache/deepnarrow."""
    return Path(os.environ.get("DEEPNARROW_CACHE") or Path.home() / ".cache" / "deepnarrow")


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` so that a reader sees the old file or the new one, never a part of either."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Read one JSON file; a missing or broken one is a `UserError` that names it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise UserError(f"no such file: {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or delete it and start again") from None


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` (replacing it) when the block ends without an error.

    Every file in it is synced before the rename, so that a power cut leaves the old folder or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        take_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def take_place(temporary: Path, path: Path) -> None:
    """Sync every file of a finished folder, then rename it to `path`, in place of one of that name if there is one."""
    usual = temporary.stat().st_mode & 0o666  # some libraries make files that only their owner can read
    for file in temporary.rglob("*"):
        if file.is_file():
            file.chmod(usual)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    sync_folder(temporary)
    if path.exists():
        old = path.with_name(f".{path.name}.{os.getpid()}.old")
        shutil.rmtree(old, ignore_errors=True)
        path.replace(old)
        temporary.replace(path)
        shutil.rmtree(old, ignore_errors=True)
    else:
        temporary.replace(path)
    sync_folder(path.parent)


def append_json(path: Path, value: Any) -> None:
    """Add one JSON line and sync it. A torn last line, left by a power cut, is cut off first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            if file.read(1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write((json.dumps(value, ensure_ascii=False) + "\n").encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Every whole line of a JSONL file, in order; a torn last line is left out, any other broken line is an error."""
    if not path.exists():
        return []
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], start=1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (UnicodeDecodeError, json.JSONDecodeError):
            raise UserError(f"{path} line {number} is not valid JSON; mend or delete that line") from None
    return rows


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(path: Path) -> None:
    """Make a rename in `path` survive a power cut. Not every file system allows it; then nothing is lost but time."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
