"""Slurm's words as its commands printed them (22.05), and what they mean here."""

from __future__ import annotations

import pytest

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import Phase
from orchestrator.launchers.slurm.parsing import (
    REST,
    agreed,
    indexes_of,
    previous_end,
    read_sacct,
    read_squeue,
    seconds_of,
)

SACCT = """\
1_0|CANCELLED by 0|0:0|node1|2026-11-25T02:31:53|2026-11-25T02:32:11|18|None|2026-11-25T02:31:50|s.1.ab
1_1|REQUEUED|0:0|node1|2026-11-25T02:31:53|2026-11-25T02:32:11|18|None|2026-11-25T02:31:50|s.1.ab
1_2|RUNNING|0:0|node2|2026-11-25T02:32:13|Unknown|6|JobArrayTaskLimit|2026-11-25T02:31:50|s.1.ab
1_1|PENDING|0:0|None assigned|Unknown|Unknown|0|BeginTime|2026-11-25T02:31:50|s.1.ab
2_[0,4-6%2]|PENDING|0:0|None assigned|Unknown|Unknown|0|None|2026-11-25T02:31:50|s.1.ab
4_7|PREEMPTED|0:0|node1|None|2026-11-25T02:32:42|0|None|2026-11-25T02:31:50|s.1.ab
4_7|COMPLETED|0:0|node1|2026-11-25T02:34:47|2026-11-25T02:38:07|200|BeginTime|2026-11-25T02:31:50|s.1.ab
6_9|TIMEOUT|0:0|node4|2026-11-25T02:32:40|2026-11-25T02:33:54|74|None|2026-11-25T02:31:50|s.1.ab
7|COMPLETED|0:0|node1|2026-11-25T02:32:46|2026-11-25T02:34:26|100|None|2026-11-25T02:31:50|s.1.ab
8_0|NODE_FAIL|1:0|node3|2026-11-25T02:32:46|2026-11-25T02:34:26|100|None|2026-11-25T02:31:50|s.1.ab
9_0|FAILED|4:0|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|0|None|2026-11-25T02:31:50|s.1.ab
9_1|FAILED|75:0|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|0|None|2026-11-25T02:31:50|s.1.ab
9_2|FAILED|1:0|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|0|None|2026-11-25T02:31:50|s.1.ab
9_3|FAILED|0:9|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|0|None|2026-11-25T02:31:50|s.1.ab
9_4|OUT_OF_MEMORY|0:125|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|7|None|2026-11-25T02:31:50|s.1.ab
9_5|A_STATE_TO_COME|0:0|node1|2026-11-25T02:44:28|2026-11-25T02:44:28|0|None|2026-11-25T02:31:50|s.1.ab
10|CANCELLED by 0|0:0|None assigned|2026-11-25T04:58:34|2026-11-25T04:58:34|0|None|2026-11-25T02:31:50|s.1.ab
half a line|PEND
"""


@pytest.mark.parametrize(
    ("task", "phase", "cause", "restarts"),
    [
        (("1", 0), Phase.OVER, Cause.CANCELLED, 0),
        (("1", 1), Phase.QUEUED, None, 1),
        (("1", 2), Phase.RUNNING, None, 0),
        (("2", 0), Phase.QUEUED, None, 0),
        (("2", 5), Phase.QUEUED, None, 0),
        (("4", 7), Phase.OVER, None, 1),
        (("6", 9), Phase.OVER, Cause.TIMEOUT, 0),
        (("8", 0), Phase.OVER, Cause.NODE_LOST, 0),
        (("9", 0), Phase.OVER, Cause.BAD_NODE, 0),
        (("9", 1), Phase.OVER, None, 0),
        (("9", 2), Phase.OVER, Cause.UNKNOWN, 0),
        (("9", 3), Phase.OVER, Cause.UNKNOWN, 0),
        (("9", 4), Phase.OVER, Cause.OOM_HOST, 0),
        (("9", 5), Phase.UNKNOWN, None, 0),
    ],
)
def test_accounting_tells_the_last_start_of_each_task(task, phase, cause, restarts):
    seen = read_sacct(SACCT.splitlines())[task]
    assert (seen.phase, seen.restarts) == (phase, restarts)
    assert (seen.over is not None) == (phase is Phase.OVER)
    assert (seen.over.cause if seen.over else None) == cause


def test_accounting_lists_nothing_else():
    seen = read_sacct(SACCT.splitlines())
    assert len(seen) == 17 and seen[("10", REST)].word == "CANCELLED"  # its only task, cancelled by its name
    assert ("7", 0) not in seen and ("7", REST) not in seen
    assert ("2", 3) not in seen
    assert seen[("1", 1)].before is Cause.PREEMPTED and seen[("1", 1)].before_word == "REQUEUED"
    assert seen[("4", 7)].before is Cause.PREEMPTED
    assert seen[("1", 0)].over.detail == "cancelled by root"
    assert seen[("6", 9)].over.seconds == 74 and seen[("6", 9)].over.node == "node4"
    assert "signal 9" in seen[("9", 3)].over.detail


