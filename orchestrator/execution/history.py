"""What a worker remembers between stages: requests, ends of attempts, and records that decide remedies."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Protocol

from orchestrator.core.evidence import Attempt, Evidence
from orchestrator.core.failure import DETERMINISTIC, Cause
from orchestrator.core.gates import Gates
from orchestrator.core.identity import uses_of
from orchestrator.core.plan import RequestSummary, summarize_requests
from orchestrator.core.records import End, Owner
from orchestrator.core.remedies import Remedied, class_of, has_rungs, remedied, rungs_of, with_shipped
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.nodes import NodeReports
from orchestrator.jobs.records import REFUSED, RELEASED, TOO_SHORT
from orchestrator.store.access import error_line
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger

CANCEL_POLL_S = 1.0
"""Seconds between two looks for a cancel while a stage runs, unless the store is polled less often."""


MAX_FAILED_STARTS = 2


class RequestReader:
    """The users' requests for a sweep, as they were last read.

    Args:
        ledger: the store.
        sweep: name of the sweep.
        cells: ids of all its cells.

    Attributes:
        summary: of the requests.
    """

    def __init__(self, ledger: Ledger, sweep: str, cells: Sequence[str]) -> None:
        self.summary = RequestSummary(frozenset(), {}, {})
        self._ledger = ledger
        self._sweep = sweep
        self._cells = cells
        self._read_s = 0.0

    def read(self, *, at_most_s: float) -> RequestSummary:
        """Return the summary of all requests, read again if it is older than `at_most_s` seconds."""
        if time.monotonic() - self._read_s >= at_most_s:
            self.summary = summarize_requests(self._ledger.requests(self._sweep), self._cells)
            self._read_s = time.monotonic()
        return self.summary


class Ran(Protocol):
    """How far an attempt came."""

    @property
    def was_running(self) -> bool:
        """Whether its stage ran, so that the failure is not one of its start."""

    @property
    def made_progress(self) -> bool:
        """Whether it left more than it began with."""


def is_replaced(attempts: Iterable[Attempt], me: Owner) -> bool:
    """Return whether a scheduler that took a worker for dead restarted its job elsewhere.

    Args:
        attempts: of a stage that the worker ran.
        me: the worker.
    """
    owners = [attempt.claim.owner for attempt in attempts if attempt.claim]
    return bool(me.job) and any(
        (o.cluster, o.job, o.array_index) == (me.cluster, me.job, me.array_index)
        and o.restart_count > me.restart_count
        for o in owners
    )


class WorkerHistory:
    """How the attempts of a worker ended, from which follow whether it goes on and how it exits.

    Args:
        in_job: whether the worker runs in a scheduler's job.

    Attributes:
        num_claims: number of attempts that it claimed.
        has_progressed: whether a successor of this job could get further.
        is_late: whether an attempt ended because too little time was left.
        is_starved: whether a stage ran out of memory, so that a larger job is needed.
        faults: attempts that failed by the node, in words, each with its end; whoever reports them removes
            them.
    """

    def __init__(self, *, in_job: bool) -> None:
        self.faults: list[tuple[str, End]] = []
        self.num_claims = 0
        self.has_progressed = False
        self.is_late = False
        self.is_starved = False
        self._in_job = in_job
        self._failed_starts: list[tuple[str, str, End]] = []
        self._is_replaced = False
        self._is_on_bad_node = False

    def add(self, digest: str, run: Ran, end: End, what: str, *, is_replaced: bool) -> None:
        """Add an attempt that ended.

        Args:
            digest: of its stage.
            run: the attempt.
            end: its end.
            what: the attempt in words.
            is_replaced: whether a later start of this worker took it over.
        """
        if end.outcome == "failed" and not run.was_running:
            self._failed_starts.append((digest, what, end))
        else:
            self._failed_starts.clear()
        if end.cause is Cause.BAD_NODE:
            self.faults.append((what, end))
        self._is_replaced = is_replaced
        # A scheduler starts its successor elsewhere. Without one, this machine is left when it is left out.
        self._is_on_bad_node |= end.cause is Cause.BAD_NODE and self._in_job
        self.is_late |= end.why == "deadline"
        self.is_starved |= end.cause is Cause.OOM_HOST and self._in_job
        self.has_progressed |= end.outcome == "succeeded" or end.why != "deadline" or run.made_progress

    def refusal(self, attributed: Callable[[Collection[str]], Collection[str]]) -> tuple[str, int] | None:
        """Return why the worker claims no more, and its exit code; None while it goes on.

        Args:
            attributed: returns the stages whose failures come from what their cells have in common. The
                machine is not to blame for these.
        """
        if self._is_replaced:
            return "a later start of this job goes on", self.exit_code("replaced")
        starts = self._failed_starts
        if len(starts) >= MAX_FAILED_STARTS:
            others = attributed([digest for digest, _, _ in starts])
            mine = [each for each in starts if each[0] not in others]
            if len(mine) >= MAX_FAILED_STARTS:
                # A wrong config fails on every node: such an end tells nothing about this one.
                chance = [(what, end) for _, what, end in mine if end.cause not in DETERMINISTIC]
                known = [what for what, end in chance if end.cause is Cause.BAD_NODE]
                if len(chance) >= MAX_FAILED_STARTS:
                    self.faults += [each for each in chance if each[0] not in known]
                return "two failures in the start phase in a row", REFUSED
        if self._is_on_bad_node:
            return "this machine cannot run the stages", REFUSED
        return None

    def report_faults(self, nodes: NodeReports, owner: Owner, sweep: str, log: Callable[[str], None]) -> None:
        """Report attempts that failed by this node, so that others avoid it for a while.

        Args:
            nodes: the reports about nodes.
            owner: the worker.
            sweep: name of the sweep.
            log: writes a line to the worker's log.
        """
        while self.faults:
            what, end = self.faults.pop(0)
            cluster, host, why = owner.cluster, owner.host, end.message
            try:
                nodes.add(cluster, host, "failed", why, cause=end.cause, sweep=sweep, attempt=what)
            except (OSError, InfrastructureError) as error:  # the next failure is reported again
                log(f"the failure of this node is not reported: {error_line(error)}")

    def exit_code(self, why: str) -> int:
        """Return the exit code of a worker that leaves work behind; it matters to a scheduler only."""
        if not self._in_job:
            return 0
        return RELEASED if self.has_progressed or why != "deadline" else TOO_SHORT


class Remedies:
    """The choice of the remedies for the stages of a sweep.

    Args:
        ledger: the store.
        sweep: the sealed sweep, with its gates among its stages.
        gates: by which a stage and its rehearsal can be of one class.
    """

    def __init__(self, ledger: Ledger, sweep: ComposedSweep, gates: Gates) -> None:
        self._ledger = ledger
        self._sweep = sweep
        self._gates = gates
        self._done: dict[tuple[str, int], Evidence] = {}
        self.specs = {name: with_shipped(spec) for name, spec in sweep.specs.items()}

    @cached_property
    def _classes(self) -> dict[str, dict[str, None]]:
        """The digests of each class of stage instances, in the order of the grid."""
        found: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for cell in self._sweep.cells:
            for digest in self._gates.chain(cell):
                instance = self._sweep.stages[digest]
                if has_rungs(spec := self.specs[instance.stage]):
                    found[class_of(spec, instance, cell.config)][digest] = None
        return found

    def start(
        self, cell: Cell, instance: StageInstance, reader: EvidenceReader, after: Mapping[str, int]
    ) -> Remedied:
        """Return what the next attempt of a stage starts with.

        Args:
            cell: on whose behalf it runs.
            instance: the stage instance.
            reader: of new evidence.
            after: digest to the attempt up to which none counts, as after a rerun.

        Raises:
            OSError: the store did not answer.
        """
        spec = self.specs[instance.stage]
        uses = uses_of(spec, cell.config)
        if not has_rungs(spec):
            return Remedied(uses)
        digests = self._classes.get(class_of(spec, instance, cell.config), {instance.digest: None})
        members = [(self._evidence(digest, reader), after.get(digest, 0)) for digest in digests]
        return remedied(spec, uses, rungs_of(spec, uses, members))

    def _evidence(self, digest: str, reader: EvidenceReader) -> Evidence:
        """Return the evidence of a stage with all its attempts; those of a product never change."""
        found = reader.evidence(digest)
        if found.done is None:
            return found
        key = (digest, found.generation)
        if key not in self._done:
            attempts = self._ledger.attempts(self._sweep.stages[digest])
            self._done[key] = found._replace(attempts=attempts)
        return self._done[key]
