"""The two kinds of stores in which a simulated sweep may run, and the bucket in memory of one of them."""

from __future__ import annotations

import bisect
import errno
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from orchestrator.simulation.files import ROOT, SHARED, Files
from orchestrator.simulation.world import Machine, SimulatedProcess, World
from orchestrator.store.access import Outage
from orchestrator.store.bucket import RemoteStore
from orchestrator.store.client import Connection, Move, WireReply
from orchestrator.store.ledger import Ledger, open_ledger

SLOW_S = 0.5
"""Longest time that a transfer of files takes, in seconds."""


class Bucket:
    """The objects of a bucket. Each request is atomic, and shown to all at once, as S3 and GCS promise.

    Args:
        world: in which it is.

    Attributes:
        objects: key to content.
        changed: called with each change, after it: its kind and the key.
        reply: called after each change that a process asked for; it may raise an error of the network.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.objects: dict[str, bytes] = {}
        self._order: list[str] = []  # the keys, sorted
        self.changed: Callable[[str, str], object] = lambda kind, key: None
        self.reply: Callable[[str], bool] = lambda kind: False

    def put(self, key: str, data: bytes, kind: str = "put") -> None:
        """Write an object."""
        if key not in self.objects:
            bisect.insort(self._order, key)
        self.objects[key] = data
        self.changed(kind, key)

    def tree(self, prefix: str) -> dict[str, int]:
        """Return path and size of each object under a prefix."""
        start = f"{prefix}/" if prefix else ""
        return {key[len(start) :]: len(self.objects[key]) for key in self._below(prefix)}

    def names(self, prefix: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the names directly under a prefix, in their order: objects, and the parts of longer keys."""
        skip = len(prefix) + 1 if prefix else 0
        files: list[str] = []
        folders: dict[str, None] = {}
        for key in self._below(prefix):
            name, is_folder, _ = key[skip:].partition("/")
            if is_folder:
                folders[name] = None
            else:
                files.append(name)
        return tuple(files), tuple(sorted(folders))

    def _below(self, prefix: str) -> list[str]:
        """Return the keys under a prefix, in their order."""
        if not prefix:
            return [*self._order]
        first = bisect.bisect_left(self._order, f"{prefix}/")
        return self._order[first : bisect.bisect_left(self._order, f"{prefix}0", first)]  # "0" follows "/"

    def delete(self, prefix: str) -> None:
        """Delete the objects under a prefix, or the object of that name."""
        for key in self._below(prefix) or [prefix]:
            if self.objects.pop(key, None) is not None:
                del self._order[bisect.bisect_left(self._order, key)]
                self.changed("unlink", key)


class BucketConnection(Connection):
    """What a broker would do for one process; see `orchestrator.store.client.Connection`.

    Args:
        world: in which the process runs.
        bucket: that it uses.
        process: that it serves. Transfers end with it.
    """

    def __init__(self, world: World, bucket: Bucket, process: SimulatedProcess) -> None:
        self._world = world
        self._bucket = bucket
        self._serves = process
        self._number = 0
        self._replies: dict[int, WireReply | None] = {}

    def call(
        self,
        verb: str,
        *keys: str,
        data: bytes = b"",
        start: int = 0,
        limit: int | None = None,
        moves: Sequence[Move] = (),
        keepalive: Callable[[], object] = lambda: None,
    ) -> Any:
        """Make a request and wait for its reply; see `Connection.call`."""
        if verb in ("upload", "download"):
            number = self.begin(verb, moves=moves)
            while (answer := self.taken(number, wait_s=0.1)) is None:
                keepalive()
            if answer.error:
                raise OSError(answer.errno, answer.error)
            return answer.value
        self._world.step(verb, keys[0])
        found = self._answer(verb, keys, data, start, limit)
        if verb in ("create", "put", "delete"):
            self._bucket.reply(verb)
        return found

    def _answer(self, verb: str, keys: Sequence[str], data: bytes, start: int, limit: int | None) -> Any:
        bucket = self._bucket
        match verb:
            case "create":
                if keys[0] in bucket.objects:
                    return False
                bucket.put(keys[0], data, "create")
                return True
            case "put":
                return bucket.put(keys[0], data)
            case "get":
                return bucket.objects.get(keys[0])
            case "get_many":
                return [bucket.objects.get(key) for key in keys]
            case "read_from":
                end = None if limit is None else start + limit
                return bucket.objects.get(keys[0], b"")[start:end]
            case "list":
                return bucket.names(keys[0])
            case "list_many":
                return [bucket.names(key) for key in keys]
            case "trees":
                return [bucket.tree(key) for key in keys]
            case "delete":
                return bucket.delete(keys[0])
        raise OSError(errno.EINVAL, f"no simulated request {verb}")

    def begin(
        self,
        verb: str,
        *keys: str,
        data: bytes = b"",
        start: int = 0,
        limit: int | None = None,
        moves: Sequence[Move] = (),
    ) -> int:
        """Begin a transfer of files; each of them arrives by itself."""
        self._world.step(verb, moves[0].key if moves else "")
        self._number += 1
        number = self._number
        self._replies[number] = None
        seconds = SLOW_S * self._world.random.random()
        for place, move in enumerate(self._world.random.sample(moves, len(moves))):
            due_s = seconds * (place + 1) / len(moves)
            self._world.after(due_s, functools.partial(self._transfer, number, verb, move))
        self._world.after(seconds, lambda: self._finish(number))
        return number

    def _transfer(self, number: int, verb: str, move: Move) -> None:
        """Transfer a file, unless the broker has ended."""
        if number not in self._replies or not self._serves.is_alive:
            return
        try:
            if self._serves.machine.cut_until_s > self._world.now_s:
                raise OSError(errno.EIO, "the network is down")
            if verb == "upload":
                self._bucket.put(move.key, Path(move.path).read_bytes())
            elif move.key in self._bucket.objects:
                Path(move.path).parent.mkdir(parents=True, exist_ok=True)
                Path(move.path).write_bytes(self._bucket.objects[move.key])
        except OSError as error:
            self._replies[number] = WireReply(number, None, str(error.strerror), error.errno or errno.EIO)

    def _finish(self, number: int) -> None:
        if number in self._replies and self._replies[number] is None:
            self._replies[number] = WireReply(number)

    def taken(self, number: int, *, wait_s: float = 0.0) -> WireReply | None:
        """Return the reply to a transfer, once; see `Connection.taken`."""
        if number not in self._replies:
            raise OSError(errno.EIO, "the store's broker was lost meanwhile")
        if wait_s and self._replies[number] is None:
            self._world.sleep(wait_s)
        answer = self._replies.get(number)
        if answer is not None:
            del self._replies[number]
        return answer

    def close(self) -> None:
        """End the broker, and all its transfers with it."""
        self._replies.clear()


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
