"""What is held back in a sweep, by rules that look at more than one stage. Pure.

Whether one stage may start follows from its own records and its inputs (`orchestrator.core.plan`). The rules
here look at all stages of the sweep. Workers, drivers, submissions, `status` and the simulation call
`holds_of` with what they have read, so all of them decide alike.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from orchestrator.core.evidence import (
    NO_HOLDS,
    Budget,
    Evidence,
    Forecast,
    Hold,
    Holds,
    Spending,
    budget_hold,
    spent,
)
from orchestrator.core.failure import DETERMINISTIC, Alike, Cause, Fingerprint, fingerprint
from orchestrator.core.plan import RequestSummary
from orchestrator.core.records import Done, End
from orchestrator.core.settings import Policy, SpendingLimit
from orchestrator.core.state import NO_GATES, Gates, StageStatus, State, is_disk_full
from orchestrator.core.sweep import Cell, ComposedSweep, common_axes, varying_axes
from orchestrator.errors import UserError, counted, one_line

MAX_MESSAGE = 120
"""Characters of a failure's message in the reason of a hold."""

NUM_GATES = 2  # that fail alike hold back others; ours

_NO_EVIDENCE = frozenset({Cause.BAD_NODE, Cause.NODE_LOST, Cause.PREEMPTED, Cause.CANCELLED})
"""Causes that are no evidence against the cells that failed."""

SCARCE_BYTES, SCARCE_SHARE = 10 * 2**30, 0.01
"""Space on a disk is scarce below the smaller one; ours."""


class SweepRecords(NamedTuple):
    """The records that the rules use. They are read on demand, as each read may be a request to a bucket.

    Attributes:
        sweep: the sealed or composed content, with the gates of its launches.
        gates: of its launches.
        evidence: returns the evidence about a stage by digest; repeated calls return the same.
        status: returns a stage's own state by digest, which follows from its evidence.
        unfinished: digests of stages of the sweep that were attempted and have no product.
        requests: the combined effect of the users' requests.
        policy: of the launch that is decided about.
        codes: id of a cell to the digest of the code that would run it.
        spending: what the sweep has spent; None if it has no budget, or if the reader checks it itself.
        space: bytes that are free in the store, and in all; None where they are not known, as in a bucket.
        now: the time on the reader's clock, in seconds since 1970.
    """

    sweep: ComposedSweep
    evidence: Callable[[str], Evidence]
    status: Callable[[str], StageStatus]
    unfinished: Iterable[str]
    requests: RequestSummary
    policy: Policy
    codes: Mapping[str, str]
    gates: Gates = NO_GATES
    spending: Spending | None = None
    space: tuple[int, int] | None = None
    now: float = 0.0


def with_space(records: SweepRecords) -> Holds:
    """Hold back stages while the store's disk is full, once one has failed for want of space.

    While space is scarce, nothing starts. A quota, or what a stage needs, may not be seen. So where space
    seems to be there, stages of the same name wait for a time that doubles with each failure of one::

        train[a] failed 30 s ago for the third time     all of `train` waits for 210 more seconds

    Failures before the newest launch or rerun do not count: its user may have made room.
    """
    requests = records.requests
    seen = next((each for each in reversed([*requests.seen.values()]) if each is not None), {})
    full: dict[str, tuple[int, float]] = {}  # name of a stage to the most failures, and the last one's time
    for digest in records.unfinished:
        before = max(requests.after.get(digest, 0), seen.get(digest, 0))
        ends = [a.end for a in records.evidence(digest).attempts if a.end is not None and a.number > before]
        times = sum(1 for _ in itertools.takewhile(is_disk_full, reversed(ends)))
        if times:
            most, last = full.get(name := records.sweep.stages[digest].stage, (0, 0.0))
            full[name] = max(most, times), max(last, _seconds(ends[-1].at))
    if not full:
        return NO_HOLDS
    free, total = records.space or (0, 0)
    if free < min(SCARCE_BYTES, SCARCE_SHARE * total):
        why = f"the store's disk is full, {free / 2**20:,.1f} MiB are free: work waits for more"
        return Holds(stages=dict.fromkeys(records.sweep.stages, Hold(why, False, Cause.STORAGE)))
    held = {}
    for name, (times, last) in full.items():
        pause_s = pause_for_space_s(records.policy, times)
        if last and records.now - last < pause_s:
            # The disk may be another one, such as that of a node's temporary files.
            until = f"{datetime.fromtimestamp(last + pause_s, UTC):%Y-%m-%dT%H:%M:%SZ}"
            why = f"{name} lacked space on a disk: the next starts at {until}, or at the next launch"
            held[name] = Hold(why, False, Cause.STORAGE, pause_s=pause_s)
    return Holds(stages={d: held[s.stage] for d, s in records.sweep.stages.items() if s.stage in held})


