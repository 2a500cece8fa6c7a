"""`sweep logs` and `failures`: the log of one attempt, and what failed, alike failures as one group."""

from __future__ import annotations

import argparse
import codecs
import sys

from orchestrator.api.failures import failure_lines, failures_of
from orchestrator.api.logs import end_of, interesting_stage, named_stage
from orchestrator.api.state import SweepState, open_view
from orchestrator.cli.output import (
    add_cell,
    add_store,
    add_sweep,
    no_overrides,
    print_json,
    print_lines,
    print_warnings,
)
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.entry import pause
from orchestrator.errors import UserError, one_line
from orchestrator.jobs.records import Submission
from orchestrator.store import layout
from orchestrator.store.objects import ObjectStore
from orchestrator.store.opening import open_objects

POLL_S = 0.5
"""Pause between two reads of ``--follow``, in seconds."""
CHUNK = 2**20
"""Bytes read at a time."""


def configure_logs(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    add_cell(parser)
    parser.add_argument(
        "--stage", help="such as train, or prepare[en]; default: the failed, running or last one"
    )
    parser.add_argument("--attempt", type=int, help="its number; default: the last")
    parser.add_argument(
        "--job", action="store_true", help="the log of its last job itself: set-up, worker, scheduler's words"
    )
    parser.add_argument("--follow", action="store_true", help="go on until the attempt ends")
    add_store(parser)


def run_logs(args: argparse.Namespace) -> int:
    """Print one log."""
    if args.json and args.follow:
        raise UserError("--follow has no end, --json is one object", fix="leave out one of them")
    url = no_overrides(args.words)
    view = open_view(args.sweep, url)
    cell = view.cell(args.cell)
    if args.job:
        return _print_job(view, cell, as_json=args.json)
    instance = named_stage(view, cell, args.stage) if args.stage else interesting_stage(view, cell)
    numbers = [attempt.number for attempt in view.attempts(instance)]
    if not numbers:
        has_job = view.jobs.of_cell(cell.id) is not None
        raise UserError(
            f"{instance.name} of {cell.id} was never started",
            allowed=f"sweep logs {args.sweep} {cell.id} --job" if has_job else "",
            fix=f"sweep why {args.sweep} {cell.id}",
        )
    number = numbers[-1] if args.attempt is None else args.attempt
    if number not in numbers:
        raise UserError(
            f"{instance.name} has no attempt {number}", allowed=f"known: {', '.join(map(str, numbers))}"
        )
    key = layout.log(instance, number)
    if args.json:
        _print_json(key, view, cell, instance, number)
        return 0
    url = f"{view.ledger.objects.url}/{key}"
    # Standard output is the log alone, for a pipe.
    print(f"{view.title} {cell.id} {instance.name} attempt {number}: {url}", file=sys.stderr)
    _print(key, view, instance, number, follow=args.follow)
    return 0


def _print_job(view: SweepState, cell: Cell, *, as_json: bool) -> int:
    """Print the log of the cell's last job. All restarts of a job append to the same log."""
    job = view.jobs.of_cell(cell.id)
    if job is None:
        raise UserError(
            f"{cell.id} was never given to a scheduler", fix=f"sweep logs {view.sweep.name} {cell.id}"
        )
    where, logs = _of_job(view, job.filed.submission, job.task)
    if as_json:
        text = "".join(end_of(objects, key)[0] for objects, key in logs)
        print_json({"cell": cell.id, "job": job.name, "path": where, "text": text})
        return 0
    print(f"{view.title} {cell.id} job {job.name}: {where}", file=sys.stderr)
    if not sum(_copy(objects, key) for objects, key in logs):
        print(f"-- nothing yet: {job.reason}", file=sys.stderr)
    return 0


def _of_job(view: SweepState, submission: Submission, task: int) -> tuple[str, list[tuple[ObjectStore, str]]]:
    """Find the logs of a job and of its workers.

    A submission may name a folder outside the store for its logs. It is searched before the store.

    Returns:
        Where the job's own log is expected, and all logs that exist, each with its store and key.
    """
    key, own = layout.job_logs(view.sweep.name, submission.number), f"{task}.log"
    places: list[tuple[ObjectStore, str]] = [(view.ledger.objects, f"{key}/")]
    if submission.logs:
        places.insert(0, (open_objects(submission.logs), ""))
    found = []
    for objects, prefix in places:
        names = objects.trees([prefix.rstrip("/")])[prefix.rstrip("/")]
        workers = [name for name in sorted(names) if name.startswith((f"task-{task}/", "worker-"))]
        found += [(objects, prefix + name) for name in (own, *workers) if name in names]
    objects, prefix = places[0]
    return f"{objects.url}/{prefix}{own}", found


def _copy(objects: ObjectStore, key: str, start: int = 0) -> int:
    """Print a log from a byte on, in chunks, and return the number of bytes printed."""
    # A chunk may end inside a character. The decoder keeps the incomplete bytes for the next one.
    decoder, position = codecs.getincrementaldecoder("utf-8")("replace"), start
    while data := objects.read_from(key, position, CHUNK):
        position += len(data)
        sys.stdout.write(decoder.decode(data))
    sys.stdout.write(decoder.decode(b"", final=True))
    sys.stdout.flush()
    return position - start


def _print_json(key: str, view: SweepState, cell: Cell, instance: StageInstance, number: int) -> None:
    """Print the end of a log as JSON."""
    text, skipped = end_of(view.ledger.objects, key)
    print_json(
        {
            "sweep": view.sweep.name,
            "revision": view.number,
            "cell": cell.id,
            "stage": instance.name,
            "attempt": number,
            "path": f"{view.ledger.objects.url}/{key}",
            "text": text,
            **({"skipped_bytes": skipped} if skipped else {}),
        }
    )


def _print(key: str, view: SweepState, instance: StageInstance, number: int, *, follow: bool) -> None:
    """Print a log; with `follow`, go on until the attempt ends."""
    position = 0
    while True:
        # Read the record before the log. If the attempt has ended, the log that follows is complete.
        attempt = view.ledger.attempt(instance, number)
        ended = attempt is None or attempt.end is not None
        position += _copy(view.ledger.objects, key, position)
        if attempt is not None and attempt.end is not None and attempt.end.message:
            print(
                f"-- {attempt.end.outcome} {attempt.end.cause or ''}: {one_line(attempt.end.message)}",
                file=sys.stderr,
            )
        if ended or not follow:
            return
        pause(POLL_S)


def configure_failures(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    add_store(parser)


def run_failures(args: argparse.Namespace) -> int:
    """Print the groups of failures, that with the most cells first."""
    view = open_view(args.sweep, no_overrides(args.words))
    groups = failures_of(view, view.select(args.only))
    if args.json:
        print_json({"sweep": view.sweep.name, "revision": view.number, "failures": groups})
        return 0
    print_warnings(view)
    if not groups:
        print(f"{view.title}: nothing failed")
    for group in groups:
        print_lines(failure_lines(group))
    return 0
