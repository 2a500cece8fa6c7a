"""Where the held time of a sweep went: the goodput ledger. Pure.

A worker holds its GPUs from its start to its last sign of life, whether it computes or waits. That time is
divided among `CATEGORIES`, whose parts add up to all of it. Work is lost where no product was made from it::

    attempt 1   compute 100 s, checkpoint of step 60 holds 60 s of it, killed    60 s count, 40 s are lost
    attempt 2   resumed from step 60 of attempt 1, fails before a checkpoint     all of it is lost
    attempt 3   resumed from step 60 of attempt 1, done                          all of its compute counts

While a stage is not done, what its next attempt would resume from counts, and so does all of a running
attempt. What a store does not show, since an earlier version recorded it, is `unknown`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple

from orchestrator.core.evidence import Attempt, Evidence, Liveness
from orchestrator.core.records import Owner, TimeSpent

CATEGORIES = ("compute", "evaluation", "start", "data", "save", "restore", "lost", "idle", "unknown")
"""The parts of held time. `compute` and `evaluation` are work that counts; the others are not."""

USEFUL = ("compute", "evaluation")
"""The categories that are goodput."""

PRODUCT_LOST, RUNNING, NEVER_STARTED = "product lost", "running", "never started"
"""Reasons of lost time beside failure causes and reasons of releases."""


class Holder(NamedTuple):
    """A worker, and the time for which it has held its GPUs.

    Attributes:
        owner: its identity, which its claims name.
        num_gpus: that it holds; 0 for a worker without GPUs.
        seconds: for which it has held them, up to its last sign of life.
        start_s: the part of these before it looked for its first stage.
        device: kind of the GPUs, "" if it is not known.
    """

    owner: Owner
    num_gpus: float
    seconds: float
    start_s: float = 0.0
    device: str = ""


class HeldJob(NamedTuple):
    """One start of a scheduler's job, which held its GPUs also before and after its workers lived.

    Attributes:
        cluster, job, array_index, restart_count: its identity, see `Owner`.
        num_gpus: of the whole job.
        seconds: wall time; None while it is not known, or if the job itself holds no GPUs.
    """

    cluster: str
    job: str
    array_index: int
    restart_count: int
    num_gpus: float
    seconds: float | None = None

    def has(self, owner: Owner) -> bool:
        """Return whether a worker belongs to this start."""
        return (owner.cluster, owner.job, owner.array_index, owner.restart_count) == self[:4]


class Goodput(NamedTuple):
    """The held time of some workers, and where it went.

    Attributes:
        unit: ``gpu_seconds`` of workers with GPUs, ``worker_seconds`` of the others.
        total: all of it, the sum of `parts`.
        parts: category to amount, for all `CATEGORIES`.
        by_stage: name of a stage to its parts. What belongs to no stage is under "".
        lost_by: why time was lost to amount: a failure cause, the reason of a release, or another word.
        num_workers: number of workers.
        devices: kinds of the GPUs.
    """

    unit: str
    total: float
    parts: dict[str, float]
    by_stage: dict[str, dict[str, float]]
    lost_by: dict[str, float]
    num_workers: int
    devices: tuple[str, ...]

    @property
    def useful(self) -> float:
        """Amount of work that counts."""
        return sum(self.parts[name] for name in USEFUL)


class _Charge(NamedTuple):
    """Seconds of one category that an attempt, or a worker itself, is charged with."""

    category: str
    seconds: float
    stage: str = ""
    why: str = ""


def goodput(
    sweep: str,
    holders: Sequence[Holder],
    stages: Iterable[tuple[str, Evidence]],
    jobs: Sequence[HeldJob] = (),
) -> list[Goodput]:
    """Return where the held time of a sweep went, with GPUs first; nothing for a sweep without any.

    An attempt is charged to the sweep whose worker ran it, also where several sweeps share the stage.

    Args:
        sweep: its name.
        holders: all of its workers.
        stages: name and evidence of each stage of all its revisions, each stage once.
        jobs: starts of its scheduler's jobs.
    """
    charges: dict[Owner, list[_Charge]] = {}
    held: dict[Owner, list[float]] = {}
    for stage, evidence in stages:
        shares = useful_shares(evidence)
        for attempt in evidence.attempts:
            if attempt.claim is not None and attempt.claim.sweep == sweep:
                found = _charges(stage, attempt, shares.get(attempt.number, 0.0), evidence)
                charges.setdefault(attempt.claim.owner, []).extend(found)
                held.setdefault(attempt.claim.owner, []).append(_spent(attempt).held_s)
    tally = _Tally()
    known = {holder.owner: holder for holder in holders}
    for owner in dict.fromkeys((*known, *charges)):
        own = charges.get(owner, [])
        busy_s = sum(charge.seconds for charge in own)
        holder = known.get(owner) or Holder(owner, _gpus_of_job(owner, jobs, charges), 0.0)
        seconds = max(holder.seconds, holder.start_s + busy_s, *held.get(owner, ()))
        start = [_Charge("start", holder.start_s)] if holder.start_s else []
        idle = _Charge("idle", seconds - holder.start_s - busy_s)
        tally.add(holder, [*own, *start, idle])
    for job in jobs:
        tally.add_rest(job)
    return tally.results()


class _Tally:
    """Sums of charges, apart for workers with and without GPUs."""

    def __init__(self) -> None:
        self._charged: dict[str, list[tuple[float, _Charge]]] = {}
        self._workers: dict[str, list[Holder]] = {}
        self._by_owner: dict[Owner, float] = {}

    def add(self, holder: Holder, charges: Sequence[_Charge]) -> None:
        """Add a worker."""
        unit, weight = _unit(holder.num_gpus)
        self._workers.setdefault(unit, []).append(holder)
        self._charged.setdefault(unit, []).extend((weight, charge) for charge in charges)
        self._by_owner[holder.owner] = weight * sum(charge.seconds for charge in charges)

    def add_rest(self, job: HeldJob) -> None:
        """Add the time of a job in which none of its workers lived."""
        if job.seconds is None or not job.num_gpus:
            return
        mine = [amount for owner, amount in self._by_owner.items() if job.has(owner)]
        rest = job.num_gpus * job.seconds - sum(mine)
        if rest > 0:
            charge = _Charge("idle", rest) if mine else _Charge("lost", rest, why=NEVER_STARTED)
            self._charged.setdefault("gpu_seconds", []).append((1.0, charge))

    def results(self) -> list[Goodput]:
        """Return the sums."""
        return [self._result(unit) for unit in ("gpu_seconds", "worker_seconds") if unit in self._charged]

    def _result(self, unit: str) -> Goodput:
        by_stage: dict[str, dict[str, float]] = {}
        lost_by: dict[str, float] = {}
        for weight, charge in self._charged[unit]:
            parts = by_stage.setdefault(charge.stage, dict.fromkeys(CATEGORIES, 0.0))
            parts[charge.category] += weight * charge.seconds
            if charge.category == "lost":
                lost_by[charge.why] = lost_by.get(charge.why, 0.0) + weight * charge.seconds
        parts = {name: sum(each[name] for each in by_stage.values()) for name in CATEGORIES}
        workers = self._workers.get(unit, [])
        devices = tuple(sorted({worker.device for worker in workers if worker.device}))
        return Goodput(unit, sum(parts.values()), parts, by_stage, lost_by, len(workers), devices)


def _unit(num_gpus: float) -> tuple[str, float]:
    """Return the unit in which a worker's time counts, and how much a second of it is."""
    return ("gpu_seconds", num_gpus) if num_gpus else ("worker_seconds", 1.0)


