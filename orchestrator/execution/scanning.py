"""Repeated searches of the store for a stage to claim. Each reads only what may have changed since the last.

Which records exist is seen in a few listings. They show most changes, so most records need no second look:

    done, void, retired    a product was made, discarded, damaged or lost files
    attempts               the first attempt began

How an attempt goes on is in records that are replaced or added. So stages with attempts and without a product
are always read again.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence

from msgspec.structs import replace

from orchestrator.core.evidence import NO_HOLDS, Holds, Spending
from orchestrator.core.gates import NO_GATES, Gates, is_given_up
from orchestrator.core.holding import SweepRecords, attributed, holds_of, merged
from orchestrator.core.plan import ReadyIndex, RequestSummary, Scan
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus, State
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.store.access import StageIndex
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.opening import space_of

HOLDS_POLL_S = 2.0
HOLDS_SHARE = 20
"""Seconds between two evaluations of what is held back. They take at most 1/HOLDS_SHARE of the time."""

StatusOf = Callable[[EvidenceReader, RequestSummary, str], StageStatus]
"""A function that returns the own state of a stage by its digest, from evidence and requests."""


class HoldReader:
    """What is held back in a sweep, as this process last found it.

    The rules look at all stages of the sweep, so they are not evaluated at each search. They are at the first
    one, when requests change, after `expire`, and at intervals.

    Args:
        sweep: the sealed sweep.
        policy: of the launch.
        code: digest of the code that the process runs.
        gates: of the launch.
        spending: returns what the sweep has spent, by the policy with the newest budget; None if this process
            checks the budget itself.
        takes_turns: see `SweepRecords`.

    Attributes:
        policy: as given.
        takes_turns: as given, until this process has waited: all that wait would start at one moment.
        found: what is held back, as it was last found.
    """

    def __init__(
        self,
        sweep: ComposedSweep,
        policy: Policy,
        code: str,
        gates: Gates = NO_GATES,
        spending: Callable[[Policy], Spending | None] = lambda policy: None,
        *,
        takes_turns: bool = True,
    ) -> None:
        self.policy = policy
        self.takes_turns = takes_turns
        self._reader: EvidenceReader | None = None
        self._spending = spending
        self._gates = gates
        self._sweep = sweep
        self._codes = {cell.id: code for cell in sweep.cells}
        self._summary: RequestSummary | None = None
        self.found = NO_HOLDS
        self._next_s = 0.0

    def expire(self) -> None:
        """Have the rules evaluated at the next search, as after a failure."""
        self._summary = None

    def is_of(self, reader: EvidenceReader) -> bool:
        """Return whether the rules were evaluated by the evidence of a reader, not by an older one."""
        return self._reader is reader

    def read(self, reader: EvidenceReader, summary: RequestSummary, status_of: StatusOf) -> Holds:
        """Return what is held back.

        Args:
            reader: of evidence as of now.
            summary: of the requests, as of now.
            status_of: returns the state of a stage.
        """
        start_s = time.monotonic()
        if summary == self._summary and start_s < self._next_s:
            return self.found
        self.found = holds_of(self.records(reader, summary, status_of))
        now_s = time.monotonic()
        self._summary, self._reader = summary, reader
        self._next_s = now_s + max(HOLDS_POLL_S, HOLDS_SHARE * (now_s - start_s))
        if self.found.until is not None:
            self._next_s = min(self._next_s, now_s + max(0.0, self.found.until - time.time()))
        return self.found

    @property
    def is_due(self) -> bool:
        """Whether the time has come to evaluate the rules again."""
        return time.monotonic() >= self._next_s

    def records(self, reader: EvidenceReader, summary: RequestSummary, status_of: StatusOf) -> SweepRecords:
        """Return what the rules may look at; see `read` for the arguments."""
        policy = replace(self.policy, budget=summary.limit)
        begun = set[str]().union(*map(_unfinished, reader.listed.values()))
        return SweepRecords(
            sweep=self._sweep,
            evidence=reader.evidence,
            status=functools.cache(functools.partial(status_of, reader, summary)),
            unfinished=[digest for digest in self._sweep.stages if digest in begun],
            requests=summary,
            policy=policy,
            codes=self._codes,
            gates=self._gates,
            spending=self._spending(policy),
            space=space_of(reader.ledger.objects),
            now=time.time(),
            takes_turns=self.takes_turns,
        )


def _unfinished(index: StageIndex) -> set[str]:
    """Return the digests of stages with attempts that may have no product."""
    return set(index.attempted - index.done.keys()) | (index.attempted & index.void.keys())


class StoreScanner:
    """The searches of one process. A worker claims what they find, a driver counts it.

    Args:
        cells: in the order in which they are tried.
        instances: digest to stage instance.
        status_of: returns the state of a stage.
        gates: of the launch.
        holds: what is held back in the sweep; None for nothing.
    """

    def __init__(
        self,
        cells: Sequence[Cell],
        instances: Mapping[str, StageInstance],
        status_of: StatusOf,
        gates: Gates = NO_GATES,
        holds: HoldReader | None = None,
    ) -> None:
        self._holds = holds
        self._index = ReadyIndex(cells, instances, gates)
        self._instances = instances
        self._gates = gates
        self._status_of = status_of
        self._reader: EvidenceReader | None = None
        self._summary = RequestSummary(frozenset(), {}, {})
        self._unsure: set[str] = set()  # to be read again, whatever the listings show

    @property
    def cells(self) -> Sequence[Cell]:
        """The cells that are searched, in order."""
        return self._index.cells

    def leave_out(self, digest: str) -> None:
        """Drop all cells that need a stage."""
        self._index.leave_out(digest)

    def is_wanted(self, digest: str, cancelled: Collection[str]) -> bool:
        """Return whether a cell that is not cancelled needs a stage, or waits for a gate that does."""
        for cell in self.cells:
            if cell.id in cancelled:
                continue
            if digest in cell.stage_digests:
                return True
            for gate in self._gates.cells.get(cell.id, ()):
                waits = any(self._status(stage).state is not State.DONE for stage in gate.stages)
                if waits and digest in self._gates.chains[gate.digest]:
                    return True
        return False

    def digests(self) -> set[str]:
        """Return the digests of all stages that are searched."""
        return {digest for cell in self.cells for digest in self._gates.chain(cell)}

    @property
    def holds(self) -> Holds:
        """What is held back in the sweep, as it was last found."""
        return NO_HOLDS if self._holds is None else self._holds.found

    @property
    def stands_s(self) -> float:
        """The seconds until what is held back changes, if no record does."""
        until = self.holds.until
        return math.inf if until is None else max(0.01, until - time.time())

    def look_at_holds(self) -> None:
        """Have the next search find out again what is held back, as after a failure."""
        if self._holds is not None:
            self._holds.expire()

    def attributed(
        self, reader: EvidenceReader, summary: RequestSummary, digests: Collection[str]
    ) -> set[str]:
        """Return the failed stages whose failures come from what their cells have in common.

        Args:
            reader: of evidence as of now.
            summary: of the requests, as of now.
            digests: of the failed stages.
        """
        if self._holds is None:
            return set()
        return attributed(self._holds.records(reader, summary, self._status_of), digests)

    def held_back(self) -> str:
        """Return why the first of the cells that is held back is so, "" if none is."""
        reasons = (hold.reason for cell in self.cells if (hold := self.holds.cells.get(cell.id)) is not None)
        return next((f"held back: {reason}" for reason in reasons), "")

    def is_given_up(self, digest: str, reader: Callable[[], EvidenceReader], summary: RequestSummary) -> bool:
        """Return whether a gate that runs is needed no more, since others like it have failed.

        Args:
            digest: of the stage that runs.
            reader: returns one of evidence as of now.
            summary: of the requests, as of now.
        """
        if self._holds is None or digest not in self._gates.instances:
            return False
        if self._holds.is_due:
            self._holds.read(reader(), summary, self._status_of)
        return is_given_up(digest, self._gates, self._holds.found)

    def lacks_space(self, patience_s: float) -> str:
        """Return why a stage that is searched waits for space, longer than so long; "" if none does."""
        mine = self.digests() if self.holds.stages else set()
        held = {digest: hold for digest, hold in self.holds.stages.items() if digest in mine}
        left = {each: hold for each, hold in held.items() if self._status(each).state is not State.DONE}
        return Holds(stages=left).lack_of_space(patience_s)

    def look_again(self, digest: str) -> None:
        """Have the next search read a stage again, for a reason that its records do not show."""
        self._unsure.add(digest)

    def next_stage(self, reader: EvidenceReader, summary: RequestSummary, holds: Holds = NO_HOLDS) -> Scan:
        """Return the first stage that may be claimed.

        Args:
            reader: of evidence as of now.
            summary: of the requests, as of now.
            holds: what is held back here, beside what is in the whole sweep.
        """
        given, holds = holds, self._take(reader, summary, holds)
        scan = self._index.next_stage(self._status, cancelled=summary.cancelled, holds=holds)
        if scan.claimable is None and not scan.waiting:
            # Before the caller leaves: no listing shows that files of a product are damaged.
            self._index.touch(None)
            scan = self._index.next_stage(self._status, cancelled=summary.cancelled, holds=holds)
        if scan.claimable is not None and not self._may_try_again(reader, scan.claimable.instance.digest):
            return self.next_stage(reader, summary, given)
        if self._holds is not None and scan.claimable is None:
            self._holds.takes_turns = True
        return scan

    def _may_try_again(self, reader: EvidenceReader, digest: str) -> bool:
        """Return whether a stage may be claimed by what is held back now: others may have seen it fail."""
        if self._holds is None or self._holds.is_of(reader) or not self._status(digest).attempts:
            return True
        self._holds.expire()
        return False

    def count(
        self, reader: EvidenceReader, summary: RequestSummary, holds: Holds = NO_HOLDS
    ) -> tuple[int, bool]:
        """Return how many stages may be claimed, and whether to wait; see `next_stage` for the arguments."""
        holds = self._take(reader, summary, holds)
        found = self._index.count(self._status, cancelled=summary.cancelled, holds=holds)
        if not any(found):
            self._index.touch(None)
            found = self._index.count(self._status, cancelled=summary.cancelled, holds=holds)
        return found

    def _take(self, reader: EvidenceReader, summary: RequestSummary, holds: Holds) -> Holds:
        """Take newer evidence and requests, mark the stages that they may change, and return all holds."""
        changed = self._unsure
        if self._reader is not None:
            changed |= self._changed(self._reader, reader)
        self._unsure = set()
        self._reader = reader
        self._summary = summary
        self._index.touch(changed)
        if self._holds is None:
            return holds
        return merged(holds, self._holds.read(reader, summary, self._status_of))

    def _status(self, digest: str) -> StageStatus:
        assert self._reader is not None
        status = self._status_of(self._reader, self._summary, digest)
        # A damaged product is listed like a whole one, whatever the attempts to make it again do.
        if status.state is State.UNKNOWN or (status.attempts and status.state is not State.DONE):
            self._unsure.add(digest)
        return status

    def _changed(self, before: EvidenceReader, now: EvidenceReader) -> set[str]:
        """Return the digests of stages whose evidence may differ between two readers."""
        listed: set[str] = set()
        again: set[str] = set()
        for stage, index in now.listed.items():
            listed |= _differing(before.listed[stage], index)
            again |= _unfinished(index)
        again |= (
            {i.digest for i in self._instances.values() if i.stage in now.unlisted} if now.unlisted else set()
        )
        if listed:
            # A product counts only while its inputs do, and may be made from that of an earlier version.
            again |= {
                digest
                for digest, instance in self._instances.items()
                if digest in listed
                or any(taken.digest in listed for taken in instance.inputs)
                or any(former.digest in listed for former in now.formers.get(digest, ()))
            }
        return again


def _differing(before: StageIndex, now: StageIndex) -> set[str]:
    """Return the digests about which two listings differ."""
    found = set(before.attempted ^ now.attempted)
    pairs = ((before.done, now.done), (before.void, now.void), (before.retired, now.retired))
    for old, new in pairs:
        if old != new:
            found |= {digest for digest in old.keys() | new.keys() if old.get(digest) != new.get(digest)}
    return found
