"""What verbs show of rich stores, at a moment that never changes: the same to the byte in every run.

``played`` leaves the files of a simulated run in a folder, with the records that workers, jobs and people
made by the code that ships. ``moment`` has this process see the clock, the random numbers and the environment
of a simulated world, while real paths are still real, and the working folder. ``shown`` is what a command
prints then.
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
import re
import shlex
import socket
import stat
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from orchestrator.cli.main import main
from orchestrator.provenance import user
from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.schedules import Play, play
from orchestrator.simulation.system import running
from orchestrator.simulation.world import World
from tests.simulation.runs import CLASSES

PROJECT = Path(__file__).parents[1]
USER = b"ann@login"
"""Who asked for everything, in the records."""


@contextlib.contextmanager
def moment(at_s: float = 0.0) -> Iterator[World]:
    """Stop the clock so many seconds after the start of simulated runs within the block."""
    world, here = World(0), os.getcwd
    world.now_s = at_s
    with running(world, Files(world)):
        os.getcwd = here
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

    class Seen(CLASSES[kind]):  # type: ignore[misc, valid-type]
        def __init__(self, seed: int, *, is_calm: bool = False) -> None:
            super().__init__(seed, is_calm=is_calm)
            runs.append(self)

        def _before_step(self, kind: str, what: str) -> None:
            if self.world.now_s >= until_s and not found:
                found.update(self.files.snapshot(), at=(0, str(self.world.now_s).encode()))
            super()._before_step(kind, what)

    ended = play(seed, kind=Seen)
    with moment():
        me = user()  # as the run had it, without the environment
    name = me.partition("@")[0]
    here = {me: USER, socket.gethostname(): b"login", f"jobs of {name}": b"jobs of ann"}
    assert not ended.problem, ended.problem
    at_s = float(found.pop("at")[1]) if found else ended.seconds
    for path, (file_kind, data) in (found or runs[-1].files.snapshot()).items():
        if path.startswith(f"{SHARED}/") and file_kind == stat.S_IFREG:
            target = root / path.removeprefix(f"{SHARED}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            for found_here, word in here.items():
                data = re.sub(rb"\b" + re.escape(found_here.encode()) + rb"\b", word, data)
            target.write_bytes(data)
    return at_s


def shown(root: Path | None, *words: object) -> str:
    """Return a command and what it prints, with ``STORE`` for the store's folder, unless it takes none."""
    typed = [str(word) for word in words]
    before, streams = (sys.stdout, sys.stderr), (io.StringIO(), io.StringIO())
    sys.stdout, sys.stderr = streams
    try:
        code = main([*typed, *(["--store", str(root)] if root else [])])
    finally:
        sys.stdout, sys.stderr = before
    out, errors = (stream.getvalue() for stream in streams)
    if "--json" in typed and out:
        lines = out.splitlines() if typed[0] == "events" else as_lines(json.loads(out))
        out = "".join(f"{line}\n" for line in lines)
    end = f"[exit code {code}]\n" if code else ""
    return plain(f"$ sweep {shlex.join(typed)}\n{out}{errors}{end}\n", {str(root): "STORE"} if root else {})


def plain(text: str, words: Mapping[str, str]) -> str:
    """Return a text with words in place of paths, and with short digests."""
    for path, word in {**words, str(Path(sys.executable).parent): "BIN", str(PROJECT): "PROJECT"}.items():
        text = text.replace(path, word)
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{52}\b", r"\1", text)


def as_lines(value: Any, name: str = "", depth: int = 2) -> Iterator[str]:
    """Yield a value of JSON as lines for people: a line for each entry of its upper levels, or of a list."""
    text = json.dumps(value, ensure_ascii=False)
    if not (depth and value and isinstance(value, dict | list) and len(text) > 100):
        yield f"{name}{text}"
        return
    is_list = isinstance(value, list)
    for key, each in (("-", each) for each in value) if is_list else value.items():
        yield from as_lines(each, f"{name}{key}: ", 0 if is_list else depth - 1)


def pictured(path: Path) -> Iterator[str]:
    """Yield what an SVG shows, but not where: its size, its texts, and its marks by their styles."""
    text = path.read_text()
    (size,) = re.findall(r'<svg [^>]*viewBox="([^"]*)"', text)
    yield f"{path.name} {size}: {' | '.join(dict.fromkeys(re.findall(r'<!-- (.*?) -->', text)))}"
    styles = Counter(re.findall(r'<(\w+) [^>]*style="([^"]*)"', text))
    yield from (f"  {number} {name} {style}" for (name, style), number in sorted(styles.items()))
