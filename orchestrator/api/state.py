"""What most verbs begin with: the sweep that is meant, its revision in the store, and its cells' states."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.cell import check_digests
from orchestrator.core.failure import Cause
from orchestrator.core.plan import RequestSummary, summarize_requests
from orchestrator.core.records import Request
from orchestrator.core.selector import Subject, refuse_impossible, select
from orchestrator.core.settings import Policy
from orchestrator.core.state import Attempt, CellStatus, Liveness, StageStatus, cell_status, stage_status
from orchestrator.core.sweep import Cell, StageInstance, Sweep, is_name
from orchestrator.errors import InfrastructureError, UnknownSweep, UserError
from orchestrator.jobs.judgement import JobListing, SubmissionState, ending
from orchestrator.jobs.states import Jobs, scheduler_of, with_jobs
from orchestrator.jobs.submissions import Submissions, asker
from orchestrator.launchers.base import Scheduler
from orchestrator.registry import SCHEDULERS, lookup
from orchestrator.store.evidence import EvidenceReader, OwnerReport, inspect_owner
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.patience import Outage
from orchestrator.store.table import Rows, collect_rows

DEFAULT_STORE = "runs"

Notify = Callable[[str], None]
"""Takes one line of text for the user, such as a warning."""


def split_store(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Takes ``store.url=URL`` out of a verb's words.

    Raises:
        UserError: nothing follows.
    """
    urls = [word.partition("=")[2] for word in words if word.startswith("store.url=")]
    rest = [word for word in words if not word.startswith("store.url=")]
    if not all(urls):
        raise UserError("store.url= names no store", fix="store.url=FOLDER")
    return (urls[-1] if urls else None), rest


def store_url(url: str | None) -> str:
    """Returns where the store is: as given, else SWEEP_STORE, else ``runs`` in the working folder."""
    url = url or os.environ.get("SWEEP_STORE") or DEFAULT_STORE
    return url if "://" in url else str(Path(url).expanduser().absolute())


class SweepReference(NamedTuple):
    """What SWEEP means: the name in the store, the word for composing, and the revision asked for."""

    name: str
    source: str
    revision: int | None


def parse_reference(word: str) -> SweepReference:
    """Reads ``smoke``, ``smoke@2`` or ``path/to/x.yaml``.

    Raises:
        UserError: the revision is no number.
    """
    source, at, number = word.rpartition("@")
    if not at:
        source, number = word, ""
    elif not (number.isascii() and number.isdigit() and len(number) < 10) or int(number) < 1:
        raise UserError(f"{word!r} names no revision", allowed="SWEEP@1, SWEEP@2, ...")
    name = Path(source).stem if source.endswith((".yaml", ".yml")) or "/" in source else source
    return SweepReference(name, source, int(number) if number else None)


