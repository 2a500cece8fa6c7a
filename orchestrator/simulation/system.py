"""The system interface of simulated processes: their clock, their files and their random numbers.

While a world runs, the public functions of `time`, `os`, `io` and `shutil` that the production code calls are
those of the world, for paths under `orchestrator.simulation.files.ROOT` and for its processes. So the code
that runs is the code that ships, down to its system calls. Everything else still reaches the real system.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import PurePath, PurePosixPath
from typing import Any

from orchestrator.simulation.files import PROC, ROOT, Files
from orchestrator.simulation.handles import FIRST_HANDLE
from orchestrator.simulation.world import EPOCH_S, World
from orchestrator.store import objects

Function = Callable[..., Any]

NETWORK_LEASE_S = 6.0
"""Lease on a simulated network folder, in seconds: with a cache of names as much shorter as in reality."""


@functools.lru_cache(8192)
def _in_world(path: str) -> str | None:
    return path.rstrip("/") if path.startswith((ROOT, PROC)) else None


def _path(path: Any) -> str | None:
    """Return a path of the world; None for one of the real system."""
    if type(path) is not str:
        if not isinstance(path, PurePath):  # a number of an open file, or bytes
            return None
        path = str(path)
    return _in_world(path)


def _remembered(parse: Function) -> Function:
    """Return the parser of paths with a memory: a tenth of a run's time is spent on the same few paths."""
    remembered = functools.lru_cache(4096)(lambda *parts: parse(parts))
    return lambda parts: remembered(*parts)


