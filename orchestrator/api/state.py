"""The state of a sweep: the revision that a word names, and the states of its cells, read from the store."""

from __future__ import annotations

import contextlib
import shlex
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import cached_property
from typing import Any, cast

from orchestrator.core import holding, state
from orchestrator.core.evidence import Attempt, Holds, Liveness, chosen_before
from orchestrator.core.failure import Cause, Fingerprint, fingerprint
from orchestrator.core.gates import GateRule, Gates, gates_of_requests, with_gates
from orchestrator.core.identity import check_digests
from orchestrator.core.plan import RequestSummary, codes_of, summarize_requests
from orchestrator.core.records import Request
from orchestrator.core.sealed import Undecided
from orchestrator.core.selector import Subject, refuse_impossible, select
from orchestrator.core.settings import Policy
from orchestrator.core.state import CellStatus, StageStatus, State, cell_status, stage_status
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance, is_name
from orchestrator.core.sweep import SweepReference as SweepReference
from orchestrator.core.sweep import parse_reference as parse_reference
from orchestrator.costs import Estimate
from orchestrator.errors import InfrastructureError, UnknownSweep, UserError
from orchestrator.jobs.cells import Jobs, with_jobs
from orchestrator.jobs.judgement import ending
from orchestrator.jobs.submissions import Submissions, asker, is_beating, spending_now
from orchestrator.launchers.base import ask_schedulers
from orchestrator.registry import load
from orchestrator.store.access import Outage
from orchestrator.store.evidence import EvidenceReader, OwnerReport, inspect_owner
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.store.opening import space_of, store_url

Notify = Callable[[str], None]
"""A function that shows one line of text to the user, such as a warning."""

_DECISIONS = "orchestrator.store.decisions:DecisionLog"  # Loaded by name: few sweeps have decisions.


