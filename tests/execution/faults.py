"""A worker that dies or freezes at a chosen step: ``python -m tests.execution.faults FILE``.

It is the real `Worker` over the real `PosixStore`, whose `at_step` seam counts the system calls that change
something. Prints, at its end, how many steps there were.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from orchestrator.execution.assignment import Assignment, this_owner
from orchestrator.execution.loop import Worker
from orchestrator.execution.supervision import ForkedChildren
from orchestrator.store.ledger import Ledger
from orchestrator.store.objects import PosixStore
from tests import forked
from tests.store import builders


class Fault(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What goes wrong: at step `at` (counted from 1, 0 for never) the worker is killed or stopped.

    Only steps at keys that begin with `key` count.
    `how` is ``kill`` (the worker alone; its child must see that), ``stop`` (worker and child, until both
    are continued) or ``stop worker`` (its child goes on by itself).
    """

    at: int = 0
    how: str = "kill"
    key: str = ""


class Told(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The file."""

    order: Assignment
    fault: Fault = Fault()


class Counted(PosixStore):
    """The store, which counts its steps and acts at the chosen one."""

    def __init__(self, root: Path, fault: Fault) -> None:
        super().__init__(root, at_step=self._step)
        self.fault, self.num_steps, self._key = fault, 0, ""

    def create(self, key: str, data: bytes) -> bool:
        self._key = key
        return super().create(key, data)

    def put(self, key: str, data: bytes) -> None:
        self._key = key
        super().put(key, data)

    def delete(self, prefix: str) -> None:
        self._key = prefix
        super().delete(prefix)

    def _step(self, step: str) -> None:
        self.num_steps += self._key.startswith(self.fault.key)
        if self.num_steps != self.fault.at or not self._key.startswith(self.fault.key):
            return
        print(f"{self.fault.how} at {step} {self._key}", flush=True)
        if self.fault.how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        children = [] if self.fault.how == "stop worker" else multiprocessing.active_children()
        for child in children:
            os.kill(child.pid or 0, signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        for child in children:
            os.kill(child.pid or 0, signal.SIGCONT)


def main(path: str) -> None:
    """Runs the worker that the file describes."""
    told = msgspec.json.decode(Path(path).read_bytes(), type=Told)
    order = told.order
    objects = Counted(Path(order.store), told.fault)
    ledger = Ledger(objects)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["orchestrator.execution.child", "tests.execution.stages"])
    order = msgspec.structs.replace(order, env={**order.env, "TEST_WORKER": str(os.getpid())})
    reasons: list[str] = []
    signal.signal(signal.SIGTERM, lambda *_: reasons.append("stopped"))
    worker = Worker(
        ledger=ledger,
        revision=ledger.revision(order.sweep, order.revision),
        order=order,
        owner=this_owner(order, os.getpid()),
        children=ForkedChildren(context),
        stop_asked=lambda: reasons[0] if reasons else "",
        log=lambda line: print(line, flush=True),
    )
    code = worker.run()
    print(f"{objects.num_steps} steps", flush=True)
    sys.exit(code)


# What tests use


def order_for(root: Path | str, sweep: str, **rest: Any) -> Assignment:
    """An order for any cell of revision 1 of a sweep."""
    policy = rest.pop("policy", {})
    return Assignment(store=str(root), sweep=sweep, revision=1, settings=builders.settings(**policy), **rest)


class Running:
    """A worker's process that a test started."""

    def __init__(self, order: Assignment, fault: Fault, file: Path) -> None:
        file.write_bytes(msgspec.json.encode(Told(order=order, fault=fault)))
        ours, its = os.pipe()
        self.process = forked.Started("tests.execution.faults", [str(file)], streams=[its, its])
        os.close(its)
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, args=[ours], daemon=True)
        self._reader.start()

    def _read(self, output: int) -> None:
        with open(output) as stream:
            self._lines.extend(stream)

    @property
    def output(self) -> str:
        """What it said so far."""
        return "".join(self._lines)

    def wait(self, timeout_s: float = 90.0) -> int:
        """Waits for its end and returns the exit code; kills it when it is late."""
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.end()
            raise AssertionError(f"the worker did not end:\n{self.output}") from None
        self._reader.join(1.0)
        return code

    def is_stopped(self) -> bool:
        """Whether it is frozen by SIGSTOP."""
        try:
            text = Path(f"/proc/{self.process.pid}/stat").read_text()
        except OSError:
            return False
        return text.rpartition(")")[2].split()[0] in "Tt"

    def has_ended(self) -> bool:
        """Whether it is over."""
        return self.process.poll() is not None

    def go_on(self) -> None:
        """Continues a frozen worker, which continues its child."""
        self.process.send_signal(signal.SIGCONT)

    def end(self) -> None:
        """Ends it whatever its state."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


Start = Callable[..., Running]


def starter(folder: Path, started: list[Running]) -> Start:
    """Returns a function that starts workers: ``start(order, at=3, how="kill")``."""

    def start(order: Assignment, **fault: Any) -> Running:
        running = Running(order, Fault(**fault), folder / f"worker-{len(started)}.json")
        started.append(running)
        return running

    return start


def finish(start: Start, order: Assignment) -> str:
    """Runs a normal worker until nothing is left; returns what it said."""
    running = start(order)
    code = running.wait()
    assert code == 0, running.output
    assert "Traceback" not in running.output, running.output
    return running.output


def steps_of(output: Sequence[str] | str) -> int:
    """How many steps a worker that ended by itself made."""
    text = output if isinstance(output, str) else "".join(output)
    return int(text.rstrip().splitlines()[-1].split()[0])


if __name__ == "__main__":
    main(sys.argv[1])


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mount a file system in memory at a new folder; the test is skipped where that is not permitted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    if mounted.returncode:
        pytest.skip(f"mounting a small file system is not permitted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path) -> Path:
    """Take all the space that is left on a disk; return the file."""
    file = disk / "other people's data"
    with file.open("wb", buffering=0) as stream:
        try:
            while True:
                stream.write(bytes(4096))
        except OSError:
            return file
