"""`sweep clean` and `upgrade`: delete what no revision in use names, and raise the format of a store.

Without ``--yes``, `clean` only prints what it would delete.

Workers of an earlier version read records strictly. A record with a new field would look damaged to them.
So `upgrade` raises the mark in ``store.json`` only when no attempt and no job of an earlier version can be
running; from then on, earlier versions refuse the store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Collection, Iterator, Sequence
from typing import Any

from orchestrator import provenance
from orchestrator.api.state import current_revision, sealed_view
from orchestrator.cli.output import add_store, existing_store, print_json, print_table, to_stderr
from orchestrator.core.evidence import Attempt, Liveness
from orchestrator.core.records import Owner, Request
from orchestrator.core.state import State
from orchestrator.core.sweep import ComposedSweep, StageInstance
from orchestrator.errors import InfrastructureError, UserError, counted, nearest
from orchestrator.execution.liveness import UNREADABLE_LEASE_S, Watcher
from orchestrator.formats import FORMAT
from orchestrator.jobs.cells import Jobs
from orchestrator.jobs.judgement import Phase
from orchestrator.jobs.records import Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.launchers.base import ask_schedulers
from orchestrator.provenance import process_of
from orchestrator.store import layout
from orchestrator.store.decisions import readable_revisions
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger
from orchestrator.store.retention import Leftover, UnusedCode, delete, delete_code, leftovers, unused_code


def configure_clean(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.epilog = (
        "In use is the revision of each sweep that was launched last. Records, rows, logs and metrics stay: "
        "`collect SWEEP@k` works as before, and what an old revision lacks `discard` has made again."
    )
    parser.add_argument(
        "--drop",
        action="append",
        default=[],
        metavar="SWEEP",
        help="count no revision of this sweep as in use; repeats",
    )
    parser.add_argument("--yes", action="store_true", help="delete it; else only say what would be")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    add_store(parser)


def run_clean(args: argparse.Namespace) -> int:
    """Print what no revision in use names; with ``--yes``, delete it."""
    ledger = existing_store(args.words)
    known = ledger.sweeps()
    for name in args.drop:
        if name not in known:
            raise UserError(
                f"no sweep {name!r}", where=f"in the store {ledger.objects.url}", allowed=nearest(name, known)
            )
    problems: list[str] = []
    needed, others = _stages_in_use(ledger, args.drop, problems)
    for problem in problems:
        to_stderr(f"warning: {problem}")
    found = leftovers(ledger, [instance for digest, instance in others.items() if digest not in needed])
    used = _code_in_use(ledger, args.drop)
    # An unreadable record may name any snapshot. Then no code is deleted.
    code = [] if used is None else unused_code(ledger, used)
    if args.yes:
        _refuse_running(ledger, found)
        delete(ledger, found, by=f"clean by {provenance.user()}")
        delete_code(ledger, code)
    # A later run finds the records of stages that an earlier one has emptied.
    found = [left for left in found if left.num_files]
    if args.json:
        print_json(_clean_json(ledger, found, code, deleted=args.yes))
    else:
        _print_clean(ledger, found, code, deleted=args.yes)
    return 0


def _stages_in_use(
    ledger: Ledger, dropped: Collection[str], problems: list[str]
) -> tuple[set[str], dict[str, StageInstance]]:
    """Return the digests that revisions in use name, and all stages that any revision names.

    Args:
        ledger: the store.
        dropped: sweeps without a revision in use.
        problems: receives a line for each revision that cannot be read, and is not in use.

    Raises:
        DamagedRecord: a revision in use cannot be read.
    """
    needed: set[str] = set()
    instances: dict[str, StageInstance] = {}
    for sweep in ledger.sweeps():
        current = None if sweep in dropped else current_revision(ledger, sweep)
        numbers: set[int] = set()
        for sealed in readable_revisions(ledger, sweep, problems):
            revision = sealed.sweep
            found = revision.stages
            instances.update(found)
            numbers.add(sealed.number)
            if sealed.number == current:
                needed.update(found)
                needed.update(_formers(ledger, revision))
        # Of one in use, what it needs must be known.
        if current is not None and current not in numbers:
            ledger.revision(sweep, current)
    return needed, instances


def _formers(ledger: Ledger, sweep: ComposedSweep) -> Iterator[str]:
    """Yield digests of products of earlier stage versions that a revision can still start from."""
    reader = EvidenceReader(ledger, sweep.stages.values(), check_files=False, specs=sweep.specs)
    for digest in sweep.stages:
        former = reader.evidence(digest).former
        if former is not None and not former.problem:
            yield former.instance.digest


def _code_in_use(ledger: Ledger, dropped: Collection[str]) -> set[str] | None:
    """Return the digests of code snapshots that launches of revisions in use name.

    Args:
        ledger: the store.
        dropped: sweeps without a revision in use.

    Returns:
        None if a record cannot be read, because it may name any snapshot.
    """
    digests: set[str] = set()
    problems: list[str] = []
    for sweep in ledger.sweeps():
        current = None if sweep in dropped else current_revision(ledger, sweep)
        submissions = [filed.submission for filed in Submissions(ledger, sweep).read(problems)]
        records: list[Request | Submission] = [*ledger.requests(sweep, problems), *submissions]
        for record in records:
            if record.revision == current and record.code is not None:
                digests.add(record.code.digest)
    return None if problems else digests


def _refuse_running(ledger: Ledger, found: Collection[Leftover]) -> None:
    """Refuse to delete while anything runs in the store.

    A worker of any sweep may be about to read files that look unused, so all sweeps and revisions are
    checked.

    Raises:
        UserError: something may be running.
        DamagedRecord: which cells a revision has cannot be read.
    """
    for left in found:
        if left.is_open:
            raise UserError(
                f"{left.instance.name} {left.instance.digest[:12]} may still be running",
                where=left.evidence.liveness_reason,
                fix="wait for it, or sweep cancel",
            )
    for sweep in ledger.sweeps():
        for number in ledger.revision_numbers(sweep):  # workers or jobs of an older one may remain
            view = sealed_view(ledger, sweep, number)
            view.check_decisions()  # cells that are unknown may be running too
            at_work = (State.RUNNING, State.QUEUED, State.UNKNOWN)  # an unknown cell may be running
            busy = [c for c, status in view.cells.items() if status.state in at_work]
            if busy:
                raise UserError(
                    f"{counted(len(busy), 'cell')} of {view.title} may still be running, such as {busy[0]}",
                    fix=f"wait for it, or sweep cancel {sweep}{view.hint}",
                )


def _clean_json(
    ledger: Ledger, found: Collection[Leftover], code: Collection[UnusedCode], *, deleted: bool
) -> dict[str, Any]:
    """Return what is deleted, or would be, for scripts."""
    return {
        "store": ledger.objects.url,
        "deleted": deleted,
        "num_bytes": sum(left.num_bytes for left in found),
        "stages": [
            {
                "stage": left.instance.name,
                "digest": left.instance.digest,
                "done": left.evidence.done is not None,
                "num_files": left.num_files,
                "num_bytes": left.num_bytes,
            }
            for left in found
        ],
        "code": [one._asdict() for one in code],
    }


def _print_clean(
    ledger: Ledger, found: Collection[Leftover], code: Collection[UnusedCode], *, deleted: bool
) -> None:
    """Print what is deleted, or would be, by stage."""
    verb = "deleted" if deleted else "would delete"
    if code:
        num_files, num_bytes = (sum(sizes) for sizes in zip(*(one[1:] for one in code), strict=True))
        what = f"{counted(num_files, 'file')}, {num_bytes / 2**30:.3g} GiB"
        print(f"{verb} {what}, of {counted(len(code), 'code snapshot')} that no launch in use names")
    if not found:
        if not code:
            print(f"{ledger.objects.url}: every file is of a stage that a revision in use names")
        elif not deleted:
            print("  sweep clean --yes does it")
        return
    rows = []
    for stage in dict.fromkeys(left.instance.stage for left in found):
        mine = [left for left in found if left.instance.stage == stage]
        num_done = sum(left.evidence.done is not None for left in mine)
        num_files = sum(left.num_files for left in mine)
        rows.append((stage, num_done, len(mine) - num_done, num_files, _gib(mine)))
    print_table(("stage", "products", "unfinished", "files", "GiB"), rows)
    total = sum(left.num_files for left in found)
    print(f"{verb} {counted(total, 'file')}, {_gib(found)} GiB, of stages that no revision in use names")
    if not deleted:
        print("  sweep clean --yes does it; records, rows, logs and metrics stay")


def _gib(found: Collection[Leftover]) -> str:
    """Return the size of some leftovers in GiB."""
    return f"{sum(left.num_bytes for left in found) / 2**30:.3g}"


LOOK_S = 2.0
"""Pause between two looks at attempts that may be running, in seconds."""
MAX_SHOWN = 8
"""Jobs and attempts that the error lists."""


def configure_upgrade(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_store(parser)


def run_upgrade(args: argparse.Namespace) -> int:
    """Raise the format in the store's mark, if nothing of an earlier version can be running in it."""
    ledger = existing_store(args.words)
    url, data = ledger.objects.url, ledger.objects.get(layout.STORE) or b""
    if ledger.store_format == FORMAT:
        print(f"{url} is of format {FORMAT} already")
        return 0
    # A store that cannot be written would fail only after the long watch below.
    ledger.prove_writable()
    if blocking := [*_blocking(ledger)]:
        more = len(blocking) - MAX_SHOWN
        raise UserError(
            f"{url} is not upgraded: workers of an earlier version may run in it, and could not read it then",
            allowed="\n  ".join(blocking[:MAX_SHOWN] + ([f"and {more} more"] if more > 0 else [])),
            fix="wait, or end them with: sweep cancel SWEEP; sweep reconcile SWEEP settles jobs that ended",
        )
    mark = {**json.loads(data), "format": FORMAT}  # keep all other fields
    ledger.objects.put(layout.STORE, json.dumps(mark, separators=(",", ":")).encode())
    print(f"{url} is of format {FORMAT} now; earlier versions of Polysweep refuse it")
    return 0


