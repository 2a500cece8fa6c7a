"""What tests of apps share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.apps import app
from tests.apps.app import Composed


@pytest.fixture
def composed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Composed:
    app.write(tmp_path)
    for name, value in app.environment().items():
        monkeypatch.setenv(name, value)
    return Composed(tmp_path)