class SweepState:
    """A revision and the states of its cells.

    The store is read when a property is first used, and each property is read once: an instance is a
    snapshot. `fresh` returns one that reads again. The decisions of a sweep with phases are read at once.

    Args:
        ledger: the store.
        sweep: the sealed or composed content.
        number: of the revision; if it is not sealed, the number that it would get.
        sealed: whether the store holds the revision.
        trusted: (digest, generation) of products whose files were checked; states of one sweep share it.

    Attributes:
        whole: the sweep as given.
        sweep: the sweep with the cells that exist by the decisions so far.
        decisions: of the revision, a `orchestrator.store.decisions.DecisionLog`; None without phases.
    """

    def __init__(
        self,
        ledger: Ledger,
        sweep: ComposedSweep,
        number: int,
        *,
        sealed: bool,
        trusted: set[tuple[str, int]] | None = None,
    ) -> None:
        self.ledger, self.whole, self.number, self.sealed = ledger, sweep, number, sealed
        self.sweep, self.decisions = sweep, cast(Any, None)
        if sweep.has_decisions:
            self.decisions = load(_DECISIONS)(ledger, sweep, number if sealed else 0)
            self.sweep = self.decisions.unfolded.sweep
        self.trusted: set[tuple[str, int]] = set() if trusted is None else trusted
        self.problems: list[str] = self.decisions.problems() if self.decisions else []
        # Of a stage in a cell: what its estimate was made from, and the estimate.
        self.estimated: dict[tuple[str, str], tuple[object, Estimate]] = {}

    def fresh(self) -> SweepState:
        """Return the state of the same revision, to be read again from the store."""
        return self._reading(self.ledger.renewed())

    def _reading(self, ledger: Ledger) -> SweepState:
        view = SweepState(ledger, self.whole, self.number, sealed=self.sealed, trusted=self.trusted)
        view.estimated = self.estimated
        return view

    def with_gates(self, gates: Gates) -> SweepState:
        """Return the state of the same revision with other gates, such as those that a launch would have."""
        view = self.fresh()
        view.gates = gates
        return view

    @property
    def title(self) -> str:
        """The revision for people, such as ``smoke@2``; for an unsealed one, with the store that lacks it."""
        place = "" if self.sealed else f" (not launched yet in {self.ledger.objects.url})"
        return f"{self.sweep.name}@{self.number}{place}"

    @property
    def hint(self) -> str:
        """What to append to a printed command so that it uses this store; "" if it does so by default."""
        url = self.ledger.objects.url
        return "" if url == store_url(None) else f" store.url={shlex.quote(url)}"

    def patient(self, notify: Notify, stop_asked: Callable[[], str] = lambda: "") -> SweepState:
        """Return the state of the same revision, with reads that wait while the store does not answer.

        Args:
            notify: called with a line of text when the wait begins and when it ends.
            stop_asked: returns why the wait must end early, "" as long as it need not.

        Returns:
            A state whose reads wait for at most `store.outage_s` of the last launch.
        """
        outage_s = next((r.settings.store.outage_s for r in reversed(self.requests) if r.settings), 0.0)
        return self._reading(self.ledger.patient(Outage(outage_s, notify, stop_asked)))

    def attempts(self, instance: StageInstance) -> tuple[Attempt, ...]:
        """Return a stage's attempts; none if they cannot be read, for which its state gives the reason."""
        try:
            return self.ledger.attempts(instance)
        except (OSError, InfrastructureError):
            return ()

    def check(self) -> None:
        """Refuse a revision with a wrong stage digest or a damaged decision, before anything runs.

        Raises:
            InfrastructureError: a digest is not that of what the stage would run, or a decision is damaged.
        """
        check_digests(self.whole, self.title)
        self.check_decisions()

    def check_decisions(self) -> None:
        """Raise `DamagedRecord` if a decision is damaged: which cells exist is then unknown."""
        if self.decisions is not None:
            self.decisions.check()

    def warnings(self) -> list[str]:
        """Return which records cannot be read. They are never trusted, and never silently left out."""
        _ = self.requests
        return self.problems

    @cached_property
    def requests(self) -> list[Request]:
        """The sweep's requests, oldest first."""
        return self.ledger.requests(self.sweep.name, self.problems)

    @cached_property
    def policy(self) -> Policy:
        """The policy of the last launch or rerun."""
        settings = [request.settings for request in self.requests if request.settings]
        return settings[-1].policy if settings else Policy()

    @cached_property
    def request_summary(self) -> RequestSummary:
        """The combined effect of the requests."""
        return summarize_requests(self.requests, [cell.id for cell in self.sweep.cells])

    @cached_property
    def gates(self) -> Gates:
        """The gates of the launches that named the cells last."""
        return gates_of_requests(self.sweep, self.number, self.requests, self.request_summary.asked)

    @cached_property
    def instances(self) -> dict[str, StageInstance]:
        """The stage instances by digest, gates included."""
        return {**self.sweep.stages, **self.gates.instances}

    def chain(self, cell: Cell) -> tuple[str, ...]:
        """Return the digests of a cell's stages, after those of the gates of what is not done."""
        gates = self.gates.cells.get(cell.id, ())
        waits = (g.digest for g in gates if any(self.stages[d].state is not State.DONE for d in g.stages))
        return (*waits, *cell.stage_digests)

    def stages_of(self, cell: Cell) -> dict[str, StageStatus]:
        """Return the status of each stage of a cell, after those of the gates that it waits for."""
        own = self.cells[cell.id].stages
        return {digest: own.get(digest) or self.stages[digest] for digest in self.chain(cell)}

    @cached_property
    def jobs(self) -> Jobs:
        """The submissions, and what schedulers answered about them. Each is queried once, if needed."""
        filed = Submissions(self.ledger, self.sweep.name).read(self.problems, self.problems)
        return Jobs(filed, ask_schedulers(filed), asker())

    def _observe(self, instance: StageInstance, attempt: Attempt) -> OwnerReport:
        """Return whether an attempt's owner is gone, as far as its processes or its scheduler prove it.

        This is one observation by a reader. It never concludes death from an old heartbeat; only a watcher,
        which reads repeatedly, may do that.
        """
        report = inspect_owner(instance, attempt)
        if report.liveness is Liveness.GONE or attempt.claim is None:
            return report
        owner = attempt.claim.owner
        # On another machine, the process proves nothing. The scheduler may report that its job has ended.
        if (over := self.jobs.fate(owner)) is None:
            return report
        reason = ending(f"{owner.job}_{owner.array_index}", over)
        return OwnerReport(Liveness.GONE, reason, over.cause or Cause.NODE_LOST)

    @cached_property
    def reader(self) -> EvidenceReader:
        """The evidence about the sweep's stages."""
        return EvidenceReader(
            self.ledger,
            self.instances.values(),
            observer=self._observe,
            trusted=self.trusted,
            specs=self.sweep.specs,
            title=f"{self.sweep.name}@{self.number}" if self.sealed else "",
        )

    @property
    def as_of(self) -> float:
        """When the stages were looked at, in Unix seconds: what was recorded before is in the states."""
        return self.reader.as_of

    @cached_property
    def stages(self) -> dict[str, StageStatus]:
        """The state of each stage instance, by digest."""
        evidence, budget, retries = self.reader.evidence, self.request_summary.budget, self.policy.retries
        return {digest: stage_status(evidence(digest), budget(digest, retries)) for digest in self.instances}

    @cached_property
    def codes(self) -> dict[str, str]:
        """The digest of the code that would run each cell, by id: that of the launch that named it last."""
        return codes_of(self.requests, self.request_summary.asked)

    @cached_property
    def holds(self) -> Holds:
        """What is held back in the sweep, by rules that look at more than one stage."""
        records = holding.SweepRecords(
            sweep=with_gates(self.sweep, self.gates),
            gates=self.gates,
            evidence=self.reader.evidence,
            status=self.stages.__getitem__,
            unfinished=[d for d, s in self.stages.items() if s.attempts and s.state is not State.DONE],
            requests=self.request_summary,
            policy=self.policy,
            codes=self.codes,
            spending=spending_now(self.ledger, self.sweep.name, self.policy),
            space=space_of(self.ledger.objects),
            now=time.time(),
        )
        return holding.holds_of(records)

    @cached_property
    def cells(self) -> dict[str, CellStatus]:
        """The state of each cell, by id."""
        found = {}
        rule = GateRule(self.sweep.cells, self.gates)
        holds = holding.merged(self.holds, Holds(stages=rule.holds(self.stages.__getitem__)))
        by_number = {request.number: request for request in self.requests}
        for cell in self.sweep.cells:
            status = cell_status(
                cell,
                self.sweep.stages,
                self.stages,
                cancelled=cell.id in self.request_summary.cancelled,
                holds=holds,
                sweep=f"{self.sweep.name}@{self.number}",
            )
            # Job failures before the last launch or rerun of the cell do not count against its budget.
            asked = by_number.get(self.request_summary.asked.get(cell.id, 0))
            its = with_jobs(cell.id, status, self.jobs, asked=asked, retries=self.policy.retries)
            # Jobs may find nothing to do because another one's worker does it.
            is_alive = its.state is State.FAILED and is_beating(status, self.reader.evidence)
            found[cell.id] = status if is_alive else its
        return found

    @property
    def facts(self) -> state.SweepFacts:
        """What decisions follow from."""
        cancelled, evidence = self.request_summary.cancelled, self.reader.evidence
        return state.SweepFacts(self.stages.__getitem__, evidence, cancelled, self.holds)

    @cached_property
    def open_decision(self) -> Undecided | None:
        """The next decision, with the reason why it was not made yet; None if no decision is left."""
        return None if self.decisions is None else self.decisions.open(self.facts)

    @cached_property
    def chosen_gpus(self) -> dict[str, int]:
        """The GPUs that were chosen for cells that are not done, by id, as first recorded."""
        found: dict[str, int] = {}
        for filed in self.jobs.filed:
            if number := filed.submission.resources.chosen_gpus:
                for cell_id in (each for task in filed.submission.tasks for each in task):
                    found.setdefault(cell_id, number)
        # Workers of other launchers record the number in their claims. Few sweeps have such claims.
        if any(r.settings is not None and r.settings.hardware.moldable for r in self.requests):
            for cell in self.sweep.cells:
                if cell.id not in found and self.cells[cell.id].state is not State.DONE:
                    attempts = (self.attempts(self.sweep.stages[digest]) for digest in cell.stage_digests)
                    found[cell.id] = chosen_before(cell.id, [one for each in attempts for one in each])
        return {cell_id: number for cell_id, number in found.items() if number}

    def asked_cells(self, ids: Collection[str] | None) -> list[Cell]:
        """Return the cells that a request names by their ids; for None all that exist by now."""
        return [cell for cell in self.sweep.cells if ids is None or cell.id in ids]

    def subject(self, cell: Cell) -> Subject:
        """Return the fields of a cell that selectors match."""
        status = self.cells[cell.id]
        failure = tuple(found.digest for _, found in self.failures(cell))
        return Subject(cell.axes, cell.columns, cell.config, cell.id, status.state, status.cause, failure)

    def failures(self, cell: Cell) -> list[tuple[StageInstance, Fingerprint]]:
        """Return each stage of a cell whose last attempt failed, with the fingerprint of that failure."""
        ends = ((d, state.failed_end(self.stages[d], self.reader.evidence(d))) for d in self.chain(cell))
        return [(self.instances[d], fingerprint(self.instances[d].stage, end)) for d, end in ends if end]

    def select(self, only: Sequence[str]) -> list[Cell]:
        """Return the cells that match all selectors; all cells if there is no selector.

        Raises:
            UserError: a selector has an unknown key, value or cell.
        """
        if not only:
            return list(self.sweep.cells)
        pairs = [(cell, self.subject(cell)) for cell in self.sweep.cells]
        chosen = select(only, pairs)
        refuse_impossible(only, [subject for _, subject in pairs])
        return chosen

    def cell(self, word: str) -> Cell:
        """Return the one cell that a word names: its id, the beginning of its id, or a selector.

        Raises:
            UserError: no cell matches, or more than one does.
        """
        found = [cell for cell in self.sweep.cells if cell.id == word] or self.select([word])
        if len(found) != 1:
            names = ", ".join(cell.id for cell in found[:4]) + (", ..." if len(found) > 4 else "")
            raise UserError(
                f"{word!r} names {len(found)} cells, one is needed", where=self.title, allowed=names
            )
        return found[0]


