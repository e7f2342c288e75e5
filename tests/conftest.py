"""Fixtures every floor uses."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepnarrow.files import cache_folder, write_bytes

SHARED = ("kernels-*.so", "builtin/*.json")  # of the cache: compiled kernels, and the built-in prose as it was read


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that no model of theirs is kept in the user's; one for all that run at a time."""
    base = tmp_path_factory.getbasetemp()
    own = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    users = cache_folder()
    share(users, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPNARROW_CACHE", str(own))
        yield own
    share(own, users)


def share(held: Path, wanted: Path) -> None:
    for file in (file for pattern in SHARED for file in held.glob(pattern)):
        there, data = wanted / file.relative_to(held), file.read_bytes()
        if not there.exists() or there.read_bytes() != data:
            write_bytes(there, data)  # whole: another process may be about to read it


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the checkout. It is large and not ours to publish, so it may be absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder `shared` with real test data beside the checkout")
    return folder
