"""Arrays of jobs, and what many jobs with their ends and sights mean, are as recorded, see ../../recording.py."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.core.state import State
from orchestrator.jobs.cells import LIMIT, JobArray, Jobs, cut, first_try, grouped, scheduler_of
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase, SubmissionState
from orchestrator.jobs.records import (
    EXITS,
    DriverStatus,
    LostSlot,
    Resources,
    WorkerRecord,
    cause_of_code,
    meaning_of_code,
    spending,
)
from tests.core.asked.states import OWNER
from tests.jobs import test_dispatch as dispatch
from tests.jobs.test_dispatch import LARGE, SMALL, filed, over, state_of
from tests.recording import Answers

MORE = Resources(rungs=((Cause.OOM_HOST, 1, 2), (Cause.TIMEOUT, 0, 1)))


def arrays() -> Answers:
    """How cells become arrays."""
    for small, large, later in itertools.product((0, 1, 5), (0, 4), ((), ("s0", "s2", "l0"))):
        wanted = [(f"s{n}", SMALL) for n in range(small)] + [(f"l{n}", LARGE) for n in range(large)]
        for per_job, size, running, held, most in itertools.product(
            (1, 2), (3, 100), (None, 0, 1, 2, 5), (0, 3), (None, 0, 2, 4, 6)
        ):
            if (most is None and held) or (running not in (None, 2, 5) and (later or per_job == 2)):
                continue
            found, behind = grouped(
                wanted, cells_per_job=per_job, max_array_size=size, max_running=running, held=held, max_jobs=most,
                later=later,
            )  # fmt: skip
            shown = [
                (a.resources == LARGE, len(a.tasks), a.tasks[:1], a.max_running, a.is_later) for a in found
            ]
            yield f"{small}+{large} {per_job} {size} {running} {held} {most} {later}", (shown, behind)
    for number, running, most in itertools.product((0, 1, 3, 6), (None, 0, 1, 2, 9), (0, 1, 2, 6, 9)):
        group = JobArray(SMALL, tuple((str(n),) for n in range(number)), running, is_later=number == 3)
        yield (
            f"cut {number} {running} {most}",
            [(len(a.tasks), a.max_running, a.is_later) for a in cut(group, most)],
        )
    for words, at, most in itertools.product(
        itertools.product(("", LIMIT, "REFUSED", "FAILED"), repeat=2), ("", "2025-12-31T00:00:00Z", "2026-01-02T00:00:00Z"), (1, 2, 50)
    ):  # fmt: skip
        made = [_closed(n, word, at) for n, word in enumerate(words, start=1)]
        yield f"first try {words} {at} {most}", first_try(made, most)
    yield "none before", first_try([], 7)


def _closed(number: int, word: str, at: str) -> SubmissionState:
    ends = (over(Cause.UNKNOWN, word), over(None, "COMPLETED", index=1)) if word else ()
    return filed(number, job=str(number), over=ends)._replace(closed_at={end.index: at for end in ends if at})


def lives() -> Answers:
    """What is known of cells and owners by several jobs."""
    running = dispatch.RUNNING
    sights: dict[str, JobObservation | None] = {
        "none": None,
        "queued": dispatch.QUEUED,
        "running": running,
        "anew": running._replace(restarts=2),
        "anew, preempted": running._replace(restarts=2, before=Cause.PREEMPTED, before_word="PREEMPTED"),
        "ended": dispatch.ENDED,
        "stuck": dispatch.QUEUED._replace(stuck="a file is missing"),
        "failed start": dispatch.QUEUED._replace(may_release=True),
        "another's": running._replace(name="other.7"),
        "unknown": JobObservation(Phase.UNKNOWN, "NEW"),
    }
    ends = {
        "": (), "lost": (over(Cause.NODE_LOST, restarts=1),), "well": (over(None, "COMPLETED"),),
        "memory": (over(Cause.OOM_HOST, "OUT_OF_MEMORY", detail="x"),), "other task": (over(None, "COMPLETED", index=1),),
    }  # fmt: skip
    drivers = {
        "": None,
        "lost slot": DriverStatus(
            restart=1, beat=1, lost=(LostSlot(slot=1, restart=1, cause=Cause.NODE_LOST, why="its node died"),)
        ),
        "lost all": DriverStatus(
            restart=1, beat=1, lost=(LostSlot(slot=None, restart=0, cause=Cause.OOM_HOST, why="killed"),)
        ),
    }
    for (sight, seen), (end, ended), (driver, status), complete in itertools.product(
        sights.items(), ends.items(), drivers.items(), (True, False)
    ):
        listing = {("12", 0): seen, ("13", 1): seen} if seen is not None else {}
        answer = JobListing(listing, complete=complete, problem="" if complete else "down")
        first = filed(over=ended)._replace(driver=status)
        jobs = Jobs(
            [first, filed(2, job="13", request=2, revision=2), filed(3, job="", tasks=(("z",),))], answer
        )
        yield f"{sight}, {end}, {driver}, {complete}", (
            [(each.submission.number, [tuple(_end(o)) for o in new]) for each, new in jobs.news()],
            sorted(jobs.older(2, ["a"]).items()), sorted(jobs.older(3, []).items()),
            sorted((key, why) for key, (_, why) in jobs.missing().items()),
            [name for name, _ in jobs.stuck()], [name for _, name in jobs.failed_starts()],
            [jobs.knows(each) for each in jobs.filed], jobs.problem,
            [jobs.count("a", cause) for cause in (Cause.NODE_LOST, Cause.OOM_HOST)],
        )  # fmt: skip
        for job, restart, slot, cluster in itertools.product(("12", ""), (0, 1, 2), (0, 1), ("lab", "other")):
            owner = msgspec.structs.replace(OWNER, cluster=cluster, job=job, restart_count=restart, slot=slot)
            fate = jobs.fate(owner)
            yield f"  owner {job} {restart} {slot} {cluster}", None if fate is None else tuple(_end(fate))
        for cell, state in itertools.product(
            ("a", "b", "y"), (State.PENDING, State.LOST, State.RELEASED, State.STOPPED)
        ):
            yield f"  cell {cell} {state}", tuple(state_of(jobs, cell, state, {"node_lost": 1}))[:4]


def _end(end: Any) -> list[object]:
    return [end.index, end.word, end.cause, end.detail, end.restarts]


def budgets_of_jobs() -> Answers:
    """How many ends a cell's budget allows."""
    kinds = {
        "node": lambda n: over(Cause.NODE_LOST, detail=f"end {n}"),
        "memory": lambda n: over(Cause.OOM_HOST, "OUT_OF_MEMORY", detail=f"end {n}"),
        "time": lambda n: over(Cause.TIMEOUT, "TIMEOUT", detail=f"end {n}"),
        "well": lambda n: over(None, "COMPLETED", detail=f"end {n}"),
        "refused": lambda n: over(None, "REFUSED", detail=f"end {n}"),
    }
    for names in itertools.chain(
        *(itertools.product(kinds, repeat=n) for n in (1, 2)), [(k,) * n for k in kinds for n in (3, 4, 5)],
        [("memory", "memory", "node"), ("time", "time", "time"), ("memory", "time", "memory")],
    ):  # fmt: skip
        for resources, retries, since in itertools.product(
            (SMALL, MORE), ({}, {"node_lost": 1, "oom_host": 1}), (1, 2)
        ):
            made = [
                filed(n, job=str(n), request=n, resources=resources, over=(kinds[name](n),))
                for n, name in enumerate(names, start=1)
            ]
            spent = Jobs(made, JobListing()).spent("a", dispatch.asked(since), retries)
            yield f"{names} {resources == MORE} {retries} {since}", spent and (*spent[:2], spent[2].detail)
            found = state_of(Jobs(made, JobListing()), "a", State.PENDING, retries, since)
            yield "  cell", (found.state, found.reason, found.cause)
    two = filed(1, over=(over(Cause.NODE_LOST),)), filed(2, job="13", request=2)
    answers = {("slurm", "lab"): JobListing({("13", 0): dispatch.RUNNING})}
    yield (
        "by scheduler",
        (
            scheduler_of(two[0].submission),
            str(Jobs(two, answers).job(two[1], 0).phase),
            str(Jobs(two, {}).job(two[1], 0).phase),
        ),
    )
    yield "not asked", str(Jobs(two).job(two[1], 0).reason)


