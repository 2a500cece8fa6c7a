"""The start of a worker, in a launcher's fork server or by ``python -m orchestrator.execution.main FILE``."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import select
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import wait
from pathlib import Path
from types import FrameType
from typing import NamedTuple

import msgspec

from orchestrator import formats, provenance
from orchestrator.core.evidence import budget_hold
from orchestrator.core.identity import check_digests
from orchestrator.core.plan import summarize_requests
from orchestrator.core.records import Revision
from orchestrator.core.sweep import ComposedSweep, preload
from orchestrator.errors import DamagedRecord, InfrastructureError, SweepError, UserError, means_full_disk
from orchestrator.execution.assignment import Assignment, Shortage, this_owner
from orchestrator.execution.loop import Worker
from orchestrator.execution.supervision import ForkedChildren
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import BROKEN_NODE, DAMAGED, OTHER_CODE, REFUSED
from orchestrator.jobs.submissions import request_of, spending_now
from orchestrator.processes import adopt_orphans, leave_step
from orchestrator.store import layout
from orchestrator.store.access import Outage, wait_out
from orchestrator.store.checkout import Checkout, checkout_of
from orchestrator.store.code import damage, import_paths, package_path, version_of
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.opening import open_objects

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
HELD_SIGNALS = frozenset(STOP_SIGNALS) - {signal.SIGINT}
"""The stop signals that a launcher's fork server blocks; a worker unblocks them when its handlers exist."""

OUTAGE_S, OUTAGE_POLL_S = 600.0, 2.0
"""Seconds to wait for a store at a URL that does not answer, and seconds between polls."""

LATE_S = 90.0
"""Tolerance for a scheduler's early notice of the end, in seconds: Slurm may be up to a minute early."""


class WorkerSummary:
    """Facts about a worker that has ended: the last line of its log, and how many stages it claimed."""

    def __init__(self) -> None:
        self.last_line, self.num_claims = "", 0


def run(
    order: Assignment,
    log: Path | None = None,
    summary: WorkerSummary | None = None,
    lifeline: int | None = None,
    shortage: Callable[[], Shortage | None] = lambda: None,
) -> int:
    """Run a worker in this process until nothing is left for it; return the exit code.

    Args:
        order: the worker's assignment.
        log: file for the worker's log; None for standard output.
        summary: filled in with facts about the worker.
        lifeline: end of a pipe that closes when the process that started this worker is gone.
        shortage: returns the lack of memory on the node because of which the worker should stop.
    """
    leave_step(os.environ)  # the launch, or a Ray node, may itself run in a step of a Slurm job
    summary = summary or WorkerSummary()
    if log is not None:
        _print_to(log)
    ending = _Ending(order, lifeline)

    def log_line(line: str) -> None:
        summary.last_line = line = provenance.without_secrets(line)
        with contextlib.suppress(OSError):  # the log may lie on a full disk
            print(f"{provenance.now()} worker {order.slot}: {line}", flush=True)

    try:
        return _work(order, summary, ending, shortage, log_line)
    except (SweepError, OSError) as error:
        code, line = exit_of(error)
        log_line(line)
        if code == InfrastructureError.exit_code:
            _outlast(order.store, ending)
        return code


def _work(
    order: Assignment,
    summary: WorkerSummary,
    ending: _Ending,
    shortage: Callable[[], Shortage | None],
    log_line: Callable[[str], None],
) -> int:
    """Check that this worker may claim stages, and work; return the exit code.

    Raises:
        SweepError, OSError: The sweep cannot be read, or the store does not answer.
    """
    ledger = _opened(order, ending, log_line)
    revision = _revision(ledger, order)
    if order.code is not None:
        paths = import_paths(ledger.objects, order.code)
        order = formats.kept(order, msgspec.structs.replace(order, import_paths=paths))
        # It was set for this process only: a command may import modules that lie beside it.
        os.environ.pop("PYTHONSAFEPATH", None)
    sys.path[:0] = [path for path in order.import_paths if path not in sys.path]
    checkout = checkout_of(ledger.objects, revision.sweep, order.import_paths, named=order.named)
    # Before the first claim: a worker that cannot work must cost no attempt.
    if problem := (
        _code_problem(ledger, order, revision.sweep, checkout)
        or _store_problem(ledger, order, ending, log_line)
        or _package_problem(ledger, order)
    ):
        log_line(f"{problem.what}: this worker claims nothing")
        return problem.code
    # A job that is to claim nothing should give its GPUs back before it imports anything large.
    for module in () if _is_spent(ledger, order) else preload(revision.sweep):
        with contextlib.suppress(ImportError):  # the stage that needs it fails with the full error
            importlib.import_module(module)
    worker = Worker(
        ledger=ledger,
        revision=revision,
        order=order,
        owner=this_owner(order, os.getpid()),
        children=ForkedChildren(multiprocessing.get_context("fork")),
        stop_asked=ending.why,
        shortage=shortage,
        log=log_line,
        checkout=checkout if order.code is None and order.code_digest else None,
    )
    try:
        return worker.run()
    finally:
        summary.num_claims = worker.num_claims


