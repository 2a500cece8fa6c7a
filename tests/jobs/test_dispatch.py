"""What a scheduler's answers mean for cells, and how cells become arrays."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.failure import Cause
from orchestrator.core.records import Owner, Process, Request
from orchestrator.core.state import CellStatus, State
from orchestrator.jobs.cells import LIMIT, JobArray, Jobs, cut, first_try, grouped, with_jobs
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase, SubmissionState
from orchestrator.jobs.records import (
    Accepted,
    DriverStatus,
    JobEnd,
    JobExitReport,
    LostSlot,
    Resources,
)
from orchestrator.launchers.slurm.launcher import bad_nodes
from tests.store.builders import submission_of

SMALL, LARGE = Resources(), Resources(gpus_per_node=8)
PROCESS = Process(boot_id="b", namespace="n", pid=1, start="1")


def filed(
    number=1,
    tasks=(("a",), ("b",)),
    job="12",
    request=1,
    revision=1,
    over=(),
    reports=None,
    resources=None,
) -> SubmissionState:
    submission = submission_of(
        number,
        revision=revision,
        request=request,
        tasks=tasks,
        resources=resources or SMALL,
        at="2026-01-01T00:00:00Z",
    )
    accepted = Accepted(nonce="n", job=job) if job else None
    return SubmissionState(submission, accepted, {each.index: each for each in over}, reports or {})


def seen(phase, word, **more) -> JobObservation:
    return JobObservation(phase, word, **more)


def status(state=State.PENDING) -> CellStatus:
    return CellStatus(state, "count: not started", None, 0, {})


def asked(number=1, **more) -> Request:
    return Request(nonce="n", number=number, verb="launch", revision=1, **more)


def state_of(jobs: Jobs, cell="a", state=State.PENDING, retries=None, since=1) -> CellStatus:
    last = asked(since) if isinstance(since, int) else since
    return with_jobs(cell, status(state), jobs, asked=last, retries=retries or {})


def over(cause, word="NODE_FAIL", index=0, **more) -> JobEnd:
    return JobEnd(index=index, word=word, cause=cause, **more)


QUEUED = seen(Phase.QUEUED, "PENDING", reason="Resources")
RUNNING = seen(Phase.RUNNING, "RUNNING", node="node1", restarts=0)
ENDED = seen(Phase.OVER, "NODE_FAIL", restarts=0, over=over(Cause.NODE_LOST))


@pytest.mark.parametrize(
    ("answer", "expected", "words"),
    [
        (JobListing({("12", 0): QUEUED}), State.QUEUED, "waits: Resources"),
        (JobListing({("12", 0): RUNNING}), State.QUEUED, "runs on node1; count: not started"),
        (JobListing({("12", 0): ENDED}), State.PENDING, "ended NODE_FAIL"),
        (
            JobListing({}, complete=True),
            State.UNKNOWN,
            "job 12_0, accepted at : the scheduler does not list it",
        ),
        (JobListing({}, gap="squeue failed"), State.UNKNOWN, "squeue failed"),
        (JobListing(problem="Slurm does not answer: x"), State.UNKNOWN, "does not answer"),
        (JobListing({("12", 0): seen(Phase.UNKNOWN, "NEWSTATE")}), State.UNKNOWN, "NEWSTATE"),
    ],
)
def test_a_cell_with_a_job_is_what_its_scheduler_says_and_never_failed_for_its_silence(
    answer, expected, words
):
    found = state_of(Jobs([filed()], answer), retries={"node_lost": 1})
    assert found.state is expected
    assert words in found.reason


def test_a_number_that_was_given_to_another_job_says_nothing_of_ours():
    jobs = Jobs([filed()], JobListing({("12", 0): RUNNING._replace(name="other.7")}, complete=True))
    assert jobs.of_cell("a").phase is Phase.OVER
    assert "gave its number to other.7" in jobs.of_cell("a").reason
    assert Jobs([filed()], JobListing({("12", 0): RUNNING._replace(name="s.1")})).of_cell("a").seen


@pytest.mark.parametrize("state", [State.DONE, State.FAILED, State.CANCELLED, State.BLOCKED, State.RUNNING])
def test_what_the_store_knows_outranks_the_scheduler(state):
    for answer in (
        JobListing({("12", 0): QUEUED}),
        JobListing(problem="away"),
        JobListing({("12", 0): ENDED}),
    ):
        assert state_of(Jobs([filed()], answer), state=state) == status(state)


def test_jobs_that_had_nothing_to_do_end_the_wait_for_an_owner_that_is_silent_for_ever():
    """As its workers count it as lost, with its retries used up, each next one would end alike."""
    ends = [filed(n, over=[over(None, "EXITED")]) for n in range(1, 5)]
    assert state_of(Jobs(ends), state=State.RUNNING).state is State.FAILED
    assert state_of(Jobs(ends[:3]), state=State.RUNNING) == status(State.RUNNING)
    assert state_of(Jobs(ends), state=State.RUNNING, since=2) == status(State.RUNNING)
    failed = [filed(n, over=[over(Cause.NODE_LOST)]) for n in range(1, 5)]
    assert state_of(Jobs(failed), state=State.RUNNING) == status(State.RUNNING)


def test_a_submission_without_an_answer_holds_its_cells():
    found = state_of(Jobs([filed(job=None)], JobListing()))
    assert found.state is State.UNKNOWN
    assert "sweep reconcile" in found.reason


def test_a_cell_that_two_revisions_share_is_held_by_a_job_of_either():
    jobs = Jobs([filed(revision=1)], JobListing({("12", 0): QUEUED}))
    assert jobs.of_cell("a").phase is Phase.QUEUED
    assert jobs.older(2, {"a"}) == {1: 1}  # the job of b is of no use to a revision without b
    assert jobs.older(2, {"c"}) == {1: 2} and jobs.older(1, {"c"}) == {}


def test_only_what_a_complete_answer_does_not_list_at_all_is_missing():
    for answer, missing in (
        (JobListing({("12", 0): RUNNING}, complete=True), [(1, 1)]),
        (JobListing({("12", 0): RUNNING}), []),
        (JobListing(problem="away"), []),
        (JobListing({("12", 0): seen(Phase.UNKNOWN, "NEWSTATE"), ("12", 1): QUEUED}, complete=True), []),
    ):
        assert list(Jobs([filed()], answer).missing()) == missing


def test_a_scheduler_at_its_limit_is_given_as_many_as_have_ended_since():
    ended = [over(None, "COMPLETED", index=0), over(None, LIMIT, index=1)]
    first = filed(over=ended)._replace(closed_at={0: "2026-01-02", 1: "2026-01-02"})
    refused = filed(number=2, job=None, tasks=(("b",),), over=[over(None, LIMIT)])
    assert first_try([], 101) == first_try([first._replace(over={})], 101) == (101, False)
    assert first_try([first, refused], 101) == (1, True)
    late = first._replace(closed_at=dict.fromkeys((0, 1), "2025-01-01"))
    assert first_try([late, refused], 101) == (1, True)
    three = [over(None, "COMPLETED", index=n) for n in range(3)]
    many = filed(tasks=tuple((str(n),) for n in range(3)), over=three)
    assert first_try([many._replace(closed_at=dict.fromkeys(range(3), "2026-02-01")), refused], 2) == (
        2,
        True,
    )


@pytest.mark.parametrize("running", [None, 1, 3, 9])
@pytest.mark.parametrize("most", [1, 2, 4, 5])
def test_an_array_that_is_cut_in_two_keeps_its_tasks_and_its_throttle(running, most):
    whole = JobArray(SMALL, tuple((str(n),) for n in range(4)), running)
    first, rest = cut(whole, most)
    assert first.tasks + rest.tasks == whole.tasks and len(first.tasks) <= most
    assert running is None or first.max_running + rest.max_running == running


def test_the_last_submission_of_a_cell_is_the_one_that_counts():
    jobs = Jobs(
        [filed(over=[over(Cause.NODE_LOST)]), filed(number=2, job="13")],
        JobListing({("13", 0): QUEUED}),
    )
    assert state_of(jobs).state is State.QUEUED
    assert jobs.of_cell("a").name == "13_0"


@pytest.mark.parametrize(("number", "failed"), [(1, False), (2, True), (3, True)])
def test_a_cell_fails_when_its_jobs_ended_by_one_cause_more_often_than_is_retried(number, failed):
    jobs = Jobs(
        [filed(number=n, job=str(n), over=[over(Cause.NODE_LOST)]) for n in range(1, number + 1)],
        JobListing(),
    )
    found = state_of(jobs, retries={"node_lost": 1})
    assert (found.state is State.FAILED) == failed
    assert not failed or found.cause is Cause.NODE_LOST


@pytest.mark.parametrize(("word", "number", "failed"), [("COMPLETED", 3, False), ("COMPLETED", 4, True)])
def test_jobs_that_end_well_and_leave_their_cell_undone_are_not_submitted_for_ever(word, number, failed):
    ended = JobEnd(index=0, word=word, detail="nothing was left to do")
    jobs = Jobs([filed(number=n, job=str(n), over=[ended]) for n in range(1, number + 1)], JobListing())
    found = state_of(jobs, retries={"unknown": 9})
    assert (found.state is State.FAILED) == failed
    assert "nothing was left to do" in found.reason
    assert state_of(jobs, since=2).state is State.PENDING  # asked for anew


def test_a_new_request_gives_a_fresh_budget():
    jobs = Jobs([filed(over=[over(Cause.CANCELLED, "CANCELLED")])], JobListing())
    assert state_of(jobs).state is State.FAILED
    assert state_of(jobs, since=2).state is State.PENDING


def test_the_first_end_for_lack_of_memory_costs_no_retry_where_the_next_job_has_more():
    def ends(*rungs: tuple[int, int]) -> State:
        asked = [Resources(rungs=((Cause.OOM_HOST, *rung),)) for rung in rungs]
        ended = [
            filed(number=n, job=str(n), resources=each, over=[over(Cause.OOM_HOST, "OUT_OF_MEMORY")])
            for n, each in enumerate(asked, 1)
        ]
        return state_of(Jobs(ended, JobListing())).state

    assert ends((0, 1)) is State.PENDING
    assert ends((0, 1), (1, 1)) is State.FAILED  # without retries
    assert ends((0, 1), (0, 1)) is State.FAILED  # free once a rung
    assert ends((0, 0)) is State.FAILED


def test_jobs_that_ended_well_or_never_were_spend_no_budget():
    refused = [over(None, "REFUSED", index=n, detail="QOSMaxSubmitJobPerUserLimit") for n in range(2)]
    jobs = Jobs([filed(job=None, over=refused)] * 9, JobListing())
    assert state_of(jobs).state is State.PENDING
    assert "QOSMaxSubmit" in state_of(jobs).reason


def test_a_jobs_own_last_word_counts_where_the_scheduler_says_nothing():
    report = JobExitReport(code=4, cause=Cause.BAD_NODE, why="no disk", node="node3", claimed=False)
    for answer in (JobListing(), JobListing(problem="away")):
        jobs = Jobs([filed(reports={0: report})], answer)
        job = jobs.of_cell("a")
        assert job.phase is Phase.OVER
        assert job.over.cause is Cause.BAD_NODE and job.over.node == "node3" and job.over.idle
        assert [o.index for _, found in jobs.news() for o in found] == [0]


def test_the_end_of_a_driver_is_that_of_all_its_starts_which_it_counts_itself():
    report = JobExitReport(code=4, why="its workers claimed nothing", claimed=False, restart=2)
    driven = filed(tasks=(("a",),), reports={0: report})._replace(driver=DriverStatus(restart=2, beat=1))
    jobs = Jobs([driven], JobListing({("12", 0): ENDED}))
    found = jobs.fate(owner(restart=2))
    assert found is not None and (found.detail, found.idle) == ("its workers claimed nothing", True)
    assert jobs.fate(owner(restart=3)) is None


def test_a_worker_that_its_driver_lost_is_gone_and_no_other():
    lost = (
        LostSlot(slot=1, restart=1, cause=Cause.PREEMPTED, why="gone"),
        LostSlot(slot=None, restart=0, cause=Cause.NODE_LOST, why="its driver was killed"),
    )
    driven = filed(tasks=(("a",),))._replace(driver=DriverStatus(restart=1, beat=1, lost=lost))
    jobs = Jobs([driven], JobListing({("12", 0): RUNNING}))
    found = [jobs.fate(owner(slot=slot, restart=start)) for slot, start in ((1, 1), (2, 1), (2, 0))]
    assert [each and each.cause for each in found] == [Cause.PREEMPTED, None, Cause.NODE_LOST]


def test_a_job_that_asked_to_be_started_anew_is_not_over_by_its_own_word():
    jobs = Jobs([filed(reports={0: JobExitReport(code=75, requeued=True)})], JobListing(problem="away"))
    assert jobs.of_cell("a").phase is Phase.UNKNOWN
    assert jobs.news() == []


def owner(restart=0, index=0, job="12", cluster="lab", slot=0) -> Owner:
    return Owner(
        host="h",
        process=PROCESS,
        cluster=cluster,
        job=job,
        array_index=index,
        restart_count=restart,
        slot=slot,
    )


@pytest.mark.parametrize(
    ("jobs", "who", "cause"),
    [
        (Jobs([filed()], JobListing({("12", 0): ENDED})), owner(), Cause.NODE_LOST),
        (Jobs([filed(over=[over(Cause.OOM_HOST)])], JobListing()), owner(), Cause.OOM_HOST),
        (
            Jobs([filed()], JobListing({("12", 0): ENDED})),
            owner(restart=1),
            None,
        ),  # a later start than that end
        (Jobs([filed()], JobListing({("12", 0): RUNNING})), owner(), None),
        (Jobs([filed()], JobListing({("12", 0): QUEUED._replace(restarts=1)})), owner(), Cause.NODE_LOST),
        (
            Jobs([filed()], JobListing({("12", 0): RUNNING._replace(restarts=2, before=Cause.PREEMPTED)})),
            owner(restart=1),
            Cause.PREEMPTED,
        ),
        (Jobs([filed()], JobListing({("12", 0): RUNNING._replace(restarts=1)})), owner(restart=1), None),
        (Jobs([filed()], JobListing({("12", 0): QUEUED._replace(restarts=None)})), owner(), None),
        (Jobs([filed()], JobListing({})), owner(), None),
        (Jobs([filed()], JobListing(problem="away")), owner(), None),
        (Jobs([filed()], JobListing({("12", 0): ENDED})), owner(index=1), None),
        (Jobs([filed()], JobListing({("12", 0): ENDED})), owner(job="99"), None),
        (Jobs([filed()], JobListing({("12", 0): ENDED})), owner(cluster="other"), None),
        (Jobs([filed()], JobListing({("12", 0): ENDED})), Owner(host="h", process=PROCESS), None),
    ],
)
def test_only_a_terminal_state_of_that_very_start_or_a_later_start_proves_an_owner_gone(jobs, who, cause):
    found = jobs.fate(who)
    assert (found.cause if found else None) == cause


@given(
    numbers=st.lists(st.sampled_from([SMALL, LARGE]), max_size=40),
    per_job=st.integers(1, 5),
    size=st.integers(1, 9),
    max_running=st.none() | st.integers(1, 50),
    held=st.integers(0, 20),
    max_jobs=st.none() | st.integers(1, 50),
)
def test_grouping_loses_and_doubles_no_cell_and_keeps_every_limit(
    numbers, per_job, size, max_running, held, max_jobs
):
    wanted = [(str(number), resources) for number, resources in enumerate(numbers)]
    groups, behind = grouped(
        wanted,
        cells_per_job=per_job,
        max_array_size=size,
        max_running=max_running,
        held=held,
        max_jobs=max_jobs,
    )
    cells = [cell for group in groups for task in group.tasks for cell in task]
    assert len(cells) == len(set(cells)) == len(wanted) - behind
    assert all(1 <= len(group.tasks) <= size for group in groups)
    assert all(len(task) <= per_job for group in groups for task in group.tasks)
    of = dict(wanted)
    assert all(of[cell] == group.resources for group in groups for task in group.tasks for cell in task)
    if max_jobs is not None:
        assert sum(len(group.tasks) for group in groups) <= max(0, max_jobs - held)
    elif max_running is None:
        assert behind == 0
    if max_running is not None:
        assert sum(group.max_running for group in groups) <= max_running


@pytest.mark.parametrize(
    ("number", "sizes"), [(100, [100]), (101, [101]), (102, [101, 1]), (202, [101, 101])]
)
def test_arrays_are_split_at_the_cluster_s_limit(number, sizes):
    wanted = [(str(n), SMALL) for n in range(number)]
    groups, _ = grouped(wanted, cells_per_job=1, max_array_size=101, max_running=None)
    assert [len(group.tasks) for group in groups] == sizes


def test_cells_that_others_rehearse_for_are_arrays_of_their_own_behind_all_others():
    wanted = [("a", SMALL), ("b", LARGE), ("c", SMALL), ("d", LARGE)]
    groups, _ = grouped(wanted, cells_per_job=1, max_array_size=9, max_running=None, later={"a", "d"})
    found = [(group.is_later, group.resources, group.tasks) for group in groups]
    assert found == [
        (False, LARGE, (("b",),)),
        (False, SMALL, (("c",),)),
        (True, SMALL, (("a",),)),
        (True, LARGE, (("d",),)),
    ]


def fast(node, index) -> JobEnd:
    return JobEnd(index=index, word="FAILED", cause=Cause.BAD_NODE, node=node, seconds=3.0, idle=True)


def test_a_node_on_which_jobs_fail_fast_twice_is_bad_until_that_has_expired():
    tasks = tuple((str(n),) for n in range(6))
    good = JobEnd(index=4, word="COMPLETED", node="node2", seconds=3.0)
    slow = JobEnd(index=5, word="FAILED", cause=Cause.UNKNOWN, node="node3", seconds=9000.0, idle=True)
    ends = [fast("node1", 0), fast("node1", 1), fast("node2", 2), fast("node3", 3), good, slow]
    history = [filed(tasks=tasks, over=ends)]
    assert bad_nodes(history, {1}, fast_s=600) == ("node1",)
    assert bad_nodes(history, set(), fast_s=600) == ()
    claimed = [
        JobEnd(index=n, word="FAILED", cause=Cause.UNKNOWN, node="node1", seconds=1.0) for n in range(3)
    ]
    assert bad_nodes([filed(tasks=tasks, over=claimed)], {1}, fast_s=600) == ()


@pytest.mark.parametrize("detail", ["exit code 137", "Killed: signal 9"])
def test_a_node_on_which_whole_jobs_are_killed_twice_is_bad_too(detail):
    tasks = tuple((str(n),) for n in range(3))
    end = JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN, node="node1", seconds=9.0, detail=detail)
    ends = [end, msgspec.structs.replace(end, index=1)]
    assert bad_nodes([filed(tasks=tasks, over=ends)], {1}, fast_s=600) == ("node1",)
    for_memory = [msgspec.structs.replace(each, cause=Cause.OOM_HOST) for each in ends]
    assert bad_nodes([filed(tasks=tasks, over=for_memory)], {1}, fast_s=600) == ()
    assert bad_nodes([filed(tasks=tasks, over=ends[:1])], {1}, fast_s=600) == ()
