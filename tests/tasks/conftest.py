"""Fixtures for the tasks: public data that lies beside the repository, where it does."""

from __future__ import annotations

from pathlib import Path

import pytest

PLACES = [parent / "shared" / "data" for parent in Path(__file__).resolve().parents[3:]]


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Returns the folder of public data, or skips: it is never copied into the repository."""
    found = next((place for place in PLACES if place.is_dir()), None)
    if found is None:
        pytest.skip(f"no public data in {' or '.join(map(str, PLACES))}")
    return found