def _gpus_of_job(owner: Owner, jobs: Iterable[HeldJob], owners: Iterable[Owner]) -> float:
    """Return the GPUs of a worker of an earlier version, as far as its job shows them; else 0."""
    for job in jobs:
        if owner.job and job.has(owner):
            slots = 1 if job.seconds is None else len({other.slot for other in owners if job.has(other)})
            return job.num_gpus / max(1, slots)
    return 0.0


# Attempts


def _spent(attempt: Attempt) -> TimeSpent:
    """Return how an attempt spent its time, up to its last sign of life."""
    record = attempt.end or attempt.heartbeat
    if record is not None and record.spent is not None:
        return record.spent
    if attempt.end is not None:
        return TimeSpent(seconds=attempt.end.seconds)
    if attempt.claim is None or attempt.heartbeat is None:
        return TimeSpent()
    # Both times are of the owner's own clock.
    return TimeSpent(seconds=_seconds_between(attempt.claim.at, attempt.heartbeat.at))


def _seconds_between(first: str, last: str) -> float:
    try:
        return max(0.0, (datetime.fromisoformat(last) - datetime.fromisoformat(first)).total_seconds())
    except (ValueError, TypeError):  # a time that is missing, or one with and one without a zone
        return 0.0


def _work(spent: TimeSpent) -> float:
    """Return the seconds of compute and evaluation."""
    return sum(spent.phases.get(name, 0.0) for name in USEFUL)