class SweepState:
    """A revision and the states of its cells, read when first asked for.

    Args:
        ledger: the store.
        sweep: the sealed or composed content.
        number: of the revision; the one it would get when it is not sealed.
        sealed: whether the store holds it.
        trusted: products whose files were looked at before, shared between views of one sweep.
    """

    def __init__(
        self,
        ledger: Ledger,
        sweep: Sweep,
        number: int,
        *,
        sealed: bool,
        trusted: set[tuple[str, int]] | None = None,
    ) -> None:
        self.ledger, self.sweep, self.number, self.sealed = ledger, sweep, number, sealed
        self.trusted: set[tuple[str, int]] = set() if trusted is None else trusted
        self.problems: list[str] = []

    def fresh(self) -> SweepState:
        """Returns a view of the same revision that reads the store anew."""
        return SweepState(self.ledger, self.sweep, self.number, sealed=self.sealed, trusted=self.trusted)

    @property
    def title(self) -> str:
        """``smoke@2``, and for one that is not sealed in which store."""
        place = "" if self.sealed else f" (not launched yet in {self.ledger.objects.url})"
        return f"{self.sweep.name}@{self.number}{place}"

    @property
    def hint(self) -> str:
        """What to add to a printed next step so that it finds this store, "" when it is the usual one."""
        url = self.ledger.objects.url
        return "" if url == store_url(None) else f" store.url={shlex.quote(url)}"

    def patient(self, notify: Notify, stop_asked: Callable[[], str] = lambda: "") -> SweepState:
        """Return a view that waits while the store does not answer, for as long as its last launch allows.

        Args:
            notify: called with a line of text when the wait begins and ends.
            stop_asked: returns why the wait is to end early, "" while it is not.
        """
        outage_s = next((r.settings.store.outage_s for r in reversed(self.requests) if r.settings), 0.0)
        ledger = self.ledger.patient(Outage(outage_s, notify, stop_asked))
        return SweepState(ledger, self.sweep, self.number, sealed=self.sealed, trusted=self.trusted)

    def attempts(self, node: StageInstance) -> tuple[Attempt, ...]:
        """Read a stage's attempts; none where they cannot be read, which the stage's state says."""
        try:
            return self.ledger.attempts(node)
        except (OSError, InfrastructureError):
            return ()

    def check(self) -> None:
        """Refuse, before anything is recorded or run, a revision that is not what it says.

        Raises:
            InfrastructureError: a stage's digest is not that of what it would run.
        """
        check_digests(self.sweep, self.title)

    def warnings(self) -> list[str]:
        """Return what in the store cannot be read: it is never trusted, and never silently left out."""
        _ = self.requests
        return self.problems

    @cached_property
    def requests(self) -> list[Request]:
        """The sweep's requests, oldest first."""
        return self.ledger.requests(self.sweep.name, self.problems)

    @cached_property
    def policy(self) -> Policy:
        """That of the last launch or rerun, which ran under it."""
        for request in reversed(self.requests):
            if request.settings:
                return request.settings.policy
        return Policy()

    @cached_property
    def wishes(self) -> RequestSummary:
        """The requests, folded."""
        return summarize_requests(self.requests, [cell.cell for cell in self.sweep.cells])

    @cached_property
    def jobs(self) -> Jobs:
        """What was given to schedulers, and what these say of it; asked once, where there is need."""
        filed = Submissions(self.ledger, self.sweep.name).read(self.problems)
        return Jobs(filed, ask_schedulers(filed), asker())

    def _observe(self, node: StageInstance, attempt: Attempt) -> OwnerReport:
        """Tells of an attempt's owner what one look, or else its scheduler, can tell."""
        vital = inspect_owner(node, attempt)
        if vital.liveness is Liveness.GONE or attempt.claim is None:
            return vital
        over = self.jobs.fate(attempt.claim.owner)
        if over is None:
            return vital
        owner = attempt.claim.owner
        reason = ending(f"{owner.job}_{owner.array_index}", over)
        return OwnerReport(Liveness.GONE, reason, over.cause or Cause.NODE_LOST)

    @cached_property
    def snapshot(self) -> EvidenceReader:
        """The evidence of the sweep's stages."""
        return EvidenceReader(
            self.ledger,
            self.sweep.nodes.values(),
            observer=self._observe,
            trusted=self.trusted,
            specs=self.sweep.specs,
        )

    @cached_property
    def stages(self) -> dict[str, StageStatus]:
        """State of each stage by digest."""
        return {
            digest: stage_status(
                self.snapshot.evidence(digest), self.wishes.budget(digest, self.policy.retries)
            )
            for digest in self.sweep.nodes
        }

    @cached_property
    def cells(self) -> dict[str, CellStatus]:
        """State of each cell by id."""
        found = {}
        for cell in self.sweep.cells:
            status = cell_status(
                cell,
                self.sweep.nodes,
                self.stages,
                cancelled=cell.cell in self.wishes.cancelled,
                sweep=f"{self.sweep.name}@{self.number}",
            )
            since = self.wishes.asked.get(cell.cell, 0)
            found[cell.cell] = with_jobs(
                cell.cell, status, self.jobs, since_request=since, retries=self.policy.retries
            )
        return found

    def subject(self, cell: Cell) -> Subject:
        """What selectors see of a cell."""
        status = self.cells[cell.cell]
        return Subject(cell.axes, cell.columns, cell.config, cell.cell, status.state, status.cause)

    def select(self, only: Sequence[str]) -> list[Cell]:
        """Returns the cells that the selectors name, all without selectors.

        Raises:
            UserError: an unknown key, value or cell.
        """
        if not only:
            return list(self.sweep.cells)
        pairs = [(cell, self.subject(cell)) for cell in self.sweep.cells]
        chosen = select(only, pairs)
        refuse_impossible(only, [subject for _, subject in pairs])
        return chosen

    def cell(self, word: str) -> Cell:
        """Returns the one cell that a word names: its id, the beginning of it, or any selector.

        Raises:
            UserError: there is none, or more than one.
        """
        found = [cell for cell in self.sweep.cells if cell.cell == word] or self.select([word])
        if len(found) != 1:
            names = ", ".join(cell.cell for cell in found[:4]) + (", ..." if len(found) > 4 else "")
            raise UserError(
                f"{word!r} names {len(found)} cells, one is needed", where=self.title, allowed=names
            )
        return found[0]


