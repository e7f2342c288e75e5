"""Fixtures every floor uses."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own, so that no model of theirs is kept in the user's. Compiled kernels are shared."""
    own = tmp_path_factory.mktemp("cache")
    users = Path(os.environ.get("DEEPNARROW_CACHE") or Path.home() / ".cache" / "deepnarrow")
    for file in users.glob("kernels-*.so"):
        shutil.copy2(file, own)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEEPNARROW_CACHE", str(own))
        yield own
    for file in own.glob("kernels-*.so"):
        if not (users / file.name).exists():
            users.mkdir(parents=True, exist_ok=True)
            shutil.copy2(file, users)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the checkout. It is large and not ours to publish, so it may be absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder `shared` with real test data beside the checkout")
    return folder
