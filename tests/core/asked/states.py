"""The answers of the decisions to many questions are the recorded ones, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

import msgspec

from orchestrator.core.evidence import (
    NO_HOLDS,
    NOT_KEPT,
    Attempt,
    Budget,
    Evidence,
    Former,
    Hold,
    Holds,
    Liveness,
    Spending,
    budget_hold,
    causes,
    chosen_before,
    describe_retired,
    over_budget,
    remaining_files,
    spent,
)
from orchestrator.core.failure import Cause
from orchestrator.core.gates import Gate, GateRule, Gates
from orchestrator.core.nodes import AgedReport, NodeReport, left_out
from orchestrator.core.records import Claim, Done, End, Owner, Process, Retired, StartRecord, Supersedes
from orchestrator.core.settings import SpendingLimit
from orchestrator.core.state import (
    Goal,
    StageStatus,
    State,
    cell_status,
    goes_without,
    num_starved,
    outlook,
    stage_status,
)
from orchestrator.core.sweep import Cell, Input, StageInstance
from orchestrator.manifest import File
from tests.jobs import test_dispatch as dispatch
from tests.jobs import test_judgement as judgement
from tests.recording import Answers

OWNER = Owner(host="here", process=Process(boot_id="b", namespace="n", pid=1, start="s"))
FILE = File("weights", 3, "00")
DONE = Done(nonce="n", stage="a", digest="a", generation=1, attempt=2, files=(FILE,), rows=(), seconds=7.0)
RETIRED = Retired(
    nonce="n", generation=1, attempt=2, policy="best", files=(FILE, FILE), why="taken", by="test"
)
FORMER = StageInstance(stage="a", digest="old", reads={})


def attempt(
    number: int, end: End | None = None, *, supersedes: int = 0, rungs: Mapping[Cause, tuple[int, int]] = {}
) -> Attempt:
    follows = Supersedes(attempt=supersedes, evidence="silent", cause=Cause.NODE_LOST) if supersedes else None
    claim = Claim(
        nonce="n",
        owner=OWNER,
        lease_s=90.0,
        generation=1,
        sweep="s",
        cell="c",
        supersedes=follows,
        chosen_gpus=number,
    )
    start = StartRecord(parent=None, uses={}, provenance={}, remedies=dict(rungs)) if rungs else None
    return Attempt(number, claim, start, None, end, "")


def ended(outcome: str, cause: Cause | None = None, why: str = "", message: str = "it broke") -> End:
    return End(nonce="n", outcome=outcome, cause=cause, why=why, message=message, seconds=5.0)  # type: ignore[arg-type]


FAILED = ended("failed", Cause.OOM_GPU)
SUPERSEDED = ended("released", why="superseded")
HISTORIES = {
    "no attempt": (),
    "one runs": (attempt(1),),
    "one with a problem runs": (attempt(1)._replace(problem="start.json is unreadable"),),
    "one failed": (attempt(1, FAILED),),
    "one failed, nobody knows why": (attempt(1, ended("failed")),),
    "one of a later version": (attempt(1, ended("unknown")),),
    "one failed by config": (attempt(1, ended("failed", Cause.CONFIG)),),
    "two failed": (attempt(1, FAILED), attempt(2, FAILED)),
    "two failed by config": tuple(attempt(n, ended("failed", Cause.CONFIG)) for n in (1, 2)),
    "one was released": (attempt(1, ended("released", why="stopped")),),
    "one was released, a second failed": (attempt(1, ended("released", why="stopped")), attempt(2, FAILED)),
    "one succeeded": (attempt(1, ended("succeeded")),),
    "one found too little": (attempt(1, ended("released", why=NOT_KEPT, message="no rows")),),
    "one gave way": (attempt(1, SUPERSEDED), attempt(2, supersedes=1)),
    "two gave way": (attempt(1, SUPERSEDED), attempt(2, SUPERSEDED, supersedes=1), attempt(3, supersedes=2)),
    "one gave way to nobody": (attempt(1, SUPERSEDED),),
    "one was lost": (attempt(1), attempt(2, supersedes=1)),
    "one failed below the last rung": (attempt(1, FAILED, rungs={Cause.OOM_GPU: (0, 2)}),),
    "two failed on one rung": tuple(attempt(n, FAILED, rungs={Cause.OOM_GPU: (0, 2)}) for n in (1, 2)),
    "two failed on two rungs": tuple(attempt(n + 1, FAILED, rungs={Cause.OOM_GPU: (n, 2)}) for n in (0, 1)),
    "two failed on the last rung": tuple(attempt(n, FAILED, rungs={Cause.OOM_GPU: (2, 2)}) for n in (1, 2)),
    "one was cancelled": (attempt(1, ended("failed", Cause.CANCELLED)),),
    "two starved": tuple(
        attempt(n, ended("failed", Cause.OOM_HOST), rungs={Cause.OOM_HOST: (n, 3)}) for n in (1, 2)
    ),
}
SITUATIONS = {
    "": {},
    "owner gone": {
        "liveness": Liveness.GONE,
        "liveness_reason": "no heartbeat",
        "liveness_cause": Cause.PREEMPTED,
    },
    "owner alive": {"liveness": Liveness.ALIVE, "liveness_reason": "training, step 3"},
    "damaged": {"problem": "its product is damaged", "damaged": True},
    "product": {"done": DONE},
    "retired product": {"done": DONE, "retired": (RETIRED,)},
    "unreadable": {"unreadable": "permission denied", "done": DONE},
    "earlier version": {"former": Former(FORMER, DONE, "scores again")},
    "unusable earlier version": {"former": Former(FORMER, None, "scores again", "it is not whole")},
}
BUDGETS = {
    "no retries": Budget({}),
    "a retry": Budget(
        {Cause.OOM_GPU: 1, Cause.NODE_LOST: 1, Cause.UNKNOWN: 1, Cause.PREEMPTED: 1, Cause.CONFIG: 1}
    ),
    "after a rerun": Budget({}, after=1),
    "after a launch": Budget({}, after_chance=1),
}


def stages() -> Answers:
    """The state of a stage by its own evidence."""
    for (history, attempts), (situation, more), (budget, retries) in itertools.product(
        HISTORIES.items(), SITUATIONS.items(), BUDGETS.items()
    ):
        evidence = Evidence(attempts, **more)  # type: ignore[arg-type]
        if budget != "a retry" and situation not in ("", "owner gone", "earlier version"):
            continue
        found = stage_status(evidence, retries)
        yield f"{history}, {situation or 'nothing else'}, {budget}", (*tuple(found)[:-1], found.going_on)
        yield (
            f"  spent by {history}, {situation or 'nothing else'}, {budget}",
            (spent(evidence, retries), list(causes(evidence))),
        )
        if found.former is not None:
            yield "  its earlier version", found.former.problem


A = StageInstance(stage="a", digest="a", reads={}, label="en")
B = StageInstance(stage="b", digest="b", reads={}, inputs=(Input("a", "en", "a"),))
C = StageInstance(stage="c", digest="c", reads={}, inputs=(Input("b", "", "b"),))
CELL = Cell(id="cell", axes={}, columns={}, config={}, stage_digests=("a", "b", "c"))
OTHER = CELL.__class__(id="other", axes={}, columns={}, config={}, stage_digests=("a", "b"))
INSTANCES = {"a": A, "b": B, "c": C}
STATES = tuple(
    map(State, "done running queued failed lost blocked released cancelled pending unknown".split())
)
STATUSES = {
    state: StageStatus(state, f"it is {state}", Cause.NAN if state is State.FAILED else None, 2, 1.0)
    for state in STATES
}
GONE_ON = {
    "": None,
    "going on": Former(FORMER, DONE, "scores again"),
    "not going on": Former(FORMER, DONE, "scores again", "no rows"),
}


def cells() -> Answers:
    """The state of a cell by those of its stages, a cancel and holds."""
    holds = {
        "": NO_HOLDS,
        "held for good": Holds({"cell": Hold("it failed alike", cause=Cause.CODE)}),
        "b held for a while": Holds({}, {"b": Hold("waits", is_final=False)}),
        "both": Holds({"cell": Hold("waits", is_final=False)}, {"b": Hold("for good")}),
    }
    for first, second, third in itertools.product(
        STATUSES, STATUSES, (State.DONE, State.PENDING, State.RUNNING)
    ):
        statuses = {"a": STATUSES[first], "b": STATUSES[second], "c": STATUSES[third]}
        for cancelled, (held, hold) in itertools.product((False, True), holds.items()):
            if (cancelled or held) and first not in (State.DONE, State.FAILED):
                continue
            found = cell_status(CELL, INSTANCES, statuses, cancelled=cancelled, holds=hold)
            states = [(each.state, each.reason, each.cause) for each in found.stages.values()]
            yield f"{first} {second} {third}{' cancelled' * cancelled} {held}", (*tuple(found)[:-1], states)
    for (going, former), state, sweep in itertools.product(GONE_ON.items(), STATUSES, ("SWEEP", "mine")):
        retired = STATUSES[State.DONE]._replace(retired="2 files under policy best")
        for reason in ("not started", "attempt 1 was released"):
            second = STATUSES[state]._replace(former=former, reason=reason)
            statuses = {"a": retired, "b": second, "c": STATUSES[State.PENDING]}
            more = {} if sweep == "SWEEP" else {"sweep": sweep}
            found = cell_status(CELL, INSTANCES, statuses, cancelled=False, **more)  # type: ignore[arg-type]
            states = [(each.state, each.reason, each.cause) for each in found.stages.values()]
            yield f"retired input, {state}, {reason}, {going}, {sweep}", (*tuple(found)[:-1], states)
            yield (
                "  without files",
                (goes_without(second, [retired]), goes_without(second, [STATUSES[State.DONE]])),
            )


def gates() -> Answers:
    """What gates hold back."""
    gate = StageInstance(stage="check", digest="g", reads={}, inputs=(Input("a", "en", "a"),))
    for are_first, cells in itertools.product((False, True), ((CELL,), (CELL, OTHER))):
        known = Gates(
            instances={"g": gate},
            chains={"g": ("a", "g")},
            cells={cell.id: (Gate(digest="g", stages=("b",)),) for cell in (CELL,)},
            are_first=are_first,
        )
        rule = GateRule(cells, known)
        yield (
            f"{are_first} {len(cells)} waiting",
            (rule.waiting, list(rule.after("g")), list(rule.after("a"))),
        )
        for first, second, third in itertools.product(STATUSES, STATUSES, (State.DONE, State.PENDING)):
            for retired in ("", "1 file"):
                statuses = {
                    "a": STATUSES[first]._replace(retired=retired),
                    "g": STATUSES[second],
                    "b": STATUSES[third],
                }
                if not retired or first is State.DONE:
                    yield (
                        f"{are_first} {len(cells)} {first} {second} {third} {retired}",
                        rule.holds(statuses.__getitem__),
                    )


def waits() -> Answers:
    """Whether a goal is reached."""
    for goal, number in itertools.product(Goal, (0, 1, 2)):
        for states in itertools.combinations_with_replacement(STATES, number):
            for quiet_s in (9.0, 10.0, 11.0) if goal is Goal.STALLED else (0.0,):
                yield (
                    f"{goal} {' '.join(states)} {quiet_s}",
                    str(outlook(goal, states, quiet_s=quiet_s, stall_s=10.0)),
                )


def budgets() -> Answers:
    """What a budget holds back, and other counts of the evidence."""
    limits = {
        "none": SpendingLimit(),
        "10 h": SpendingLimit(gpu_hours=10),
        "until": SpendingLimit(until="2026-01-01T00:00:00Z"),
        "both": SpendingLimit(gpu_hours=10, until="2026-01-01T00:00:00Z"),
    }
    moments = {"before": 1767225600.0 - 1, "after": 1767225600.0 + 1}
    for (name, limit), hours, running, num_gpus, (when, now) in itertools.product(
        limits.items(), (3, 8, 9.5, 10, 11), (0, 2, 12), (0, 1, 4), moments.items()
    ):
        spending = Spending(3600.0 * hours, running, 1800.0)
        question = f"{name}, {hours} h spent, {running} run, {num_gpus} more, {when}"
        yield (
            question,
            (budget_hold(limit, spending, num_gpus=num_gpus, now=now), over_budget(limit, spending, now=now)),
        )
        if num_gpus == 4 and running == 12:
            yield "  of a sweep", budget_hold(limit, spending, num_gpus=num_gpus, now=now, sweep="mine")
    for history, attempts in HISTORIES.items():
        evidence = Evidence(attempts)
        yield f"starved, {history}", [num_starved(evidence, after) for after in (0, 1, 2)]
        yield f"chosen, {history}", [chosen_before(cell, attempts) for cell in ("c", "d")]
    one = msgspec.structs.replace(RETIRED, files=(FILE,), policy="none")
    yield "retired", [describe_retired(records) for records in ((), (RETIRED,), (one,), (RETIRED, one))]
    yield "remaining", [remaining_files((FILE, File("log", 1, "1")), records) for records in ((), (one,))]


def nodes() -> Answers:
    """Which nodes are left out."""
    kinds = ("failed", "check", "cleared")
    for ages in itertools.product((90, 59, 15, 1), repeat=3):
        if list(ages) != sorted(ages, reverse=True):
            continue
        for kind in itertools.product(kinds, repeat=3):
            reports = [
                AgedReport(
                    NodeReport(nonce="n", number=n, cluster="lab", node="n1", kind=each, why="bad"),
                    60.0 * age,
                )  # type: ignore[arg-type]
                for n, (age, each) in enumerate(zip(ages, kind, strict=True))
            ]
            found = left_out(reports, 3600.0).get(("lab", "n1"))
            if found is not None:
                yield (
                    f"{ages} {kind}",
                    (round(found.left_s / 60, 3), [report.number for report in found.reports]),
                )
            assert not left_out(reports, 0.0)


def jobs() -> Answers:
    """The phase of a task by all kinds of evidence."""
    known = judgement
    seen = {
        name: getattr(known, name)
        for name in ("WAITS", "RUNS", "ENDED", "RETURNS", "STALE", "STRANGER", "RENAMED")
    }
    reports = {"": {}, "report": {0: known.REPORT}, "again": {0: known.AGAIN}}
    answers: dict[str, dict[str, object]] = {
        "complete": {},
        "gap": {"complete": False, "gap": "only some"},
        "no answer": {"problem": "the scheduler is down"},
        "elsewhere": {"controller": "other:6817"},
        "only own": {"everyone": False},
    }
    for (sight, observation), (report, words), (kind, more) in itertools.product(
        {"": None, **seen}.items(), reports.items(), answers.items()
    ):
        for asker in (known.ANN, known.BEN) if kind == "only own" else (known.ANN,):
            filed = known.submitted()._replace(reports=words)
            found = known.judge(filed, 0, known.listing(observation, **more), asker)
            yield (
                f"{sight or 'not listed'}, {report}, {kind}, {asker.name}",
                (str(found.phase), found.reason, found.absence, found.over, found.name),
            )


def cells_with_jobs() -> Answers:
    """The state of a cell by its jobs, and whose owner is gone."""
    known = dispatch
    ends = {
        "": (),
        "lost": (known.over(Cause.NODE_LOST),),
        "timeout": (known.over(Cause.TIMEOUT, "TIMEOUT", detail="too long"),),
        "well": (known.over(None, "COMPLETED"),),
        "refused": (known.over(None, "REFUSED"),),
    }
    sights = {"none": None, "queued": known.QUEUED, "running": known.RUNNING, "ended": known.ENDED}
    for (end, over), (sight, observation), state, retries in itertools.product(
        ends.items(), sights.items(), (State.PENDING, State.RUNNING, State.LOST, State.DONE), (0, 1)
    ):
        answer = known.JobListing({("12", 0): observation, ("13", 0): observation} if observation else {})
        filed = [known.filed(over=over), known.filed(number=2, job="13", request=2, over=over)]
        jobs = known.Jobs(filed, answer)
        causes_of = {Cause.NODE_LOST: retries, Cause.TIMEOUT: retries}
        for since in (1, 2):
            found = known.state_of(jobs, state=state, retries=causes_of, since=since)
            yield f"{end}, {sight}, {state}, {retries} retries, since {since}", tuple(found)[:4]
        yield "  spent", jobs.spent("a", known.asked(1), causes_of)
        for job, restart, slot in itertools.product(("12", "14"), (0, 1), (0, 1)):
            owner = msgspec.structs.replace(OWNER, cluster="lab", job=job, restart_count=restart, slot=slot)
            yield f"  owner {job}.{restart}.{slot}", jobs.fate(owner)


ASKED: Mapping[str, Callable[[], Answers]] = {
    each.__name__: each for each in (stages, cells, gates, waits, budgets, nodes, jobs, cells_with_jobs)
}