def pause_for_space_s(policy: Policy, times: int) -> float:
    """Return for how many seconds stages wait after one lacked space so many times; ours."""
    return min(3600.0, policy.space_pause_s * 2.0 ** (times - 1))


def _seconds(at: str) -> float:
    """Return the time of a record, in seconds since 1970; 0 if it has none."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


def no_space(holds: Holds, *, patience_s: float = math.inf) -> str:
    """Return why stages wait for space, "" if none does.

    Args:
        holds: what is held back.
        patience_s: pauses of at most so many seconds are left out. By default all are, and only a full
            disk counts, for which every stage waits.
    """
    held = (h for h in holds.stages.values() if h.cause is Cause.STORAGE and not h.is_final)
    return next((h.reason for h in held if h.pause_s is None or h.pause_s > patience_s), "")


def within_budget(records: SweepRecords) -> Holds:
    """Hold every stage when the sweep's budget does not suffice for one more to reach a checkpoint."""
    spent = records.spending
    if spent is None:
        return NO_HOLDS
    limit, name = records.policy.budget, records.sweep.name
    hold = budget_hold(limit, spent, num_gpus=spent.worker_gpus, now=spent.at, sweep=name)
    if hold is None:
        return NO_HOLDS
    # Nobody waits while others run: a worker, or a job that is submitted for one, spends too.
    return Holds(stages=dict.fromkeys(records.sweep.stages, hold._replace(is_final=True)))


def forecast(cells: Iterable[Cell], work: Mapping[str, float], spent: Spending | None) -> Forecast:
    """Return what some cells will cost; a checkpoint of an unfinished stage is not subtracted.

    Args:
        cells: those that are not done, of workers with GPUs.
        work: digest of an unfinished stage to its GPU-seconds.
        spent: so far; None for nothing.
    """
    rest = dict(work)
    by_cell = {cell.id: sum(rest.pop(digest, 0.0) for digest in cell.stage_digests) for cell in cells}
    return Forecast(spent.gpu_seconds if spent else 0.0, by_cell)


def refuse_over_budget(limit: SpendingLimit, found: Forecast, sweep: str, *, now: float) -> None:
    """Raise if a launch would cost more than its budget allows.

    Args:
        limit: the budget.
        found: what it would cost.
        sweep: the sweep's name.
        now: the time on this machine's clock, in seconds since 1970.

    Raises:
        UserError: it costs more, or the budget has ended.
    """
    if limit.has_ended(now):
        raise UserError(f"policy.budget.until={limit.until} is past", fix="policy.budget.until=null")
    if limit.gpu_hours is None or not found.by_cell:
        return
    # The cost of stages without an estimate is not known before one has run: then the rest is zero.
    if found.total > 3600 * limit.gpu_hours or found.gpu_seconds >= 3600 * limit.gpu_hours:
        spent, rest = found.gpu_seconds / 3600, (found.total - found.gpu_seconds) / 3600
        raise UserError(
            f"the forecast is {found.total / 3600:.4g} GPU-hours, over the budget of {limit.gpu_hours:.4g}",
            where=f"{spent:.4g} are spent, {rest:.4g} are needed for {counted(len(found.by_cell), 'cell')}",
            fix=f"sweep plan {sweep} --budget policy.budget.gpu_hours={limit.gpu_hours:.4g} names cells to"
            " drop (--only), or raise the budget",
        )


Rule = Callable[[SweepRecords], Holds]
"""One rule. Its result must follow from the records alone."""


class _Failure(NamedTuple):
    """The newest failed attempt of a stage that has no product.

    Attributes:
        digest: of the stage.
        number: of the attempt.
        end: how it ended.
        code: digest of the code that ran.
    """

    digest: str
    number: int
    end: End
    code: str


