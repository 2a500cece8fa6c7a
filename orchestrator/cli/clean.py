"""`sweep clean`: delete files of stages that no revision in use names, and unused code; shows them first.

Without ``--yes``, it only prints what it would delete.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection, Iterator
from typing import Any

from orchestrator import provenance
from orchestrator.api.state import current_revision, sealed_view, store_url
from orchestrator.cli.arguments import add_store, no_overrides
from orchestrator.cli.output import print_json, print_table
from orchestrator.core.records import Request
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance, Sweep
from orchestrator.errors import UserError, nearest
from orchestrator.jobs.records import Submission
from orchestrator.jobs.submissions import Submissions
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.retention import Leftover, UnusedCode, delete, delete_code, leftovers, unused_code
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
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


def run(args: argparse.Namespace) -> int:
    """Print what no revision in use names; with ``--yes``, delete it."""
    ledger = open_ledger(store_url(no_overrides(args.words)))
    known = ledger.sweeps()
    for name in args.drop:
        if name not in known:
            raise UserError(
                f"no sweep {name!r}", where=f"in the store {ledger.objects.url}", allowed=nearest(name, known)
            )
    needed, others = _nodes(ledger, args.drop)
    found = leftovers(ledger, [node for digest, node in others.items() if digest not in needed])
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
        print_json(_as_json(ledger, found, code, deleted=args.yes))
    else:
        _print(ledger, found, code, deleted=args.yes)
    return 0


def _nodes(ledger: Ledger, dropped: Collection[str]) -> tuple[set[str], dict[str, StageInstance]]:
    """Return the digests that revisions in use name, and all stages that any revision names.

    Args:
        ledger: the store.
        dropped: sweeps without a revision in use.
    """
    needed: set[str] = set()
    nodes: dict[str, StageInstance] = {}
    for sweep in ledger.sweeps():
        current = None if sweep in dropped else current_revision(ledger, sweep)
        for number in ledger.revision_numbers(sweep):
            revision = ledger.revision(sweep, number).sweep
            found = revision.stages
            nodes.update(found)
            if number == current:
                needed.update(found)
                needed.update(_formers(ledger, revision))
    return needed, nodes


def _formers(ledger: Ledger, sweep: Sweep) -> Iterator[str]:
    """Yield digests of products of earlier stage versions that a revision can still start from."""
    snapshot = EvidenceReader(ledger, sweep.stages.values(), check_files=False, specs=sweep.specs)
    for digest in sweep.stages:
        former = snapshot.evidence(digest).former
        if former is not None and not former.problem:
            yield former.node.digest


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
    """
    for left in found:
        if left.is_open:
            raise UserError(
                f"{left.node.name} {left.node.digest[:12]} may still be running",
                where=left.evidence.liveness_reason,
                fix="wait for it, or sweep cancel",
            )
    for sweep in ledger.sweeps():
        for number in ledger.revision_numbers(sweep):  # workers or jobs of an older one may remain
            view = sealed_view(ledger, sweep, number)
            at_work = (State.RUNNING, State.QUEUED, State.UNKNOWN)  # an unknown cell may be running
            busy = [c for c, status in view.cells.items() if status.state in at_work]
            if busy:
                raise UserError(
                    f"{counted(len(busy), 'cell')} of {view.title} may still be running, such as {busy[0]}",
                    fix=f"wait for it, or sweep cancel {sweep}{view.hint}",
                )


def _as_json(
    ledger: Ledger, found: Collection[Leftover], code: Collection[UnusedCode], *, deleted: bool
) -> dict[str, Any]:
    """Return what is deleted, or would be, for scripts."""
    return {
        "store": ledger.objects.url,
        "deleted": deleted,
        "num_bytes": sum(left.num_bytes for left in found),
        "stages": [
            {
                "stage": left.node.name,
                "digest": left.node.digest,
                "done": left.evidence.done is not None,
                "num_files": left.num_files,
                "num_bytes": left.num_bytes,
            }
            for left in found
        ],
        "code": [one._asdict() for one in code],
    }


def _print(
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
    for stage in dict.fromkeys(left.node.stage for left in found):
        mine = [left for left in found if left.node.stage == stage]
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
