"""What verbs show of rich stores, at a moment that never changes: the same to the byte in every run.

``played`` leaves the files of a simulated run in a folder, with the records that workers, jobs and people
made by the code that ships. ``moment`` has this process see the clock, the random numbers and the environment
of a simulated world, while real paths are still real. ``shown`` is what a command prints then.
"""

from __future__ import annotations

import contextlib
import io
import math
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from orchestrator.cli.main import main
from orchestrator.provenance import user
from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.schedules import Play, play
from orchestrator.simulation.system import running
from orchestrator.simulation.world import World
from tests.simulation.runs import CLASSES

USER = b"ann@login"
"""Who asked for everything, in the records."""


@contextlib.contextmanager
def moment(at_s: float = 0.0) -> Iterator[World]:
    """Stop the clock so many seconds after the start of simulated runs within the block."""
    world = World(0)
    world.now_s = at_s
    with running(world, Files(world)):
        yield world


def played(root: Path, seed: int, kind: str, *, until_s: float = math.inf) -> float:
    """Write the store of a simulated run to a folder, and return when it was seen.

    Args:
        root: of the store.
        seed: of the run; it is odd, as the others have a bucket.
        kind: of the run, see `tests.simulation.runs`.
        until_s: the store is as it was after so many seconds; by default at the end.
    """
    runs: list[Play] = []
    found: dict[str, tuple[int, bytes]] = {}

    class Seen(CLASSES[kind]):  # type: ignore[misc]
        def __init__(self, seed: int, *, is_calm: bool = False) -> None:
            super().__init__(seed, is_calm=is_calm)
            runs.append(self)

        def _before_step(self, kind: str, what: str) -> None:
            if self.world.now_s >= until_s and not found:
                found.update(self.files.snapshot(), at=(0, str(self.world.now_s).encode()))
            super()._before_step(kind, what)

    ended = play(seed, kind=Seen)
    assert not ended.problem, ended.problem
    at_s = float(found.pop("at")[1]) if found else ended.seconds
    for path, (file_kind, data) in (found or runs[-1].files.snapshot()).items():
        if path.startswith(f"{SHARED}/") and file_kind == stat.S_IFREG:
            target = root / path.removeprefix(f"{SHARED}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data.replace(user().encode(), USER))
    return at_s


def shown(root: Path, *words: object) -> str:
    """Return a command and what it prints, with ``STORE`` for the store's folder."""
    before, streams = (sys.stdout, sys.stderr), (io.StringIO(), io.StringIO())
    sys.stdout, sys.stderr = streams
    try:
        code = main([*map(str, words), "--store", str(root)])
    finally:
        sys.stdout, sys.stderr = before
    end = f"[exit code {code}]\n" if code else ""
    return (
        f"$ sweep {' '.join(map(str, words))}\n{streams[0].getvalue()}{streams[1].getvalue()}{end}\n"
    ).replace(str(root), "STORE")
