"""Fixtures every floor uses."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real test data beside the checkout. It is large and not ours to publish, so it may be absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "data").is_dir():
        pytest.skip("needs the folder `shared` with real test data beside the checkout")
    return folder