class _Calls:
    """The replaced functions of one world."""

    def __init__(self, world: World, files: Files) -> None:
        self._world = world
        self._files = files

    def _on_path(self, real: Function, act: Function) -> Function:
        def call(path: Any = ".", *args: Any, **options: Any) -> Any:
            found = _path(path)
            return real(path, *args, **options) if found is None else act(found)

        return call

    def _on_tree(self, real: Function, act: Function) -> Function:
        def call(path: Any, ignore_errors: bool = False, **options: Any) -> Any:
            if (found := _path(path)) is None:
                return real(path, ignore_errors, **options)
            with contextlib.suppress(*[OSError] * ignore_errors):
                return act(found)

        return call

    def _on_two(self, real: Function, act: Function) -> Function:
        def call(source: Any, target: Any, *args: Any, **options: Any) -> Any:
            found = _path(source)
            return real(source, target, *args, **options) if found is None else act(found, _path(target))

        return call

    def _on_handle(self, real: Function, act: Function) -> Function:
        def call(handle: int, *args: Any) -> Any:
            return real(handle, *args) if handle < FIRST_HANDLE else act(handle, *args)

        return call

    def _monotonic(self, real: Function) -> Function:
        def call() -> float:
            process = self._world.current
            return self._world.now_s if process is None else 100.0 + self._world.now_s * process.machine.rate

        return call

    def _time(self, real: Function) -> Function:
        def call() -> float:
            process = self._world.current
            return EPOCH_S + self._world.now_s + (0.0 if process is None else process.machine.skew_s)

        return call

    def replaced(self) -> list[tuple[Any, str, Any]]:
        """Return what takes the place of which function of which module."""
        files, world = self._files, self._world
        is_dir = files.status

        def access(real: Function) -> Function:
            return self._on_path(real, files.exists)

        def open_number(real: Function) -> Function:
            def call(path: Any, flags: int, *args: Any, **options: Any) -> Any:
                found = _path(path)
                return real(path, flags, *args, **options) if found is None else files.open(found, flags)

            return call

        def open_stream(real: Function) -> Function:
            def call(path: Any, mode: str = "r", *args: Any, **options: Any) -> Any:
                found = _path(path)
                return real(path, mode, *args, **options) if found is None else files.opened(found, mode)

            return call

        wanted: list[tuple[Any, str, Callable[[Any], Any]]] = [
            (objects, "NETWORK_LEASE_S", lambda real: NETWORK_LEASE_S),
            (time, "monotonic", self._monotonic),
            (time, "time", self._time),
            (time, "time_ns", lambda real: lambda: int(time.time() * 1e9)),
            (time, "sleep", lambda real: world.sleep),
            (time, "clock_gettime", lambda real: lambda clock: 0.0),
            (os, "urandom", lambda real: world.random.randbytes),
            (os, "sched_getaffinity", lambda real: lambda pid: {0}),  # no thread but the world's own
            (os, "getpid", lambda real: lambda: 1),
            (os, "getcwd", lambda real: lambda: ROOT),
            (os, "environ", lambda real: {"HOME": f"{ROOT}/home"}),
            (os, "open", open_number),
            (io, "open", open_stream),
            (os, "close", lambda real: self._on_handle(real, files.close)),
            (os, "read", lambda real: self._on_handle(real, files.read)),
            (os, "fsync", lambda real: self._on_handle(real, files.fsync)),
            (os, "fstat", lambda real: self._on_handle(real, lambda h: files.status_of(files.handles[h][1]))),
            (os, "stat", lambda real: self._on_path(real, is_dir)),
            (os, "lstat", lambda real: self._on_path(real, is_dir)),
            (os, "access", access),
            (os, "mkdir", lambda real: self._on_path(real, files.mkdir)),
            (os, "rmdir", lambda real: self._on_path(real, files.rmdir)),
            (os, "unlink", lambda real: self._on_path(real, files.unlink)),
            (os, "remove", lambda real: self._on_path(real, files.unlink)),
            (os, "scandir", lambda real: self._on_path(real, files.scan)),
            (
                os,
                "listdir",
                lambda real: self._on_path(real, lambda path: [e.name for e in files.scan(path)]),
            ),
            (os, "chmod", lambda real: self._on_path(real, lambda path: None)),
            (os, "utime", lambda real: self._on_path(real, lambda path: None)),
            (os, "link", lambda real: self._on_two(real, files.link)),
            (os, "rename", lambda real: self._on_two(real, files.rename)),
            (os, "replace", lambda real: self._on_two(real, files.rename)),
            (traceback, "format_exc", lambda real: lambda: ""),  # for people, and slow
            (shutil, "rmtree", lambda real: self._on_tree(real, files.remove_tree)),
            (shutil, "copystat", lambda real: self._on_two(real, lambda source, target: None)),
        ]
        if sys.version_info < (3, 12):  # later versions parse a path only when that is needed
            wanted.append((PurePosixPath._flavour, "parse_parts", _remembered))  # type: ignore[attr-defined]
        return [(module, name, make(getattr(module, name))) for module, name, make in wanted]


_unlocked: dict[str, None] = {}
"""Modules whose cached properties were looked at. To look at all of them takes as long as a run."""


def _without_locks() -> None:
    """Take the locks from cached properties. Simulated processes are no threads of one another.

    Before Python 3.12 a property locks while it is computed, for all objects of its class: a process that
    waits for its turn inside of one would keep all others out for ever.
    """
    if len(_unlocked) == len(sys.modules):
        return
    new = sys.modules.keys() - _unlocked.keys()
    _unlocked.update(dict.fromkeys(new))
    for name in new:
        if not name.startswith("orchestrator."):
            continue
        for each in [one for one in vars(sys.modules[name]).values() if isinstance(one, type)]:
            for found in vars(each).values():
                if isinstance(found, functools.cached_property):
                    found.lock = contextlib.nullcontext()  # type: ignore[attr-defined]


@contextlib.contextmanager
def running(world: World, files: Files) -> Iterator[None]:
    """Connect this process to a world within the block. No other thread may need the real clock meanwhile."""
    before = []
    if sys.version_info < (3, 12):
        _without_locks()
    try:
        for module, name, function in _Calls(world, files).replaced():
            before.append((module, name, getattr(module, name)))
            setattr(module, name, function)
        yield
    finally:
        for module, name, function in before:
            setattr(module, name, function)