def _blocking(ledger: Ledger) -> Iterator[str]:
    """Yield a line for each job and attempt that may still run, and for each record that cannot be read."""
    all_jobs = []
    for sweep in ledger.sweeps():
        problems: list[str] = []
        filed = Submissions(ledger, sweep).read(problems)
        # A submission that cannot be read may have open jobs.
        yield from problems
        jobs = Jobs(filed, ask_schedulers(filed))
        all_jobs.append(jobs)
        for each in filed:
            for index in each.open_tasks:
                job = jobs.job(each, index)
                if job.phase is not Phase.OVER:
                    yield f"{sweep}: submission {each.submission.number}, task {index}: {job.reason}"
    yield from _living(ledger, [*_open_attempts(ledger, all_jobs)])


def _open_attempts(ledger: Ledger, jobs: Sequence[Jobs]) -> Iterator[tuple[StageInstance, Attempt]]:
    """Yield the last attempt of each stage, if it has no recorded end and its job is not proved to be over.

    All stages in the store count, not only those of current revisions: an old revision may still be running.
    """
    for stage in ledger.listing("records").folders:
        finished = ledger.generations(layout.done_index(stage))
        for digest in ledger.listing(layout.stage_records(stage)).folders:
            instance = StageInstance(stage=stage, digest=digest, reads={})
            last = next(iter(reversed(ledger.attempts(instance))), None)
            if last is None or last.end is not None or _is_done(last, finished.get(digest, set())):
                continue
            if last.claim is None or not any(each.fate(last.claim.owner) for each in jobs):
                yield instance, last


