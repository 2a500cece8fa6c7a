"""Fixtures for the tasks: public data that lies beside the repository, where it does."""

from __future__ import annotations

from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def public_data() -> Path:
    """Returns the folder of public data, or skips: it is never copied into the repository."""
    if not DATA.is_dir():
        pytest.skip(f"no public data in {DATA}")
    return DATA
