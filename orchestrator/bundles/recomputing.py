"""What follows from the records of a bundle: rows from predictions, tables from rows, and claims from tables.

The same functions make a bundle and verify it. What they make at both times is compared, so a bundle holds
nothing in these files that its records do not imply. No code of the sweep runs: stages, tasks and reports
count only by the names that this installation has for them.
"""

from __future__ import annotations

import io
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.api import reports
from orchestrator.api.state import SweepState
from orchestrator.bundles.claims import Claims, claims_of
from orchestrator.bundles.content import products
from orchestrator.core.evidence import Liveness
from orchestrator.core.records import Done
from orchestrator.core.sweep import StageInstance
from orchestrator.jobs.cells import Jobs
from orchestrator.jobs.submissions import Submissions
from orchestrator.registry import REPORTS, RESCORED, load
from orchestrator.reporting import Offers
from orchestrator.store import layout
from orchestrator.store.access import Records
from orchestrator.store.evidence import EvidenceReader, OwnerReport
from orchestrator.store.ledger import Ledger, check_mark
from orchestrator.store.objects import PosixStore
from orchestrator.store.table import Rows, collect_rows, write_csv

ROWS, CLAIMS, REPORT = "rows.json", "claims.json", "report"
_KEPT = (".csv", ".json", ".md")
"""Endings of a report's files that a bundle holds: tables and the data of figures. It is drawn by anyone."""

_UNSEEN = OwnerReport(Liveness.UNKNOWN, "its owner is not looked for")


class Recomputed(NamedTuple):
    """What follows from the records of a bundle.

    Attributes:
        files: name in the bundle to content.
        num_rows, num_predicted: result rows of the sweep, and those that follow from predictions.
        num_claims: numbers in tables.
        faults: where records contradict each other, as lines.
        unchecked: what could not be computed again, as lines.
    """

    files: dict[str, bytes]
    num_rows: int
    num_predicted: int
    num_claims: int
    faults: list[str]
    unchecked: list[str]


def state_of(folder: Path, sweep: str, number: int) -> SweepState:
    """Return the state of a sweep whose records lie in a folder, as its records alone imply it.

    Neither a scheduler nor a process is looked for, and files of products may be absent.

    Raises:
        SweepError: the records cannot be read.
    """
    objects = PosixStore(folder)
    ledger = Ledger(objects, store_format=check_mark(Records(objects)))
    view = SweepState(ledger, ledger.revision(sweep, number).sweep, number, sealed=True)
    view.jobs = Jobs(Submissions(ledger, sweep).read(view.problems))
    view.reader = EvidenceReader(
        ledger,
        view.instances.values(),
        observer=lambda instance, attempt: _UNSEEN,
        check_files=False,
        specs=view.sweep.specs,
    )
    return view


def recompute(view: SweepState) -> Recomputed:
    """Return what follows from the records of a sweep.

    Args:
        view: from `state_of`.

    Raises:
        SweepError: a report cannot be written from the rows.
    """
    faults, unchecked = [], []
    rescored, num_predicted = set[str](), 0
    for instance, done in products(view):
        if instance.stage not in RESCORED or not done.rows:
            continue
        if view.sweep.specs[instance.stage].name != instance.stage:
            unchecked.append(f"{instance.name}: a stage of the user's own")
            continue
        found = load(RESCORED[instance.stage])(
            instance.reads, _folder(view, done), done.rows, _inputs(view, instance)
        )
        name = _name(view, instance)
        faults += [f"{name}: {fault}" for fault in found.faults]
        unchecked += [f"{name}: {why}" for why in found.unchecked]
        if not found.faults and not found.unchecked:
            rescored.add(instance.digest)
            num_predicted += len(done.rows)
    rows = collect_rows(view.sweep, view.number, view.sweep.cells, view.cells, view.reader)
    made = _reports(view, rows, unchecked)
    files = {ROWS: _lines(rows), "rows.csv": _table(rows)}
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for (report, name), data in made.items():
        files[f"{REPORT}/{report}/{name}"] = data
        if name.endswith(".md"):
            texts[report][name] = data.decode()
    cells = view.sweep.cells
    with_rows = {d for d in view.sweep.stages if (e := view.reader.evidence(d).done) is not None and e.rows}
    whole = [c.id for c in cells if {d for d in c.stage_digests if d in with_rows} <= rescored]
    claims = claims_of(texts, cells, whole)
    found_claims = Claims(
        sweep=view.sweep.name, revision=view.number, cells=tuple(cell.id for cell in cells), claims=claims
    )
    files[CLAIMS] = msgspec.json.format(msgspec.json.encode(found_claims), indent=1) + b"\n"
    return Recomputed(files, len(rows), num_predicted, len(claims), faults, unchecked)


def _folder(view: SweepState, done: Done) -> Path:
    return view.ledger.objects.folder(layout.output(done, done.attempt))


def _inputs(view: SweepState, instance: StageInstance) -> dict[str, Path]:
    """Return the folders of the products that a stage took, by the stage that made them."""
    made = {taken.stage: view.reader.evidence(taken.digest).done for taken in instance.inputs}
    return {stage: _folder(view, done) for stage, done in made.items() if done is not None}


def _name(view: SweepState, instance: StageInstance) -> str:
    cells = [cell.id for cell in view.sweep.cells if instance.digest in cell.stage_digests]
    return f"{instance.name} of {cells[0]}" if cells else instance.name


def _reports(view: SweepState, rows: Rows, unchecked: list[str]) -> dict[tuple[str, str], bytes]:
    """Return the tables and data of a sweep's reports, by report and file."""
    facts = msgspec.structs.replace(reports.about(view), made_at="")
    names: Sequence[str] = view.sweep.report or (reports.fitting_report(rows, facts),)
    offers: Offers = {"about": lambda: facts, "over": tuple, "drawn": lambda: False}
    made: dict[tuple[str, str], bytes] = {}
    for name in names:
        # The bundle may name any object. Only reports of this installation are called.
        if name not in REPORTS:
            unchecked.append(f"the report {name} is none of this installation")
            continue
        with tempfile.TemporaryDirectory() as place:
            written = reports.write_report(
                name, rows, Path(place), offers, where=view.title, notify=lambda line: None
            )
            made |= {(name, p.name): p.read_bytes() for p in written if p.suffix in _KEPT}
    return made


def _lines(rows: Rows) -> bytes:
    """Return rows as JSON, one a line, so that a difference has a line."""
    lines = b",\n".join(msgspec.json.encode(row) for row in rows)
    return b"[\n" + lines + b"\n]\n"


def _table(rows: Rows) -> bytes:
    stream = io.StringIO(newline="")
    write_csv(rows, stream)
    return stream.getvalue().encode()
