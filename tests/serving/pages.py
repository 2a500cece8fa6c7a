"""A page that is really served: the process, its address, and a client that has opened it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from orchestrator.serving.site import QUICK_S

START_S = 60
"""How long a busy machine may take to start the server, in seconds."""


class Served:
    """A running ``sweep serve``.

    Attributes:
        url: what it printed, with the token.
        base: the same without path and token.
    """

    def __init__(self, store: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self.errors = store.parent / f"{store.name}-{time.monotonic_ns()}.err"
        with self.errors.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "orchestrator", "serve", *words],
                env={**os.environ, "SWEEP_STORE": str(store), **(env or {})},
                stdout=subprocess.PIPE,
                stderr=errors,
                stdin=subprocess.DEVNULL,
                text=True,
            )
        assert self.process.stdout is not None
        self.url = self.process.stdout.readline().strip()
        assert self.url, self.errors.read_text()
        self.base = self.url.partition("/?")[0]

    @property
    def token(self) -> str:
        """The token of the address."""
        return self.url.partition("token=")[2]

    @contextlib.contextmanager
    def client(self) -> Iterator[httpx.Client]:
        """A client that has opened the address, and so has the cookie."""
        options = {"base_url": self.base, "follow_redirects": True, "timeout": START_S, "trust_env": False}
        with httpx.Client(**options) as client:
            assert client.get(self.url).status_code == 200
            yield client

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Ends the process; returns its exit code and the rest of standard output."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=START_S)
        return self.process.returncode, rest

    def kill(self) -> None:
        """Ends what a failed test left."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def next_page(client: httpx.Client, path: str, changed_s: float) -> str:
    """Returns the next page that may be shown after a change: only one that waited in vain shows the past."""
    while True:
        asked_s = time.monotonic()
        page = client.get(path)
        if float(page.headers["x-read-at"]) >= changed_s:
            return page.text
        assert time.monotonic() - asked_s >= QUICK_S


def content(root: Path) -> dict[str, tuple[int, int]]:
    """Returns each path of a store with its size and time of change, to see whether anything was written."""
    return {
        str(path.relative_to(root)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in root.rglob("*")
    }