def exit_of(error: SweepError | OSError) -> tuple[int, str]:
    """Return the exit code of a worker or a driver that an error ends, and the line for its log."""
    if isinstance(error, DamagedRecord):
        return DAMAGED, f"{error.what}; {error.fix}"
    if isinstance(error, SweepError):
        return error.exit_code, f"error: {error}"
    return InfrastructureError.exit_code, f"error: the store does not answer: {error}"


def _print_to(log: Path) -> None:
    with contextlib.suppress(OSError):  # the log lies in the store, which may not answer now
        log.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(handle, 1)
        os.dup2(handle, 2)


def _opened(order: Assignment, ending: _Ending, log_line: Callable[[str], None]) -> Ledger:
    """Return the store's ledger. Wait until it answers, in a shared folder also in later operations."""
    outage = Outage(order.settings.store.outage_s, log_line, ending.why)
    objects = open_objects(order.store)
    return wait_out(lambda: open_ledger(order.store), lambda: objects.get(layout.STORE), outage).patient(
        outage
    )


def _outlast(url: str, ending: _Ending) -> None:
    """Wait until the store answers again; a worker started in our place would fail at once likewise."""
    objects, start_s = open_objects(url), time.monotonic()
    while not objects.waits_out and not ending.why() and time.monotonic() - start_s < OUTAGE_S:
        with contextlib.suppress(OSError):
            objects.list("")
            return
        time.sleep(OUTAGE_POLL_S)


class _Ending:
    """Reasons for the worker to stop: a signal, its job's time limit, or the end of its launcher.

    Stop signals are blocked from the start of the fork server until the handlers here exist. Without that, a
    signal to the whole process group would kill a worker that is just being forked::

        fork server: block SIGTERM, SIGUSR1, SIGUSR2 -> fork -> worker: install handlers -> unblock
    """

    def __init__(self, order: Assignment, lifeline: int | None) -> None:
        self._job, self._asked, self._lifeline = order.job, "", lifeline
        for number in STOP_SIGNALS:
            signal.signal(number, self._note_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD_SIGNALS)

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        # In a job, SIGUSR1 is the scheduler's notice of the time limit. One that comes far too early is
        # ignored: `why` stops the worker in time.
        if number != signal.SIGUSR1 or self._job is None:
            self._asked = self._asked or "stopped"
        else:
            left_s = self._left_s()
            if left_s is None or left_s <= LATE_S:
                self._asked = self._asked or "deadline"

    def _left_s(self) -> float | None:
        """Return the seconds until the notice of the job's end is due; None without a time limit."""
        if self._job is None or self._job.end_at is None:
            return None
        return self._job.end_at - self._job.notice_s - time.time()

    def why(self) -> str:
        """Return the reason, "" while there is none."""
        left_s = self._left_s()
        if not self._asked and left_s is not None and left_s <= 0:
            self._asked = "deadline"
        if not self._asked and self._lifeline is not None and select.select([self._lifeline], [], [], 0)[0]:
            self._asked = "stopped"
        return self._asked or _parent_is_gone()


def _revision(ledger: Ledger, order: Assignment) -> Revision:
    """Return the sealed sweep, after a check that its stages have the digests that it names."""
    revision = ledger.revision(order.sweep, order.revision)
    check_digests(revision.sweep, f"{order.sweep}@{order.revision}")
    return revision


class _Problem(NamedTuple):
    """A reason why a worker must not claim, and its exit code."""

    what: str
    code: int