def scheduler(launcher: str, cluster: str) -> Scheduler:
    """Returns what may be asked about the jobs that a launcher gave to a cluster.

    Raises:
        UserError: there is no such launcher.
    """
    made: Scheduler = lookup(SCHEDULERS, launcher, kind="launcher")(cluster)
    return made


def ask_schedulers(filed: Sequence[SubmissionState]) -> dict[tuple[str, str], JobListing]:
    """Asks about all tasks that are not known to be over: one question for each scheduler.

    A job's own last word needs no question.
    """
    open_jobs: dict[tuple[str, str], set[str]] = {}
    for each in filed:
        silent = [t for t in each.open_tasks if t not in each.reports or each.reports[t].requeued]
        if each.accepted is not None and silent:
            open_jobs.setdefault(scheduler_of(each.submission), set()).add(each.accepted.job)
    return {place: scheduler(*place).jobs(ids) for place, ids in open_jobs.items()}


def open_view(word: str, url: str | None = None) -> SweepState:
    """Opens what a reading verb speaks of: the revision asked for, else the last launched, else as composed.

    Raises:
        UserError: the sweep is neither in the store nor in a file.
    """
    reference = parse_reference(word)
    ledger = open_ledger(store_url(url))
    if reference.revision is not None:
        return sealed_view(ledger, reference.name, reference.revision)
    number = current_revision(ledger, reference.name)
    if number is not None:
        return sealed_view(ledger, reference.name, number)
    from orchestrator.compose import compose  # only for a sweep that was never launched

    with naming_the_store(ledger):
        return SweepState(ledger, compose(reference.source).sweep, 1, sealed=False)


@contextlib.contextmanager
def naming_the_store(ledger: Ledger) -> Iterator[None]:
    """Say of an unknown sweep in which store it is not either, and which names that one has.

    Raises:
        UnknownSweep: as raised inside, with the store.
    """
    try:
        yield
    except UnknownSweep as error:
        known = [*error.known, *ledger.sweeps()]
        where = f"neither a file nor in the store {ledger.objects.url}"
        raise UnknownSweep(error.name, known, where=where, fix=error.fix) from None


def sealed_view(ledger: Ledger, name: str, number: int) -> SweepState:
    """Opens a sealed revision."""
    return SweepState(ledger, ledger.revision(name, number).sweep, number, sealed=True)


def current_revision(ledger: Ledger, name: str) -> int | None:
    """Returns the revision of the last launch or rerun, else the newest sealed, None when there is none."""
    if not is_name(name):
        return None
    numbers = ledger.revision_numbers(name)
    for request in reversed(ledger.requests(name)):
        if request.verb in ("launch", "rerun") and request.revision in numbers:
            return request.revision
    return max(numbers, default=None)


def rows_of(view: SweepState, only: list[str]) -> Rows:
    """Returns the rows of the selected cells."""
    cells = view.select(only)
    return collect_rows(view.sweep, view.number, cells, view.cells, view.snapshot)
