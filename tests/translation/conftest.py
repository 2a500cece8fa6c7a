"""Fixtures for translations: the public data, and an endpoint on loopback."""

from __future__ import annotations

import pytest

from tests.tasks.conftest import public_data as public_data
from tests.translation.server import KEY


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key of the endpoint; each test sets the address of its own."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
