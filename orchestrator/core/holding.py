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
from functools import partial
from typing import NamedTuple

from orchestrator.core.evidence import NO_HOLDS, Budget, Evidence, Hold, Holds, Spending, budget_hold, spent
from orchestrator.core.failure import DETERMINISTIC, Alike, Cause, Fingerprint, fingerprint
from orchestrator.core.gates import NO_GATES, Gates
from orchestrator.core.plan import RequestSummary
from orchestrator.core.records import Done, End
from orchestrator.core.settings import Policy
from orchestrator.core.state import StageStatus, State, is_disk_full
from orchestrator.core.sweep import Cell, ComposedSweep, common_axes, varying_axes
from orchestrator.errors import counted, one_line

MAX_MESSAGE = 120  # characters of a failure's message in the reason of a hold
NUM_GATES = 2  # that fail alike hold back others; ours

_NO_EVIDENCE = frozenset({Cause.BAD_NODE, Cause.NODE_LOST, Cause.PREEMPTED, Cause.CANCELLED})
"""Causes that are no evidence against the cells that failed."""

SCARCE_BYTES, SCARCE_SHARE = 10 * 2**30, 0.01
"""Space on a disk is scarce below the smaller one; ours."""

NUM_TOGETHER, TURN_S = 2, 60.0
"""How often a stage lacks space in a row before it runs alone, and seconds of a turn to start; ours."""


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
        takes_turns: whether stages that may start one at a time do so by the clock. A job of a scheduler
            whose stage need not wait starts it at once: it was submitted when its cell was alone.
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
    takes_turns: bool = True


def with_space(records: SweepRecords) -> Holds:
    """Hold back stages while the store's disk is full, once one has failed for want of space.

    While space is scarce, nothing starts. A quota, or what a stage needs, may not be seen. So where space
    seems to be there, stages of the same name pause for a time that doubles with each failure of one::

        train[a] failed 30 s ago for the third time     all of `train` waits for 210 more seconds

    Then some start one at a time, see `_in_turn`. Failures before the newest launch or rerun do not count:
    its user may have made room.
    """
    requests, stages = records.requests, records.sweep.stages
    seen = next((each for each in reversed([*requests.seen.values()]) if each is not None), {})
    full: dict[str, tuple[int, float]] = {}  # name of a stage to the most failures, and the last one's time
    lacked: dict[str, int] = {}  # digest of a stage to its failures
    for digest in records.unfinished:
        before = max(requests.after.get(digest, 0), seen.get(digest, 0))
        ends = [a.end for a in records.evidence(digest).attempts if a.end is not None and a.number > before]
        times = sum(1 for _ in itertools.takewhile(is_disk_full, reversed(ends)))
        if times:
            lacked[digest] = times
            most, last = full.get(name := stages[digest].stage, (0, 0.0))
            full[name] = max(most, times), max(last, recorded_s(ends[-1].at))
    if not full:
        return NO_HOLDS
    free, total = records.space or (0, 0)
    if free < (least := min(SCARCE_BYTES, SCARCE_SHARE * total)):
        why = f"the store's disk is full, less than {least / 2**20:,.1f} MiB are free: work waits for more"
        return Holds(stages=dict.fromkeys(stages, Hold(why, False, Cause.STORAGE)))
    # The disk may be another one, such as that of a node's temporary files.
    pauses = {name: records.policy.pause_for_space_s(times) for name, (times, _) in full.items()}
    until = {name: last + pauses[name] if last else 0.0 for name, (_, last) in full.items()}
    held = {}
    for name, end in until.items():
        if records.now < end:
            why = f"{name} lacked space on a disk: the next starts at {_time(end)}, or at the next launch"
            held[name] = Hold(why, False, Cause.STORAGE, pause_s=pauses[name])
    paused = {digest: held[each.stage] for digest, each in stages.items() if each.stage in held}
    found = Holds(stages=paused, until=min((until[name] for name in held), default=None))
    return merged(found, _in_turn(records, lacked, max(until.values())))


def _in_turn(records: SweepRecords, lacked: Mapping[str, int], begin: float) -> Holds:
    """Hold back stages that would lack space together with others, so that each runs alone.

    Stages that paused alike would start together again. So one that lacked space `NUM_TOGETHER` times starts
    only while no stage runs of a name that lacked space, and none of these starts while it runs. If two could
    start now, both would. So while none runs, each has turns of a minute, in an order that all launches
    choose alike; all that did not lack space as often share every other turn. If a and c did::

        train[a]   the others   train[c]   the others   train[a]   ...

    Only the first half of a turn counts, in which what started in the last one has become visible.

    Args:
        records: what is known about the sweep.
        lacked: digest of a stage to how often it lacked space in a row.
        begin: when the first turn begins, in seconds since 1970.
    """
    stages, turn_s = records.sweep.stages, min(TURN_S, records.policy.space_pause_s)
    now = records.now + 1e-3  # times are rounded
    often = [digest for digest, times in lacked.items() if times >= NUM_TOGETHER and turn_s]
    budget = partial(records.requests.budget, retries=records.policy.retries)
    alone = [digest for digest in often if spent(records.evidence(digest), budget(digest)) is None]
    alone.sort(key=lambda digest: (lacked[digest], digest))
    names = {stages[digest].stage for digest in lacked} if alone else set()
    running = [
        d for d in records.unfinished if stages[d].stage in names and records.status(d).state is State.RUNNING
    ]
    first = next((d for d in running if d in alone), None)
    held, changes, turns = dict[str, Hold](), set[float](), dict[str, int]()
    for digest, instance in stages.items() if alone else ():
        if instance.stage not in names or (running and first is None and digest not in alone):
            continue
        if first is not None:
            what, pause_s = f"{stages[first].name} has ended, which runs alone", math.inf
        elif running:
            what, pause_s = f"{stages[running[0]].name} has ended, as it is to run alone", math.inf
        else:
            place, num_turns = (2 * alone.index(digest), 2 * len(alone)) if digest in alone else (1, 2)
            turns |= {digest: (place + 1) * (digest in alone)} if now >= begin else {}
            passed, pause_s = now - begin - turn_s * (place + 0.5), num_turns * turn_s
            at = begin + turn_s * place + pause_s * max(0, math.ceil(passed / pause_s))
            is_open = at <= now
            changes.add(at + turn_s / 2 if is_open else at)
            if is_open or not records.takes_turns:
                continue
            what = f"{_time(at)}: stages start one at a time"
        why = f"{instance.stage} lacked space on a disk: this waits until {what}"
        held[digest] = Hold(why, False, Cause.STORAGE, pause_s=pause_s)
    return Holds(stages=held, until=min(changes, default=None), turns=turns)


def _time(at: float) -> str:
    """Return a time as records have it."""
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"


def recorded_s(at: str) -> float:
    """Return the time of a record, in seconds since 1970; 0.0 if it has none."""
    try:
        return datetime.fromisoformat(at).timestamp()
    except ValueError:
        return 0.0


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
    cells, stages = dict[str, Hold](), dict[str, Hold]()
    for holds in found:
        for into, more in ((cells, holds.cells), (stages, holds.stages)):
            for key, hold in more.items():
                if key not in into or (hold.is_final and not into[key].is_final):
                    into[key] = hold
    until = min((each.until for each in found if each.until is not None), default=None)
    return Holds(cells, stages, until, {key: place for each in found for key, place in each.turns.items()})
