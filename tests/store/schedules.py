"""Random schedules over a store in memory: each operation is a step, and may be the last of who makes it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from orchestrator.manifest import File
from orchestrator.store.objects import Listing, T

MAX_STEPS = 20_000


class Crash(BaseException):
    """A process ends without a word."""


class Schedule:
    """Lets one actor at a time make one step; which one, and who crashes, is drawn."""

    def __init__(self, choices: list[int]) -> None:
        self._choices, self._back = choices, threading.Semaphore(0)
        self._turns: dict[str, threading.Semaphore] = {}
        self.crashed: set[str] = set()
        self.errors: list[BaseException] = []
        self.log: list[str] = []
        self.is_over, self._over = False, set[str]()

    def step(self) -> None:
        """Called by an actor before each operation: waits for its turn."""
        name = threading.current_thread().name
        if name not in self._turns:
            return  # the test itself
        self._back.release()
        self._turns[name].acquire()
        if name in self.crashed:
            raise Crash

    def run(self, actors: dict[str, Callable[[], None]]) -> None:
        """Runs all actors to their ends; the first is never crashed, so that somebody is left."""
        threads = {}
        for name, act in actors.items():
            self._turns[name] = threading.Semaphore(0)
            threads[name] = threading.Thread(target=self._act, args=(name, act), name=name)
            threads[name].start()
            self._back.acquire()
        for number in range(MAX_STEPS):
            alive = [name for name, thread in threads.items() if name not in self._over]
            if not alive:
                break
            self.is_over = number >= len(self._choices)
            choice = number if self.is_over else self._choices[number]
            name = alive[choice % len(alive)]
            if not self.is_over and choice >= 90 and name != next(iter(actors)):
                self.crashed.add(name)
                self.log.append(name)
            self._turns[name].release()
            self._back.acquire()
        else:
            raise AssertionError("stuck")
        for thread in threads.values():
            thread.join()
        if self.errors:
            raise self.errors[0]

    def _act(self, name: str, act: Callable[[], None]) -> None:
        self._back.release()
        self._turns[name].acquire()
        try:
            if name not in self.crashed:
                act()
        except Crash:
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            self._over.add(name)
            self._back.release()


class Memory:
    """An object store in memory whose every operation is a step, a folder's or a bucket's."""

    url = "memory"

    def __init__(self, schedule: Schedule, *, in_place: bool) -> None:
        self._schedule, self._in_place = schedule, in_place
        self.records: dict[str, bytes] = {}

    def create(self, key: str, data: bytes) -> bool:
        self._schedule.step()
        return self.records.setdefault(key, data) is data

    def put(self, key: str, data: bytes) -> None:
        self._schedule.step()
        self.records[key] = data

    def get(self, key: str) -> bytes | None:
        self._schedule.step()
        return self.records.get(key)

    def list(self, prefix: str) -> Listing:
        self._schedule.step()
        parts = [
            key.removeprefix(prefix + "/").split("/") for key in self.records if key.startswith(prefix + "/")
        ]
        files = {part[0] for part in parts if len(part) == 1}
        return Listing(tuple(sorted(files)), tuple(sorted({part[0] for part in parts if len(part) > 1})))

    def in_bulk(self, read: Callable[[], T]) -> T | None:
        return None if self._in_place else read()

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes | None]:
        return {key: self.get(key) for key in keys}

    def list_many(self, prefixes: Iterable[str]) -> dict[str, Listing]:
        return {prefix: self.list(prefix) for prefix in prefixes}

    def trees(self, prefixes: Iterable[str]) -> dict[str, dict[str, int]]:
        found = {}
        for prefix in prefixes:
            self._schedule.step()
            under = [key for key in self.records if key.startswith(prefix + "/")]
            found[prefix] = {key.removeprefix(prefix + "/"): len(self.records[key]) for key in under}
        return found

    def sizes(self, prefix: str, files: Sequence[File]) -> dict[str, int]:
        found = {file.path: self.get(f"{prefix}/{file.path}") for file in files}
        return {path: len(data) for path, data in found.items() if data is not None}

    def upload(self, prefix: str) -> None:
        """Nothing is local."""

    def delete(self, prefix: str) -> None:
        self._schedule.step()
        for key in [key for key in self.records if f"{key}/".startswith(f"{prefix}/")]:
            del self.records[key]