def broken(records: SweepRecords) -> Holds:
    """Return the holds of the breaker: cells of which no stage starts, since others like them failed.

    It trips when `policy.breaker` stages (instances, not cells) have failed alike under the same code. An
    instance has failed once the retries of its cause were spent, so one that may be tried again does not
    count. Two gates suffice, since each stands for many cells. Held are the cells that agree with all of the
    failed ones on every axis on which these agree, and still need that stage. Failed ones that agree on
    nothing hold all cells, unless the cells of the sweep differ on one axis only: these could never agree::

        train of a.math, b.math and c.math fails alike    ->  all cells with task=math are held
        train of d.math runs meanwhile, and is done       ->  none is held: it is not task=math

    Args:
        records: what is known about the sweep.
    """
    failures, cells = list(_failures(records)) if records.policy.breaker else [], dict[str, Hold]()
    if len(failures) < min(NUM_GATES, records.policy.breaker) or not failures:
        return Holds()
    gates = {instance.stage for instance in records.gates.instances.values()}
    # Requests let cells go on, so each cell has failures of its own that count. Most have the same.
    groups: dict[tuple[int, int], set[str]] = {}
    launched, rerun = records.requests.launched, records.requests.rerun
    for cell in records.sweep.cells:
        groups.setdefault((launched.get(cell.id, 0), rerun.get(cell.id, 0)), set()).add(cell.id)
    for (launch, last_rerun), members in groups.items():
        counting = [each for each in failures if _counts(records.requests, each, launch, last_rerun)]
        for alike in _alike(records, counting):
            can_agree = bool(alike.axes) or len(varying_axes(records.sweep.cells)) > 1
            most = NUM_GATES if alike.failure.stage in gates else records.policy.breaker
            is_enough = len(alike.ends) >= min(most, records.policy.breaker) and can_agree
            if not is_enough or has_worked(records, alike, box := alike.box(records.sweep.cells)):
                continue
            hold = _hold(records, alike)
            for cell in box:
                is_meant = cell.id in members and records.codes.get(cell.id) == alike.code
                if is_meant and cell.id not in cells and _needs(records, cell, alike):
                    cells[cell.id] = hold
    return Holds(cells)


def attributed(records: SweepRecords, digests: Collection[str]) -> set[str]:
    """Return the failed stages whose failures come from what their cells have in common, not from a machine.

    These are failures alike of at least two stages, whose cells agree on axes on which other cells differ,
    where no stage of that name did work. On a broken machine, cells without anything in common fail alike.

    Args:
        records: what is known about the sweep.
        digests: of the failed stages.
    """
    found: set[str] = set()
    for alike in _alike(records, list(_failures(records))) if records.policy.breaker else ():
        box = alike.box(records.sweep.cells)
        is_part = len(box) < len(records.sweep.cells)
        if len(alike.ends) > 1 and is_part and not has_worked(records, alike, box):
            found.update(alike.ends)
    return found.intersection(digests)


def _failures(records: SweepRecords) -> Iterator[_Failure]:
    """Yield the newest failure of each stage whose retries of a cause were spent at some time."""
    budget = Budget(records.policy.retries)
    for digest in records.unfinished:
        evidence = records.evidence(digest)
        failed = [each for each in evidence.attempts if each.end is not None and each.end.outcome == "failed"]
        if evidence.done is not None or not failed or spent(evidence, budget) is None:
            continue
        number, end, start = failed[-1].number, failed[-1].end, failed[-1].start
        if end is not None and start is not None and not (end.cause in _NO_EVIDENCE or is_disk_full(end)):
            yield _Failure(digest, number, end, str(start.provenance.get("code", "")))


def _counts(requests: RequestSummary, failure: _Failure, launch: int, rerun: int) -> bool:
    """Return whether a failure counts against the cells that these requests named last.

    A rerun lets its cells go on, whatever failed before. So does a launch after failures that chance may
    cure; after others it needs other code.
    """
    before = requests.seen.get(rerun, {})
    if before is None or failure.number <= before.get(failure.digest, 0):
        return False
    before = requests.seen.get(launch) or {}
    return failure.end.cause in DETERMINISTIC or failure.number > before.get(failure.digest, 0)


