"""What is known of a job: the one decision, over every kind of evidence."""

from __future__ import annotations

import pytest

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import Asker, JobListing, JobObservation, Phase, SubmissionState, judge
from orchestrator.jobs.records import Accepted, JobEnd, JobExitReport
from tests.store.builders import submission_of

ANN, BEN = Asker(1000, "ann"), Asker(1001, "ben")
NAME = "s.1.ab"
ACCEPTED_AT, EARLIER_S, LATER_S = "2026-01-01T00:00:10Z", 1767225609.0, 1767225700.0
CLOSED = JobEnd(index=0, word="TIMEOUT", cause=Cause.TIMEOUT)
WAITS = JobObservation(Phase.QUEUED, "PENDING", name=NAME)
RUNS = JobObservation(Phase.RUNNING, "RUNNING", name=NAME)
ENDED = JobObservation(
    Phase.OVER, "FAILED", name=NAME, over=JobEnd(index=0, word="FAILED", cause=Cause.UNKNOWN)
)
RETURNS = ENDED._replace(word="PREEMPTED", may_return=True, listed=False)
STALE = JobObservation(Phase.UNKNOWN, "PENDING", name=NAME, reason="by accounting alone", listed=False)
STRANGER = RUNS._replace(name="another.7", submitted_s=LATER_S)
RENAMED = RUNS._replace(name="mine | too", submitted_s=EARLIER_S)
REPORT = JobExitReport(code=1, cause=Cause.CODE, why="no module named x")
AGAIN = JobExitReport(code=75, requeued=True)


def submitted(
    by: str = "ann@login1", uid: int | None = 1000, job: str = "12", controller: str = "head:6817"
) -> SubmissionState:
    submission = submission_of(name=NAME, by=by, uid=uid, controller=controller, at="2026-01-01T00:00:00Z")
    return SubmissionState(submission, Accepted(nonce="n", job=job, at=ACCEPTED_AT) if job else None)


def listing(seen: JobObservation | None = None, **more: object) -> JobListing:
    """A complete answer, unless told otherwise."""
    return JobListing({("12", 0): seen} if seen else {}, complete=True)._replace(**more)