def _is_done(attempt: Attempt, generations: set[int]) -> bool:
    """Return whether an attempt's product exists, so that only its `end` record is missing."""
    return attempt.claim is not None and attempt.claim.generation in generations


def _living(ledger: Ledger, opened: list[tuple[StageInstance, Attempt]]) -> list[str]:
    """Watch attempts until all are gone or one shows a sign of life; return a line for each live one.

    One look is not enough: the heartbeat of a dead worker stays in the store. An attempt has ended only if
    its heartbeat does not change for a whole lease, or if its process is proved to be gone.

    Args:
        ledger: the store.
        opened: attempts without a recorded end.

    Raises:
        InfrastructureError: this process cannot read its own start time.
    """
    process = process_of(os.getpid())
    if process is None:
        raise InfrastructureError("cannot read this process's start time")
    watcher, living = Watcher(Owner(host=platform.node(), process=process)), list[str]()
    beats = {
        (instance.digest, old.number): old.heartbeat and old.heartbeat.counter for instance, old in opened
    }
    leases = [old.claim.lease_s if old.claim else UNREADABLE_LEASE_S for _, old in opened]
    is_printed = False
    while opened and not living:
        left = []
        for instance, old in opened:
            attempt = ledger.attempt(instance, old.number)
            if attempt is None or attempt.end is not None:
                continue
            report = watcher(instance, attempt)
            if report.liveness is Liveness.GONE:
                continue
            left.append((instance, attempt))
            beat = attempt.heartbeat and attempt.heartbeat.counter
            # Alive means that the process was found on this machine. A heartbeat that has moved since the
            # first read is a sign of life from anywhere.
            if report.liveness is Liveness.ALIVE or beat != beats[instance.digest, old.number]:
                why = report.reason or attempt.problem
                living.append(f"{instance.stage} {instance.digest[:12]}: attempt {attempt.number}: {why}")
        opened = left
        if opened and not living:
            if not is_printed:
                print(f"watching {counted(len(opened), 'attempt')} for up to {max(leases):.0f} s", flush=True)
            is_printed = True
            time.sleep(LOOK_S)
    return living