def _alike(records: SweepRecords, failures: Sequence[_Failure]) -> list[Alike]:
    """Return failures in groups that look alike."""
    stages = records.sweep.stages
    digests = {failure.digest for failure in failures}
    axes: dict[str, dict[str, str]] = {}
    named: dict[str, str] = {}
    for cell in records.sweep.cells:
        for digest in digests.intersection(records.gates.chain(cell)):
            named.setdefault(digest, cell.id)
            axes[digest] = common_axes(axes.get(digest), cell.axes)
    groups: dict[tuple[str, str], list[tuple[Fingerprint, _Failure]]] = {}
    for failure in failures:
        if failure.digest in named:  # not the gate of an earlier launch
            alike = fingerprint(stages[failure.digest].stage, failure.end)
            groups.setdefault((alike.digest, failure.code), []).append((alike, failure))
    found, varying = [], varying_axes(records.sweep.cells)
    for (_, code), members in groups.items():
        common: dict[str, str] | None = None
        for _, failure in members:
            common = common_axes(common, axes[failure.digest])
        ends = {failure.digest: failure.end for _, failure in members}
        agreed = {name: value for name, value in (common or {}).items() if name in varying}
        found.append(Alike(members[0][0], code, ends, agreed, named[members[0][1].digest]))
    return found


def has_worked(records: SweepRecords, alike: Alike, box: Sequence[Cell]) -> bool:
    """Return whether a stage like the failed ones did work in one of the cells that agree with them.

    Its product must be of the same code, and hold something. A stage that takes products of other stages
    than all the failed ones had another thing to do, as the evaluation of a model that was never trained.
    """
    stages = records.sweep.stages
    kinds = {frozenset(taken.stage for taken in stages[digest].inputs) for digest in alike.ends}
    looked: set[str] = set()
    for cell in box:
        for digest in records.gates.chain(cell):
            instance = stages[digest]
            if digest in looked or digest in alike.ends or instance.stage != alike.failure.stage:
                continue
            looked.add(digest)
            done = None
            if frozenset(taken.stage for taken in instance.inputs) in kinds:
                done = records.evidence(digest).done
            if done is not None and is_of_code(done, alike.code) and (done.rows or done.files):
                return True
    return False


def is_of_code(done: Done, code: str) -> bool:
    """Return whether a product was made by code with this digest, which was not edited meanwhile."""
    return done.code.rpartition(".")[2] == code[:8]


def _needs(records: SweepRecords, cell: Cell, alike: Alike) -> bool:
    """Return whether such a stage is still to be done in a cell; not for a gate of its own that failed."""
    chain = set(records.gates.chain(cell)) - (alike.ends.keys() & records.gates.instances.keys())
    digests = [digest for digest in chain if records.sweep.stages[digest].stage == alike.failure.stage]
    return any(records.status(digest).state is not State.DONE for digest in digests)


def _hold(records: SweepRecords, alike: Alike) -> Hold:
    """Return the hold of the cells that agree with failed ones."""
    name, failure = records.sweep.name, alike.failure
    axes = " ".join(f"{k}={v}" for k, v in alike.axes.items())
    have = f" with {axes}" if axes else ""
    digest, end = next(iter(alike.ends.items()))
    what = end.message if end.message.startswith(end.exception) else f"{end.exception}: {end.message}"
    instance = records.sweep.stages[digest]
    code = " with other code" if end.cause in DETERMINISTIC else ""
    return Hold(
        f"{counted(len(alike.ends), 'cell')}{have} failed alike: {one_line(what, MAX_MESSAGE)}"
        f" (sweep logs {name} {alike.cell} --stage {shlex.quote(instance.name)});"
        f" these go on by a launch{code}, or: sweep rerun {name}"
        f" --only {shlex.quote(axes or 'state=blocked')}",
        cause=end.cause,
        failure=failure.digest,
    )


RULES: tuple[Rule, ...] = (broken, within_budget, with_space)


def holds_of(records: SweepRecords) -> Holds:
    """Return what all rules hold back.

    Args:
        records: what is known about the sweep.
    """
    return merged(*(rule(records) for rule in RULES))


def merged(*found: Holds) -> Holds:
    """Return all holds together. Of two holds of a cell or stage, a final one counts, else the first."""
    cells: dict[str, Hold] = {}
    stages: dict[str, Hold] = {}
    for holds in found:
        for into, more in ((cells, holds.cells), (stages, holds.stages)):
            for key, hold in more.items():
                if key not in into or (hold.is_final and not into[key].is_final):
                    into[key] = hold
    return Holds(cells, stages)