def _code_problem(
    ledger: Ledger, order: Assignment, sweep: ComposedSweep, checkout: Checkout
) -> _Problem | None:
    """Return why this worker's code is not the code of the launch; None if it is."""
    if order.code is None:
        if not order.code_digest or checkout.is_code_of(order.code_digest):
            return None
        return _Problem("the code on this machine is not the code at launch", OTHER_CODE)
    if problem := damage(ledger.objects, order.code.digest):
        return _Problem(f"the snapshot in the store is damaged: {problem}", OTHER_CODE)
    # The snapshot holds this package too: a worker of another installation would run other code.
    here, there = Path(provenance.__file__), package_path(ledger.objects, order.code.digest)
    paths = tuple(order.import_paths)
    if order.code_digest not in ("", version_of(order.code, sweep, paths)):
        return _Problem("the code of this snapshot is not the code at launch", OTHER_CODE)
    if here.parents[1].resolve() == there.resolve():
        return None
    return _Problem(
        f"this worker was started from {here.parents[1]}, not from the snapshot {there}", OTHER_CODE
    )


def _package_problem(ledger: Ledger, order: Assignment) -> _Problem | None:
    """Return which packages of this node differ from those of the launch; None if none does.

    A node whose packages differ is left out for a while, and others take its work. If they were changed
    since the launch, as in an environment that all nodes share, no node is at fault.
    """
    quarantine_s, is_ray = order.settings.policy.quarantine_s, order.settings.launcher.get("name") == "ray"
    # Ray has compared its nodes with the launch already, and lets users accept differences.
    if not order.request or is_ray or quarantine_s <= 0:
        return None
    request = request_of(ledger, order.sweep, order.request)
    then = request.provenance
    # Another interpreter, such as in a container, is meant to have its own packages.
    if then.get("executable") != sys.executable or provenance.packages_digest() == then.get(
        "packages_digest"
    ):
        return None
    # A project's own folder may hold metadata too.
    differing = _differences(provenance.packages(order.import_paths), then.get("packages", {}))
    if not differing:
        return None
    what = f"other packages than at the launch: {differing}"
    if provenance.age_s(request.at) > provenance.packages_age_s():
        return _Problem(f"{what}; they were changed since: launch again", OTHER_CODE)
    owner = this_owner(order, os.getpid())
    NodeReports(ledger, quarantine_s).add(owner.cluster, owner.host, "check", what, sweep=order.sweep)
    return _Problem(f"node {owner.host} has {what}", BROKEN_NODE)


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """Return the packages of the launch that differ here, each with the version here and the one there."""
    names = (name for name, version in there.items() if here.get(name) != version)
    named = [f"{name} {here.get(name, 'is missing')} (and not {there[name]})" for name in sorted(names)]
    return ", ".join(named[:3]) + (f" and {len(named) - 3} more" if len(named) > 3 else "")


def _is_spent(ledger: Ledger, order: Assignment) -> bool:
    """Return whether the sweep's budget lets this worker claim nothing."""
    limit = summarize_requests(ledger.requests(order.sweep), ()).limit
    policy = msgspec.structs.replace(order.settings.policy, budget=limit)
    found = spending_now(ledger, order.sweep, policy)
    return found is not None and (
        budget_hold(limit, found, num_gpus=order.num_gpus, now=found.at, sweep=order.sweep) is not None
    )


def _store_problem(
    ledger: Ledger, order: Assignment, ending: _Ending, log_line: Callable[[str], None]
) -> _Problem | None:
    """Return why the store cannot be used safely; None if it can.

    While the disk is full, a worker of this machine waits. One in a job leaves, since it holds what others
    could use; that is no fault of its node.
    """
    until_s, is_printed = time.monotonic() + order.settings.store.outage_s, False
    while True:
        try:
            ledger.prove_writable()
        except SweepError as error:
            if not (is_full := means_full_disk(error.what)) and not isinstance(error, UserError):
                raise
            if is_full and order.job is not None:
                return _Problem(error.what, InfrastructureError.exit_code)
            if not is_full or ending.why() or time.monotonic() > until_s:
                return _Problem(error.what, REFUSED)
            if not is_printed:
                log_line(f"{error.what}: waiting for space")
            is_printed = True
            time.sleep(OUTAGE_POLL_S)
        else:
            return None


def in_fork_server(order_json: bytes, log: str) -> None:
    """Run a worker as the target of a launcher's process, and exit."""
    os.setsid()
    adopt_orphans()
    code = run(formats.decode(order_json, Assignment), Path(log))
    sys.stdout.flush()
    os._exit(code)


def _parent_is_gone() -> str:
    """Return why to stop if the launcher is gone, else "". This needs no thread, because workers fork."""
    parent = multiprocessing.parent_process()
    return "stopped" if parent is not None and wait([parent.sentinel], timeout=0) else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the worker that a JSON file describes."""
    path = Path((sys.argv[1:] if argv is None else argv)[0])
    return run(formats.decode(path.read_bytes(), Assignment))


if __name__ == "__main__":
    adopt_orphans()
    sys.exit(main())
