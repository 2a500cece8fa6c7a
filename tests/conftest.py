"""Fixtures that every part of the tests may use: a store, and the command `sweep` as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests import forked

# On a busy machine, time tells nothing about a test.
settings.register_profile("any_load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_load")


class Sweep:
    """Runs ``sweep VERB ...`` in a folder, with a store of the test's own."""

    def __init__(self, folder: Path, store: Path, env: Mapping[str, str] | None = None) -> None:
        self.folder, self.store = folder, store
        self.env = None if env is None else {**env, "SWEEP_STORE": str(store)}

    def __call__(self, *words: str, code: int | None = 0, timeout_s: float = 120) -> str:
        """Runs a verb; returns both streams, and checks the exit code unless it is None."""
        env = self.env or {**os.environ, "SWEEP_STORE": str(self.store)}
        if forked.fits(env):
            code_of, out, err = forked.run(words, self.folder, env, timeout_s)
        else:
            done = subprocess.run(
                [sys.executable, "-m", "orchestrator", *words],
                cwd=self.folder,
                env=env,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                text=True,
                timeout=timeout_s,
                check=False,
            )
            code_of, out, err = done.returncode, done.stdout, done.stderr
        assert "Traceback" not in err, err
        said = out + err
        assert code is None or code_of == code, f"exit {code_of}\n{said}"
        return said

    def json(self, *words: str) -> Any:
        """Runs a reading verb with ``--json``."""
        return json.loads(self(*words, "--json"))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the bytecode of the tests, which each worker would compile anew; no test runs meanwhile."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False
    try:
        return (yield)
    finally:
        sys.dont_write_bytecode = before


_USUAL_UMASK = os.umask(0o022)
os.umask(_USUAL_UMASK)


@pytest.fixture(autouse=True)
def usual_umask() -> None:
    """Set the umask that the tests began with: a store opened in this process makes it follow its folder."""
    os.umask(_USUAL_UMASK)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """Where the test's store will be; nothing is there yet."""
    return tmp_path / "store"


@pytest.fixture
def sweep(tmp_path: Path, store: Path) -> Sweep:
    """The command in an empty folder of the user's."""
    folder = tmp_path / "project"
    folder.mkdir()
    return Sweep(folder, store)
