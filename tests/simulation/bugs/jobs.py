"""Mistakes in what is done about the jobs of a scheduler."""

from __future__ import annotations

from tests.simulation.bugs import Bug, Edit

RECONCILING, SUBMISSION = "orchestrator/api/reconciling.py", "orchestrator/api/submission.py"
JUDGEMENT, SUBMISSIONS = "orchestrator/jobs/judgement.py", "orchestrator/jobs/submissions.py"

JOBS = (
    Bug(
        "second-job-after-an-empty-listing",
        "jobs 2",
        "a job that one listing lacks counts as over, so its cells get another",
        (
            Edit(
                RECONCILING,
                "        and provenance.age_s(filed.heard_at) > by_name[filed.submission.launcher].settle_s\n",
                "",
            ),
            Edit(RECONCILING, "    jobs = view.fresh().jobs\n", "    jobs = view.jobs\n"),
        ),
        kind="jobs",
        peer=True,
    ),
    Bug(
        "requeued-job-cleaned-away",
        "jobs 2",
        "a job that asked to start anew is closed by its report, and claims nothing when it starts",
        (
            Edit(
                JUDGEMENT,
                "    last_words = report is not None and not report.requeued\n",
                "    last_words = report is not None\n",
            ),
        ),
        kind="jobs",
        peer=True,
    ),
    Bug(
        "job-id-forgotten-with-its-monitor",
        "jobs 1",
        "the job of a monitor that died before it recorded the id is not looked for by its name",
        (Edit(RECONCILING, "        job = submitter.find(submission)\n", "        job = None\n"),),
        kind="jobs",
        peer=True,
    ),
    Bug(
        "loser-of-a-number-submits-too",
        "jobs 1",
        "a launch that did not get the number of a submission submits all the same",
        (
            Edit(
                SUBMISSION,
                "            if not self._submissions.file(submission):  # another",
                "            if not self._submissions.file(submission) and not submission:  # another",
            ),
        ),
        kind="jobs",
    ),
    Bug(
        "lost-answer-counts-as-refusal",
        "jobs 1",
        "a submission whose answer was lost is given up, though the scheduler may have taken it",
        (
            Edit(
                SUBMISSION,
                "            case Verdict.UNREACHED:\n",
                "            case Verdict.UNREACHED | Verdict.UNCLEAR:\n",
            ),
        ),
        kind="jobs",
    ),
    Bug(
        "only-running-jobs-hold",
        "jobs 2",
        "a cell whose job waits, or is not known about, gets another",
        (
            Edit(
                SUBMISSION,
                "        return job is not None and job.phase is not Phase.OVER\n",
                "        return job is not None and job.phase is Phase.RUNNING\n",
            ),
        ),
        kind="jobs",
    ),
    Bug(
        "silence-is-an-end",
        "jobs 2",
        "a job counts as over when the scheduler does not answer",
        (
            Edit(
                JUDGEMENT,
                '        return judgement(Phase.UNKNOWN, f"job {name}: {answer.problem}")\n',
                '        return ended(JobEnd(index=index, word="VANISHED", cause=Cause.NODE_LOST))\n',
            ),
        ),
        kind="jobs",
    ),
    Bug(
        "given-up-and-claims",
        "jobs 1",
        "a job that starts from a task that was given up works on it",
        (
            Edit(
                SUBMISSIONS,
                "        return next((over for over, _ in self._ends(number) if over.index == index), None)\n",
                "        return None\n",
            ),
        ),
        kind="jobs",
    ),
    Bug(
        "absence-counts-at-once",
        "jobs 2",
        "a job that was accepted just now counts as gone when two listings in a row lack it",
        (
            Edit(
                RECONCILING,
                "        and provenance.age_s(filed.heard_at) > by_name[filed.submission.launcher].settle_s\n",
                "",
            ),
            Edit(RECONCILING, "SECOND_LOOK_S = 5.0\n", "SECOND_LOOK_S = 0.5\n"),
        ),
        kind="jobs",
    ),
)
