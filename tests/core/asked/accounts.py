"""Where held time went, for many histories, workers and jobs, is as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from orchestrator.core.evidence import Evidence, Liveness
from orchestrator.core.failure import Cause
from orchestrator.core.goodput import HeldJob, Holder, goodput, shares_of, useful_shares
from orchestrator.core.records import Owner, TimeSpent
from tests.core.test_goodput import attempt, done, owner, took
from tests.recording import Answers

EVEN = TimeSpent(
    seconds=50.0, phases={"start": 10.0, "compute": 30.0, "checkpoint": 4.0, "odd": 6.0}, held_s=55.0
)
ROUNDED = TimeSpent(seconds=40.0, phases={"start": 20.0, "evaluate": 40.0}, saved_step=9, saved_s=30.0)
SHORT = TimeSpent(seconds=40.0, phases={"compute": 0.5}, saved_step=9, saved_s=30.0)
NO_WORK = TimeSpent(seconds=40.0, phases={"start": 40.0}, saved_step=9, saved_s=30.0)
EMPTY = TimeSpent(seconds=40.0, phases={"compute": 0.0})
UNKNOWN = TimeSpent(seconds=40.0)
HISTORIES = {
    "none": (),
    "runs": (attempt(1, took(100, saved=(5, 80.0))),),
    "runs, nothing saved": (attempt(1, took(100)),),
    "runs, nothing known": (attempt(1, None),),
    "succeeded": (attempt(1, EVEN, outcome="succeeded"),),
    "succeeded, rounded": (attempt(1, ROUNDED, outcome="succeeded"),),
    "succeeded, short": (attempt(1, SHORT, outcome="succeeded"),),
    "succeeded, empty": (attempt(1, EMPTY, outcome="succeeded"),),
    "succeeded, unknown": (attempt(1, UNKNOWN, outcome="succeeded"),),
    **{
        f"{outcome}, {name}": (attempt(1, spent, outcome=outcome, cause=cause, why=why),)
        for name, spent in {
            "even": EVEN, "rounded": ROUNDED, "short": SHORT, "no work": NO_WORK, "unknown": UNKNOWN,
            "nothing": TimeSpent(), "none": None,
        }.items()
        for outcome, cause, why in (
            ("failed", Cause.NAN, "x"), ("released", None, "budget"), ("failed", None, ""),
        )
    },
    "resumed at the last checkpoint": (
        attempt(1, took(100, saved=(60, 60.0)), outcome="failed", cause=Cause.NAN),
        attempt(2, took(40, saved=(90, 30.0)), outcome="succeeded", parent=(1, 60)),
    ),
    **{
        f"resumed at {step} of {saved}": (
            attempt(1, took(100, saved=(20, 50.0)), outcome="released", why="stop"),
            attempt(2, took(100, saved=(saved, 80.0)), lost=None, parent=(1, 20)),
            attempt(3, took(40), parent=(2, step), lost=2),
        )
        for step, saved in ((20, 60), (21, 60), (40, 60), (60, 60), (61, 60), (40, 20), (21, 20), (30, 21))
    },
    "resumed from a short one": (
        attempt(1, SHORT, outcome="released", why="stop"), attempt(2, took(40), parent=(1, 9)),
    ),
    "resumed from one without work": (
        attempt(1, NO_WORK, outcome="released", why="stop"), attempt(2, took(40), parent=(1, 9)),
    ),
    "resumed from an unknown one": (
        attempt(1, UNKNOWN, outcome="released", why="stop"), attempt(2, took(40), parent=(1, 9)),
    ),
    "resumed from nothing": (attempt(2, took(40), parent=(1, 9)),),
    "went on in its folder": (
        attempt(1, took(30), outcome="released", why="stop"), attempt(2, took(40), work=1),
    ),
    "without a start": (attempt(1, took(30), outcome="released", why="stop")._replace(start=None),),
    "another time zone": (attempt(1, None)._replace(heartbeat=None),),
}  # fmt: skip


def shares() -> Answers:
    """The shares of attempts that count, and where the time of their worker went."""
    workers = {
        "a long one": Holder(owner(), 2, 300.0, start_s=5.0, device="h100"),
        "a short one": Holder(owner(), 1, 0.0, start_s=0.5),
        "without GPUs": Holder(owner(), 0, 300.0),
        "nobody": None,
    }
    for (history, attempts), liveness in itertools.product(
        HISTORIES.items(), (Liveness.GONE, Liveness.ALIVE)
    ):
        for number in (None, 1, 2, 3):
            cause = Cause.PREEMPTED if liveness is Liveness.GONE else None
            product = done(number) if number is not None else None
            evidence = Evidence(attempts, product, liveness=liveness, liveness_cause=cause)
            question = f"{history}, {liveness}, product of {number}"
            yield question, useful_shares(evidence)
            for name, holder in workers.items() if number in (None, 1) else ():
                found = goodput("s", [holder] if holder else [], [("train", evidence)])
                yield f"  {name}", [_rounded(tuple(each)) for each in found]


def jobs() -> Answers:
    """The time of jobs beside that of their workers."""
    mine = [_of_job(pid, slot) for pid, slot in ((1, 0), (2, 1), (3, 1))]
    evidence = Evidence(
        tuple(attempt(n, took(50.0 * n), outcome="succeeded", by=by) for n, by in enumerate(mine[:2], 1)),
        done(2),
    )
    holders = {
        "none": [],
        "one": [Holder(mine[0], 1, 80.0, device="a100")],
        "two": [Holder(mine[0], 1, 80.0, device="h100"), Holder(mine[1], 3, 200.0, device="a100")],
        "a stranger": [Holder(owner(9), 1, 10.0)],
    }
    for (name, known), seconds, gpus in itertools.product(
        holders.items(), (None, 0.0, 160.0, 300.0, 1000.0), (0, 0.5, 1, 4)
    ):
        held = [HeldJob("lab", "12", 0, 0, gpus, seconds), HeldJob("lab", "13", 0, 0, gpus, seconds)]
        found = goodput("s", known, [("train", evidence)], held)
        yield f"{name}, {seconds} s on {gpus}", [_rounded(tuple(each)) for each in found]
        yield "  shares", [_rounded(shares_of(each)) for each in found]
        yield "  useful", [round(each.useful, 6) for each in found]
        yield "  of another sweep", goodput("t", [], [("train", evidence)], held[:0])


def _of_job(pid: int, slot: int) -> Owner:
    process = owner(pid).process
    return Owner(
        host="a", process=process, cluster="lab", job="12", array_index=0, restart_count=0, slot=slot
    )


def _rounded(found: object) -> object:
    if isinstance(found, float):
        return round(found, 6)
    if isinstance(found, Mapping):
        return {key: _rounded(value) for key, value in found.items() if value}
    return tuple(map(_rounded, found)) if isinstance(found, tuple) else found


ASKED: Mapping[str, Callable[[], Answers]] = {"shares": shares, "held_jobs": jobs}