@pytest.mark.parametrize(
    ("what", "filed", "answer", "asker", "phase", "word", "absent"),
    [
        (
            "a closing outranks all",
            submitted()._replace(over={0: CLOSED}),
            listing(RUNS),
            ANN,
            "over",
            "TIMEOUT",
            False,
        ),
        ("no id yet", submitted(job=""), listing(), ANN, "unknown", "", False),
        ("it waits", submitted(), listing(WAITS), ANN, "queued", "", False),
        (
            "it runs, for another user too",
            submitted(),
            listing(RUNS, everyone=False),
            BEN,
            "running",
            "",
            False,
        ),
        ("a terminal state", submitted(), listing(ENDED), BEN, "over", "FAILED", False),
        (
            "a terminal state by accounting alone",
            submitted(),
            listing(ENDED, complete=False),
            ANN,
            "over",
            "FAILED",
            False,
        ),
        (
            "an end after which it may return, listed nowhere",
            submitted(),
            listing(RETURNS),
            ANN,
            "over",
            "FAILED",
            False,
        ),
        (
            "the same, hidden from who asks",
            submitted(),
            listing(RETURNS, everyone=False),
            BEN,
            "unknown",
            "",
            False,
        ),
        (
            "the same, without a controller",
            submitted(),
            listing(RETURNS, complete=False),
            ANN,
            "unknown",
            "",
            False,
        ),
        ("life by accounting alone", submitted(), listing(STALE), ANN, "unknown", "", False),
        (
            "life by accounting, and its own last word",
            submitted()._replace(reports={0: REPORT}),
            listing(STALE),
            ANN,
            "over",
            "EXITED",
            False,
        ),
        ("its number under another name", submitted(), listing(STRANGER), ANN, "over", "FORGOTTEN", False),
        (
            "the same, without a controller",
            submitted(),
            listing(STRANGER, complete=False),
            ANN,
            "unknown",
            "",
            False,
        ),
        (
            "the same, hidden from who asks",
            submitted(),
            listing(STRANGER, everyone=False),
            BEN,
            "unknown",
            "",
            False,
        ),
        (
            "its own last word",
            submitted()._replace(reports={0: REPORT}),
            listing(),
            ANN,
            "over",
            "EXITED",
            False,
        ),
        (
            "a last word before a new start",
            submitted()._replace(reports={0: AGAIN}),
            listing(problem="away"),
            ANN,
            "unknown",
            "",
            False,
        ),
        ("no answer", submitted(), listing(problem="away"), ANN, "unknown", "", False),
        (
            "not listed by part of an answer",
            submitted(),
            listing(complete=False, gap="half"),
            ANN,
            "unknown",
            "",
            False,
        ),
        ("not listed by all of it", submitted(), listing(), ANN, "unknown", "", True),
        ("not listed, of another user", submitted(), listing(), BEN, "unknown", "", True),
        (
            "not listed, of another user, whose jobs are hidden",
            submitted(),
            listing(everyone=False),
            BEN,
            "unknown",
            "",
            False,
        ),
        (
            "not listed, one's own where others' are hidden",
            submitted(),
            listing(everyone=False),
            ANN,
            "unknown",
            "",
            True,
        ),
        (
            "not listed where another cluster has the name",
            submitted(),
            listing(controller="far:6817"),
            ANN,
            "unknown",
            "",
            False,
        ),
        (
            "its number there",
            submitted(),
            listing(STRANGER, controller="far:6817"),
            ANN,
            "unknown",
            "",
            False,
        ),
        ("its name there", submitted(), listing(ENDED, controller="far:6817"), ANN, "over", "FAILED", False),
        (
            "not listed by its second controller",
            submitted(controller="a:1 b:1"),
            listing(controller="b:1"),
            ANN,
            "unknown",
            "",
            True,
        ),
        (
            "not listed, of a store that cannot say where",
            submitted(controller=""),
            listing(controller="b:1"),
            ANN,
            "unknown",
            "",
            True,
        ),
        ("renamed", submitted(), listing(RENAMED), ANN, "running", "", False),
        (
            "renamed, and over",
            submitted(),
            listing(ENDED._replace(name="x", submitted_s=EARLIER_S)),
            ANN,
            "over",
            "FAILED",
            False,
        ),
        (
            "renamed and over, by accounting alone",
            submitted(),
            listing(ENDED._replace(name="x", submitted_s=EARLIER_S, listed=False)),
            ANN,
            "over",
            "FAILED",
            False,
        ),
        (
            "renamed and started anew, or another job",
            submitted(),
            listing(RENAMED._replace(submitted_s=LATER_S, restarts=1)),
            ANN,
            "unknown",
            "",
            False,
        ),
        (
            "its number, that of another submission by its name",
            submitted(),
            listing(RENAMED._replace(name="s.2.0123abcd")),
            ANN,
            "over",
            "FORGOTTEN",
            False,
        ),
        (
            "its number renamed, where another cluster has the name",
            submitted(),
            listing(RENAMED, controller="far:6817"),
            ANN,
            "unknown",
            "",
            False,
        ),
        (
            "renamed, by an answer that is not complete",
            submitted(),
            listing(RENAMED, complete=False, gap="half"),
            ANN,
            "unknown",
            "",
            False,
        ),
        (
            "named with a site's prefix",
            submitted(),
            listing(RENAMED._replace(name=f"lab_ann.{NAME}", submitted_s=LATER_S)),
            ANN,
            "running",
            "",
            False,
        ),
        (
            "its number under another name, by accounting alone",
            submitted(),
            listing(STRANGER._replace(listed=False)),
            ANN,
            "unknown",
            "",
            True,
        ),
        (
            "the number of a user outranks a name",
            submitted(by="ben@x"),
            listing(everyone=False),
            BEN,
            "unknown",
            "",
            False,
        ),
        (
            "without a number the name tells",
            submitted(uid=None),
            listing(everyone=False),
            ANN,
            "unknown",
            "",
            True,
        ),
        (
            "without a number another name",
            submitted(uid=None),
            listing(everyone=False),
            BEN,
            "unknown",
            "",
            False,
        ),
        (
            "nobody known asks",
            submitted(by="", uid=None),
            listing(everyone=False),
            Asker(),
            "unknown",
            "",
            False,
        ),
    ],
)
def test_a_job_is_over_only_by_a_positive_statement(what, filed, answer, asker, phase, word, absent):
    found = judge(filed, 0, answer, asker)
    assert (found.phase, found.over.word if found.over else "", bool(found.absence)) == (
        phase,
        word,
        absent,
    ), what
    assert found.reason


def test_an_absence_that_counts_names_who_listed_what_of_whom():
    found = judge(submitted(), 0, listing(scope="the controller of cluster lab"), BEN)
    assert found.absence == "the controller of cluster lab lists all jobs of ann, and not this one"
    hidden = judge(submitted(), 0, listing(everyone=False), BEN)
    assert "a job of ann, and the scheduler shows ben only their own" in hidden.reason