def useful_shares(evidence: Evidence) -> dict[int, float | None]:
    """Return the share of each attempt's work that counts: that the product holds, or will hold.

    Args:
        evidence: of one stage.

    Returns:
        Number of an attempt to a share in [0, 1]; None if the records do not show it. Attempts that are left
        out count for nothing.
    """
    attempts = {attempt.number: attempt for attempt in evidence.attempts}
    if not attempts:
        return {}
    newest = evidence.attempts[-1]
    if evidence.done is not None:
        number, share = evidence.done.attempt, 1.0 if evidence.done.attempt in attempts else None
    elif newest.end is None and evidence.liveness is not Liveness.GONE:
        number, share = newest.number, 1.0
    else:
        number, share = newest.number, _saved_share(newest)
    shares: dict[int, float | None] = {}
    while number in attempts and number not in shares:
        shares[number] = share
        start = attempts[number].start
        if start is None:
            break
        if start.parent is not None:
            number = start.parent.attempt
            share = _share_until(attempts[number], start.parent.step) if number in attempts else None
        else:
            # What a command left in its folder is all of use to the attempt that goes on there.
            number, share = start.unread or start.work or 0, 1.0
    return shares


def _saved_share(attempt: Attempt) -> float | None:
    """Return the share of an ended attempt's work that its last checkpoint holds."""
    if attempt.end is not None and attempt.end.outcome == "succeeded":
        return 0.0  # its product no longer counts, and its checkpoints are gone
    spent = _spent(attempt)
    if not spent.phases:
        return None if spent.seconds else 0.0
    return min(1.0, spent.saved_s / work) if (work := _work(spent)) and spent.saved_step is not None else 0.0


def _share_until(attempt: Attempt, step: int) -> float | None:
    """Return the share of an attempt's work that its checkpoint of a step holds."""
    first = attempt.start.parent.step if attempt.start and attempt.start.parent else 0
    if step <= first:
        return 0.0  # it handed on the checkpoint that it started from
    spent = _spent(attempt)
    if not spent.phases:
        return None
    if spent.saved_step is None or step > spent.saved_step:
        return 1.0  # saved after its last sign of life
    kept_s = spent.saved_s
    if step < spent.saved_step and spent.saved_step > first:  # a later checkpoint was skipped
        kept_s *= (step - first) / (spent.saved_step - first)
    return min(1.0, kept_s / work) if (work := _work(spent)) else 0.0


def _charges(stage: str, attempt: Attempt, share: float | None, evidence: Evidence) -> Iterator[_Charge]:
    """Yield what an attempt is charged with; the seconds add up to all of its time."""
    spent = _spent(attempt)
    if share == 0.0:  # nothing of it is of use, so its start and its data were in vain too
        yield _Charge("lost", spent.seconds, stage, _why_lost(attempt, evidence))
        return
    if share is None or not spent.phases:
        yield _Charge("unknown", spent.seconds, stage)
        return
    # Phases are rounded, and the record of an attempt may be of any version: their sum is made to fit.
    recorded = sum(spent.phases.values())
    scale = min(1.0, spent.seconds / recorded) if recorded > 0 else 1.0
    for name, seconds in spent.phases.items():
        kept = scale * seconds * (share if name in USEFUL else 1.0)
        yield _Charge(name if name in CATEGORIES else "unknown", kept, stage)
        if name in USEFUL and share < 1.0:
            yield _Charge("lost", scale * seconds - kept, stage, _why_lost(attempt, evidence))
    yield _Charge("unknown", max(0.0, spent.seconds - scale * recorded), stage)


def _why_lost(attempt: Attempt, evidence: Evidence) -> str:
    """Return why work of an attempt was lost, in one word."""
    if attempt.end is not None:
        if attempt.end.outcome == "succeeded":
            return PRODUCT_LOST
        return str(attempt.end.cause or attempt.end.why or "unknown")
    for later in evidence.attempts:
        if later.claim and later.claim.supersedes and later.claim.supersedes.attempt == attempt.number:
            return str(later.claim.supersedes.cause)
    return str(evidence.liveness_cause) if evidence.liveness is Liveness.GONE else RUNNING


def shares_of(found: Goodput) -> Mapping[str, float]:
    """Return each category's share of the total, which is 1 in all; zeros where nothing was held."""
    return {name: amount / found.total if found.total else 0.0 for name, amount in found.parts.items()}