def worked() -> Answers:
    """What workers have spent, and what resources and exit codes mean."""
    made = [
        WorkerRecord(nonce=str(n), owner=OWNER, revision=1, num_gpus=gpus, seconds=10.0 * n, runs=runs, has_ended=ended, until_saved=saved)
        for n, (gpus, runs, ended, saved) in enumerate(
            [(2, "a", False, (5.0, 9.0)), (4, "", False, ()), (0, "b", True, (1.0,)), (0.5, "b", False, (30.0,))], start=1
        )
    ]  # fmt: skip
    yield "running", [each.is_running for each in made]
    for some in ([], made[:1], made[:2], made[1:2], made):
        yield (
            f"{len(some)} workers",
            spending(some, [each for each in some if each.is_running], checkpoint_s=77.0),
        )
    for each in (SMALL, MORE):
        yield (
            "rungs",
            (
                each.by_cause,
                [each.rung_of(cause) for cause in (Cause.OOM_HOST, Cause.TIMEOUT, Cause.NAN, None)],
            ),
        )
    for code in (*sorted(EXITS), 1, 2, 99, -1):
        yield f"exit {code}", (cause_of_code(code), meaning_of_code(code))


ASKED: Mapping[str, Callable[[], Answers]] = {
    "arrays": arrays, "lives": lives, "budgets_of_jobs": budgets_of_jobs, "worked": worked,
}  # fmt: skip
