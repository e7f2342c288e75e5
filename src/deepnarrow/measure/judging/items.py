"""The items of a test set: their fingerprint, and files with the numbers of some, such as those a corpus holds."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deepnarrow.errors import UserError
from deepnarrow.files import read_json, write_json
from deepnarrow.tasks import Pair


def fingerprint(pairs: Sequence[Pair]) -> str:
    """A SHA-256 over the items, so that two evaluations are compared on the same ones only."""
    written = json.dumps([[pair.inputs, pair.accepted, pair.group, pair.negated] for pair in pairs])
    return hashlib.sha256(written.encode()).hexdigest()


def write_numbers(path: Path, numbers: Sequence[int], *, items: str, **about: Any) -> None:
    """`items` is the fingerprint of the whole set, so that the numbers are never read against another one."""
    write_json(path, {"items": items, **about, "numbers": sorted(numbers)})


def read_numbers(path: Path, *, items: str, n: int) -> set[int]:
    """The numbers of a file, from 0: one that `write_numbers` wrote, or a plain list with a number on each line."""
    if path.suffix == ".json":
        found = read_json(path)
        if not isinstance(found, dict) or not isinstance(found.get("numbers"), list):
            raise UserError(f"{path} holds no item numbers; `deepnarrow corpus overlap --out FILE.json` writes them")
        if found.get("items") != items:
            raise UserError(
                f"the numbers in {path} are of other items than those scored here; make them with the same task, split "
                "and data"
            )
        words = [str(number) for number in found["numbers"]]
    elif path.is_file():
        words = path.read_text("utf-8", errors="replace").split()
    else:
        raise UserError(f"no such file: {path}")
    if wrong := next((word for word in words if not word.isdecimal() or int(word) >= n), None):
        raise UserError(f"{path} holds {wrong!r}, but the {n:,} items have the numbers 0 to {n - 1:,}")
    return {int(word) for word in words}
