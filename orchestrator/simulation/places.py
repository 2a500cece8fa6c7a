"""The two kinds of stores in which a simulated sweep may run, as one run sees them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from orchestrator.simulation.bucket import Bucket, BucketConnection
from orchestrator.simulation.files import ROOT, SHARED, Files
from orchestrator.simulation.world import Machine, SimulatedProcess, World
from orchestrator.store.access import Outage
from orchestrator.store.bucket import RemoteStore
from orchestrator.store.ledger import Ledger, open_ledger

Reply = Callable[[str], bool]


class StorePlace(Protocol):
    """A store in memory.

    Attributes:
        url: of the store.
        reply: what happens to the replies to changes; it may raise an error of the network, or return True
            if a request was made a second time because the reply to the first one was lost.
    """

    url: str
    reply: Reply

    def ledger(self, process: SimulatedProcess, stop_asked: Callable[[], str]) -> Ledger:
        """Return the ledger of a process, as `orchestrator.execution.main` opens it."""

    def content(self, key: str) -> bytes | None:
        """Return the content of a key, for checks; None if there is none."""

    def durable(self, key: str) -> bytes | None:
        """Return what no loss of power takes away of it."""

    def watch(self, changed: Callable[[str, str], object]) -> None:
        """Have a function called with each change of a key, after it: its kind and the key."""

    def reaches(self, what: str) -> bool:
        """Return whether a step needs the network."""


class FolderPlace:
    """A shared folder; see `StorePlace`.

    Args:
        files: of the world.
        prepared: the files that are there in the beginning, by path.
    """

    url = SHARED

    def __init__(self, files: Files, prepared: Mapping[str, tuple[int, bytes]]) -> None:
        self._files = files
        files.restore(prepared)

    @property
    def reply(self) -> Reply:
        """What happens to replies."""
        return self._files.reply

    @reply.setter
    def reply(self, reply: Reply) -> None:
        self._files.reply = reply

    def ledger(self, process: SimulatedProcess, stop_asked: Callable[[], str]) -> Ledger:
        """Return the ledger of a process."""
        return open_ledger(SHARED).patient(Outage(600.0, lambda line: None, stop_asked))

    def content(self, key: str) -> bytes | None:
        """Return the content of a key."""
        return self._files.content(f"{SHARED}/{key}")

    def durable(self, key: str) -> bytes | None:
        """Return what is durable of it."""
        return self._files.durable(f"{SHARED}/{key}")

    def watch(self, changed: Callable[[str, str], object]) -> None:
        """Have a function called with each change."""

        def shared(kind: str, path: str) -> None:
            if path.startswith(SHARED):
                changed(kind, path[len(SHARED) + 1 :])

        self._files.changed = shared

    def reaches(self, what: str) -> bool:
        """Return whether a step is on the shared folder."""
        return what.startswith(SHARED)


class BucketPlace:
    """A bucket, and a disk for each machine's cache; see `StorePlace`.

    Args:
        world: in which it is.
        prepared: the files that a folder would have in the beginning, by path.
    """

    url = "s3://simulated-bucket/runs"

    def __init__(self, world: World, prepared: Mapping[str, tuple[int, bytes]]) -> None:
        self._world = world
        self._bucket = Bucket(world)
        for path, (_, data) in prepared.items():
            if data:
                self._bucket.put(path[len(SHARED) + 1 :], data)

    @property
    def reply(self) -> Reply:
        """What happens to replies."""
        return self._bucket.reply

    @reply.setter
    def reply(self, reply: Reply) -> None:
        self._bucket.reply = reply

    def ledger(self, process: SimulatedProcess, stop_asked: Callable[[], str]) -> Ledger:
        """Return the ledger of a process."""
        home = Path(ROOT, "disks", process.machine.name)
        connection = BucketConnection(self._world, self._bucket, process)
        return Ledger(RemoteStore(self.url, home=home, connection=connection))

    def content(self, key: str) -> bytes | None:
        """Return the content of a key."""
        return self._bucket.objects.get(key)

    durable = content

    def watch(self, changed: Callable[[str, str], object]) -> None:
        """Have a function called with each change."""
        self._bucket.changed = changed

    def reaches(self, what: str) -> bool:
        """Return whether a step is a request to the bucket."""
        return not what.startswith("/")


def nobody() -> SimulatedProcess:
    """Return a process that never runs, for whoever looks at a store from outside."""
    return SimulatedProcess("nobody", Machine("nowhere"), lambda: None, 0.0)
