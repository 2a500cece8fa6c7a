"""A bucket for one test: opening it as several nodes do, and looking into it as a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from orchestrator.store.bucket import RemoteStore
from orchestrator.store.ledger import Ledger
from tests.bucket.server import Proxy
from tests.conftest import Sweep


class Bucket:
    """A store's address, the proxy that leads to it, and what was opened of it.

    Args:
        url: of the store.
        proxy: before the server.
        folder: of the test.
    """

    def __init__(self, url: str, proxy: Proxy, folder: Path) -> None:
        self.url, self.proxy, self.folder = url, proxy, folder
        self.opened: list[RemoteStore] = []
        self._own: RemoteStore | None = None

    def open(self, node: str = "cache") -> RemoteStore:
        """Opens the store as a process of a node does; a node is its cache."""
        objects = RemoteStore(self.url, home=self.folder / node)
        self.opened.append(objects)
        return objects

    def ledger(self, node: str = "cache") -> Ledger:
        """The records, seen from a node."""
        return Ledger(self.open(node))

    def mirror(self) -> Path:
        """Copies all small objects to a folder, as it would be if the store were one; returns it."""
        self._own = self._own or self.open("mirror-cache")
        root = self.folder / "mirror"
        sizes = self._own.trees([""])[""]
        for path in [p for p in root.rglob("*") if p.is_file()]:
            if path.relative_to(root).as_posix() not in sizes:
                path.unlink()
        for place in [p for p in root.rglob("*") if p.is_dir()]:
            if place.is_dir() and not any(p.is_file() for p in place.rglob("*")):
                shutil.rmtree(place)
        wanted = [key for key, size in sizes.items() if size < 2**20]
        for key, data in self._own.get_many(wanted).items():
            if data is not None:
                (root / key).parent.mkdir(parents=True, exist_ok=True)
                (root / key).write_bytes(data)
        return root


class BucketSweep(Sweep):
    """The command over a bucket, on one node; `store` is a fresh copy of it as a folder, at each look."""

    def __init__(self, folder: Path, bucket: Bucket, *, node: str = "cache") -> None:
        self.bucket = bucket
        super().__init__(folder, Path())
        cache = str(bucket.folder / node)
        self.env = {**os.environ, "SWEEP_STORE": bucket.url, "SWEEP_CACHE": cache}

    @property
    def store(self) -> Path:  # type: ignore[override]
        return self.bucket.mirror()

    @store.setter
    def store(self, value: Path) -> None:
        pass
