"""Starting a worker: in a launcher's fork server, or as ``python -m orchestrator.worker.main FILE``."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

import msgspec

from orchestrator import provenance
from orchestrator.core.sweep import Sweep
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.worker.loop import REFUSED, Worker, this_owner
from orchestrator.worker.order import WorkerOrder

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def preload(sweep: Sweep) -> list[str]:
    """Returns the modules to import once, before children are forked, for a sweep's stages."""
    return sorted({module for spec in sweep.specs.values() for module in spec.preload})


def run(order: WorkerOrder, log: Path | None = None) -> int:
    """Runs a worker in this process until nothing is left for it; returns the exit code.

    Args:
        order: what it is told.
        log: file for its own lines; None for standard output.
    """
    if log is not None:
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
    reasons: list[str] = []
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: reasons.append("stopped"))

    def say(line: str) -> None:
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(f"{provenance.now()} worker {order.slot}: {line}", flush=True)

    try:
        sys.path[:0] = [path for path in order.import_paths if path not in sys.path]
        ledger = open_ledger(order.store)
        revision = ledger.revision(order.sweep, order.revision)
        targets = [spec.run for spec in revision.sweep.specs.values() if spec.run]
        found = provenance.code_digest(targets, order.import_paths)
        if order.code_digest and found != order.code_digest:
            say("the code on this machine is not the code at launch: this worker claims nothing")
            return REFUSED
        if problem := _store_problem(ledger):
            say(f"{problem}: this worker claims nothing")
            return REFUSED
        for module in preload(revision.sweep):
            with contextlib.suppress(ImportError):  # a stage that cannot import it will say so
                importlib.import_module(module)
        worker = Worker(
            ledger=ledger,
            revision=revision,
            order=order,
            owner=this_owner(order, os.getpid()),
            context=multiprocessing.get_context("fork"),
            stop_asked=lambda: reasons[0] if reasons else _parent_is_gone(),
            say=say,
        )
        return worker.run()
    except SweepError as error:
        say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        say(f"error: the store does not answer: {error}")
        return InfrastructureError.exit_code


def _store_problem(ledger: Ledger) -> str:
    try:
        ledger.prove_writable()
    except UserError as error:
        return error.what
    return ""


def in_fork_server(order_json: bytes, log: str) -> None:
    """The target of a launcher's worker process."""
    os.setsid()
    code = run(msgspec.json.decode(order_json, type=WorkerOrder), Path(log))
    sys.stdout.flush()
    os._exit(code)


def _parent_is_gone() -> str:
    """Returns why to stop when the launcher that started this worker is gone (no thread: workers fork)."""
    parent = multiprocessing.parent_process()
    return "stopped" if parent is not None and wait([parent.sentinel], timeout=0) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the worker that a JSON file describes."""
    path = Path((sys.argv[1:] if argv is None else argv)[0])
    return run(msgspec.json.decode(path.read_bytes(), type=WorkerOrder))


__all__ = ["in_fork_server", "main", "preload", "run"]

if __name__ == "__main__":
    sys.exit(main())
