"""API keys: from a file or the environment, known here only by their SHA-256, compared in constant time."""

import hashlib
import hmac
import os
from collections.abc import Iterable
from pathlib import Path

from deepnarrow.errors import UserError

VARIABLE = "DEEPNARROW_API_KEYS"
SHORTEST = 8  # characters of a key


class Keys:
    """None: everybody may ask."""

    def __init__(self, keys: Iterable[tuple[str, str]] = ()) -> None:
        self._known = [(name, digest(key)) for name, key in keys]

    def __bool__(self) -> bool:
        return bool(self._known)

    def holder(self, header: str | None) -> str | None:
        """Whose key an Authorization header holds. All keys are looked at, whichever fits."""
        scheme, _, key = (header or "").partition(" ")
        if scheme.lower() != "bearer":
            return None
        given, found = digest(key.strip()), None
        for name, known in self._known:
            if hmac.compare_digest(given, known):
                found = name
        return found


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def read_keys(file: Path | None, environment: str | None = None) -> Keys:
    """Keys of a file, one a line, with a name in front if one likes (`NAME KEY`); and those of the environment."""
    found: list[tuple[str, str]] = []
    if file is not None:
        for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1):
            words = line.split("#")[0].split()
            if len(words) > 2:
                raise UserError(f"{file}, line {number}: write one key a line, or a name and a key")
            if words:
                found.append((words[0] if len(words) == 2 else f"key-{len(found) + 1}", words[-1]))
        if not found:
            raise UserError(f"{file} holds no API keys; write one a line")
    given = os.environ.get(VARIABLE, "") if environment is None else environment
    found += [(f"{VARIABLE.lower()}-{n}", key.strip()) for n, key in enumerate(given.split(","), 1) if key.strip()]
    for name, key in found:
        if len(key) < SHORTEST:
            raise UserError(f"the API key {name} is shorter than {SHORTEST} characters, which is easily guessed")
    return Keys(found)