SQUEUE = """\
9|0|FAILED|NonZeroExitCode|2026-11-25T02:44:28|node1|0|0:03|1024|2026-11-25T02:31:50|s.1.ab
9|1|PENDING|BeginTime|N/A||1|0:00|0|2026-11-25T02:31:50|s.1.ab
9|2|RUNNING|None|2026-11-25T02:44:28|node2|2|1-02:03:04|0|2026-11-25T02:31:50|s.1.ab
9|3|COMPLETED|None|2026-11-25T02:44:28|node2|0|0:01|0|2026-11-25T02:31:50|s.1.ab
9|N/A|RUNNING|None|2026-11-25T02:44:28|node2|0|0:01|0|2026-11-25T02:31:50|s.1.ab
"""


def test_the_controller_tells_restarts_reasons_and_exit_codes():
    seen = read_squeue(SQUEUE.splitlines())
    assert set(seen) == {("9", n) for n in range(4)}
    failed, waits, runs, done = (seen[("9", n)] for n in range(4))
    assert (failed.phase, failed.over.cause, failed.over.seconds) == (Phase.OVER, Cause.BAD_NODE, 3.0)
    assert (waits.phase, waits.reason, waits.restarts, waits.start) == (Phase.QUEUED, "BeginTime", 1, "")
    assert (runs.phase, runs.node, runs.restarts) == (Phase.RUNNING, "node2", 2)
    assert (done.phase, done.over.cause) == (Phase.OVER, None)


@pytest.mark.parametrize(
    ("accounts", "now", "phase", "restarts"),
    [
        ("RUNNING", "RUNNING", Phase.RUNNING, 0),
        ("RUNNING", "FAILED", Phase.OVER, 0),  # accounting lags
        ("FAILED", "RUNNING", Phase.RUNNING, 0),  # the controller was asked a moment earlier
        ("FAILED", None, Phase.OVER, 0),  # the controller has forgotten
        ("RUNNING", None, Phase.UNKNOWN, 0),  # either may be wrong
        ("PENDING", None, Phase.UNKNOWN, 0),
        ("PREEMPTED", "PENDING", Phase.QUEUED, 1),  # accounting has not heard of the new start
        ("PREEMPTED", None, Phase.OVER, 0),
        (None, "PENDING", Phase.QUEUED, 0),
        ("A_STATE_TO_COME", "PENDING", Phase.QUEUED, 0),
        ("PENDING", "A_STATE_TO_COME", Phase.UNKNOWN, 0),
        ("A_STATE_TO_COME", None, Phase.UNKNOWN, 0),
        (None, "REVOKED", Phase.UNKNOWN, 0),  # another cluster of the federation runs it
        (None, None, None, None),
    ],
)
def test_the_controller_tells_what_lives_and_accounting_how_the_rest_ended(accounts, now, phase, restarts):
    told = read_sacct(
        [f"9_0|{accounts}|1:0|node1|2026-11-25T02:44:28|Unknown|0|None|2026-11-25T02:31:50|s.1.n"]
        if accounts
        else []
    )
    lists = read_squeue([f"9|0|{now}|None|N/A|node1|0|0:03|256|2026-11-25T02:31:50|s.1.n"] if now else [])
    seen = agreed(lists, told).get(("9", 0))
    assert (seen.phase if seen else None, seen.restarts if seen else None) == (phase, restarts)
    assert seen is None or seen.before_word == ("PREEMPTED" if restarts else "")


@pytest.mark.parametrize(
    ("accounts", "phase"),
    [("RUNNING", Phase.RUNNING), ("FAILED", Phase.OVER), ("PREEMPTED", Phase.UNKNOWN)],
)
def test_without_the_controller_an_end_after_which_a_job_may_return_is_none(accounts, phase):
    told = read_sacct(
        [f"9_0|{accounts}|1:0|node1|2026-11-25T02:44:28|Unknown|0|None|2026-11-25T02:31:50|s.1.n"]
    )
    seen = agreed(None, told)[("9", 0)]
    assert (seen.phase, seen.over is not None) == (phase, phase is Phase.OVER)


def test_why_a_job_was_started_anew_is_the_end_of_its_last_start():
    assert previous_end(["PREEMPTED", "RUNNING"]) is Cause.PREEMPTED
    assert previous_end(["NODE_FAIL", "PREEMPTED", "RUNNING"]) is Cause.PREEMPTED
    assert previous_end(["REQUEUED", "RUNNING"]) is Cause.PREEMPTED
    assert previous_end(["RUNNING"]) is None
    assert previous_end([]) is None


@pytest.mark.parametrize(
    ("text", "indexes"), [("3", [3]), ("0-2", [0, 1, 2]), ("0,4-5", [0, 4, 5]), ("0-6:3", [0, 3, 6])]
)
def test_indexes_of_an_array(text, indexes):
    assert list(indexes_of(text)) == indexes


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("4:42", 282), ("1:00:00", 3600), ("2-00:00:01", 172801), ("UNLIMITED", None), ("", None)],
)
def test_times(text, seconds):
    assert seconds_of(text) == seconds