def open_view(word: str, url: str | None = None) -> SweepState:
    """Return the sweep state that a reading verb works on.

    It is the revision that the word names, else the last launched one, else the sweep as its file composes.

    Args:
        word: ``smoke``, ``smoke@2`` or a path to a YAML file.
        url: of the store; see `store_url`.

    Raises:
        UserError: the sweep is neither in the store nor in a file.
    """
    reference = parse_reference(word)
    ledger = open_ledger(store_url(url)).indexed()
    number = reference.revision or current_revision(ledger, reference.name)
    if number is not None:
        return sealed_view(ledger, reference.name, number)
    from orchestrator.compose.main import compose  # slow import; only for sweeps that were never launched

    with naming_the_store(ledger):
        return SweepState(ledger, compose(reference.source).sweep, 1, sealed=False)


@contextlib.contextmanager
def naming_the_store(ledger: Ledger) -> Iterator[None]:
    """Add the store and its sweep names to the error about an unknown sweep.

    Raises:
        UnknownSweep: as raised inside, with the store.
    """
    try:
        yield
    except UnknownSweep as error:
        known = [*error.known, *ledger.sweeps()]
        where = f"neither a sweep file nor in the store {ledger.objects.url}"
        raise UnknownSweep(error.name, known, where=where, fix=error.fix) from None


def sealed_view(ledger: Ledger, name: str, number: int) -> SweepState:
    """Return the state of a sealed revision, which reads its decisions itself: a damaged one is a problem."""
    return SweepState(ledger, ledger.revision(name, number, as_sealed=True).sweep, number, sealed=True)


def current_revision(ledger: Ledger, name: str) -> int | None:
    """Return the revision of the last launch or rerun, else the newest sealed one; None if there is none."""
    # A path in place of a name must not reach the store as a key.
    if not is_name(name):
        return None
    for request in reversed(ledger.requests(name)):
        if request.verb in ("launch", "rerun") and ledger.has_revision(name, request.revision):
            return request.revision
    return max(ledger.revision_numbers(name), default=None)
