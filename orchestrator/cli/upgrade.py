"""`sweep upgrade`: let a store hold what later versions record; refused while anything may run in it.

Workers of an earlier version read records strictly. A record with a new field would look damaged to them.
The mark in ``store.json`` is therefore raised only when no attempt and no job of an earlier version can be
running; from then on, earlier versions refuse the store.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence

from orchestrator.api.state import ask_schedulers, store_url
from orchestrator.cli.arguments import add_store, no_overrides
from orchestrator.core.records import Owner
from orchestrator.core.state import Attempt, Liveness
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.execution.liveness import UNREADABLE_LEASE_S, Watcher
from orchestrator.formats import FORMAT
from orchestrator.jobs.judgement import Phase
from orchestrator.jobs.states import Jobs
from orchestrator.jobs.submissions import Submissions
from orchestrator.processes import describe
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.text import counted

LOOK_S = 2.0
"""Pause between two looks at attempts that may be running, in seconds."""
MAX_SHOWN = 8
"""Jobs and attempts that the error lists."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_store(parser)


def run(args: argparse.Namespace) -> int:
    """Raise the format in the store's mark, if nothing of an earlier version can be running in it."""
    ledger = open_ledger(store_url(no_overrides(args.words)))
    url, data = ledger.objects.url, ledger.objects.get(layout.STORE)
    if data is None:
        raise UserError(f"there is no store at {url}", fix="store.url=FOLDER, or set SWEEP_STORE")
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
            node = StageInstance(stage=stage, digest=digest, reads={})
            last = next(iter(reversed(ledger.attempts(node))), None)
            if last is None or last.end is not None or _is_done(last, finished.get(digest, set())):
                continue
            if last.claim is None or not any(each.fate(last.claim.owner) for each in jobs):
                yield node, last


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
    process = describe(os.getpid())
    if process is None:
        raise InfrastructureError("cannot read this process's start time")
    watcher, living = Watcher(Owner(host=platform.node(), process=process)), list[str]()
    beats = {(node.digest, old.number): old.heartbeat and old.heartbeat.counter for node, old in opened}
    leases = [old.claim.lease_s if old.claim else UNREADABLE_LEASE_S for _, old in opened]
    said = False
    while opened and not living:
        left = []
        for node, old in opened:
            attempt = ledger.attempt(node, old.number)
            if attempt is None or attempt.end is not None:
                continue
            vital = watcher(node, attempt)
            if vital.liveness is Liveness.GONE:
                continue
            left.append((node, attempt))
            beat = attempt.heartbeat and attempt.heartbeat.counter
            # Alive means that the process was found on this machine. A heartbeat that has moved since the
            # first read is a sign of life from anywhere.
            if vital.liveness is Liveness.ALIVE or beat != beats[node.digest, old.number]:
                why = vital.reason or attempt.problem
                living.append(f"{node.stage} {node.digest[:12]}: attempt {attempt.number}: {why}")
        opened = left
        if opened and not living:
            if not said:
                print(f"watching {counted(len(opened), 'attempt')} for up to {max(leases):.0f} s", flush=True)
            said = True
            time.sleep(LOOK_S)
    return living
