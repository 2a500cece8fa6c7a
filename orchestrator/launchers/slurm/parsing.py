"""The output of Slurm's commands: states of jobs, what they count as, and how they are printed. Pure.

Sources: the manual pages of sacct ("JOB STATE CODES"), squeue and sbatch of Slurm 22.05. A state that is not
listed here counts neither as alive nor as over. REVOKED is left out on purpose: it means that another cluster
of the federation started the job.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import JobObservation, Phase
from orchestrator.jobs.records import EXITS, JobEnd
from orchestrator.launchers.slurm.reasons import may_release, never

_WAITING = frozenset(
    [
        "PENDING",
        "REQUEUED",
        "REQUEUE_FED",
        "REQUEUE_HOLD",
        "RESV_DEL_HOLD",
        "SPECIAL_EXIT",
        "SUSPENDED",
        "STOPPED",
    ]
)
_LIVE = frozenset(["RUNNING", "CONFIGURING", "COMPLETING", "SIGNALING", "STAGE_OUT", "RESIZING"])
_OVER = {
    "COMPLETED": None,
    "CANCELLED": Cause.CANCELLED,
    "TIMEOUT": Cause.TIMEOUT,
    "DEADLINE": Cause.TIMEOUT,
    "PREEMPTED": Cause.PREEMPTED,
    "NODE_FAIL": Cause.NODE_LOST,
    "BOOT_FAIL": Cause.BAD_NODE,
    "LAUNCH_FAILED": Cause.BAD_NODE,
    "OUT_OF_MEMORY": Cause.OOM_HOST,
    "FAILED": Cause.UNKNOWN,
}

SACCT = "JobID,State,ExitCode,NodeList,Start,End,ElapsedRaw,Reason,Submit,JobName"
"""Columns of sacct that `read_sacct` reads."""

SQUEUE = (
    "ArrayJobID:|,ArrayTaskID:|,State:|,Reason:|,StartTime:|,NodeList:|,RestartCnt:|,TimeUsed:|,exit_code:|"
    ",SubmitTime:|,Name:"
)
"""Columns of squeue that `read_squeue` reads.

Each has a separator, so that no width truncates it. The job's name is last, because users may change it to
any text, even one with separators."""

SINCE = "2000-01-01"
"""Start of the period that sacct is queried for. Without one it may list only jobs since midnight."""

REST = -1
"""Index of what is left of an array whose waiting tasks were cancelled one by one. Slurm gives it none."""

_TASK = re.compile(r"(?P<job>\d+)_(?P<index>\d+)")
_TASKS = re.compile(r"(?P<job>\d+)_\[(?P<indexes>[\d,\-:]+)(%\d+)?\]")


def phase_of(word: str) -> Phase:
    """Return the phase that a state belongs to."""
    if word in _WAITING:
        return Phase.QUEUED
    if word in _LIVE:
        return Phase.RUNNING
    return Phase.OVER if word in _OVER else Phase.UNKNOWN


def over_of(
    index: int, word: str, exit_code: str, *, node: str = "", restarts: int = 0, seconds: float | None = None
) -> JobEnd:
    """Return the end of a job from its terminal state and exit code, printed as code:signal (``4:0``)."""
    code, _, number = exit_code.partition(":")
    cause, detail = _OVER[word], ""
    if word == "FAILED" and code.isdigit() and int(code) in EXITS and number in ("", "0"):
        # a worker's own exit code is more precise than Slurm's FAILED
        cause, detail = EXITS[int(code)]
    elif word == "FAILED":
        detail = f"exit code {code}" if number in ("", "0") else f"signal {number}"
        if number == "53":  # no signal, but Slurm's code for a failure before the script ran
            detail = (
                "Slurm could not start it (0:53): the node cannot write the job's log, or enter its folder; "
                "the store, cluster.logs and the folder of the launch must be on file systems that it sees"
            )
    elif word == "COMPLETED":
        detail = "exit code 0"  # the job's report shows whether its worker ended well
    elif word == "CANCELLED":  # only accounting records by whom, and it lags behind
        detail = "cancelled by its user or an administrator"
    return JobEnd(
        index=index, word=word, cause=cause, detail=detail, node=node, restarts=restarts, seconds=seconds
    )


def indexes_of(text: str) -> Iterator[int]:
    """Yield the indexes of ``0-3,7,10-20:5``."""
    for part in text.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def tasks_of(name: str) -> list[tuple[str, int]]:
    """Return the (job, index) pairs of a JobID of sacct, ``12_3`` or ``12_[0-4%2]``; [] for other forms."""
    if match := _TASK.fullmatch(name):
        return [(match["job"], int(match["index"]))]
    if match := _TASKS.fullmatch(name):
        return [(match["job"], index) for index in indexes_of(match["indexes"])]
    return []


def read_sacct(lines: Iterable[str]) -> dict[tuple[str, int], JobObservation]:
    """Parse ``sacct -nPXD -o SACCT``. With -D a job has one line for each of its starts, oldest first."""
    starts: dict[tuple[str, int], list[list[str]]] = {}
    for line in lines:
        fields = line.split("|", SACCT.count(","))
        if len(fields) == len(SACCT.split(",")):
            # of tasks that were cancelled while they waited, one line is left, under the array's bare number
            is_rest = fields[0].isdigit() and fields[1].startswith("CANCELLED")
            for task in [(fields[0], REST)] if is_rest else tasks_of(fields[0]):
                starts.setdefault(task, []).append(fields)
    return {task: _of_starts(task[1], lines) for task, lines in starts.items()}


def _of_starts(index: int, lines: list[list[str]]) -> JobObservation:
    """Return the observation of a task from the lines of all its starts."""
    # lines of a job that waited and never ran are no starts; only the last line may be of a waiting job
    former = [
        fields
        for fields in lines[:-1]
        if fields[4] not in ("Unknown", "None") or fields[3] != "None assigned"
    ]
    _, state, exit_code, node, start, _, elapsed, reason, submitted, name = lines[-1]
    word = state.split()[0]  # as in "CANCELLED by 1000"
    phase, node = phase_of(word), "" if node == "None assigned" else node
    before = former[-1][1].split()[0] if former else ""
    # the line describes the start that is over; the next start has no line yet
    if word.startswith("REQUEUE"):
        before, start = word, ""
    over = None
    if phase is Phase.OVER:
        seconds = float(elapsed) if elapsed.isdigit() else None
        over = over_of(index, word, exit_code, node=node, restarts=len(former), seconds=seconds)
        if word == "CANCELLED" and " by " in state:
            over = _cancelled(over, state)
    return JobObservation(
        phase=phase,
        word=word,
        reason=reason if phase is Phase.QUEUED else "",
        start="" if start in ("Unknown", "None") else start,
        node=node,
        restarts=len(former),
        before=_before(before),
        before_word=before,
        over=over,
        name=name,
        submitted_s=_seconds_since_1970(submitted),
    )


def _cancelled(over: JobEnd, state: str) -> JobEnd:
    """Complete the end of a cancelled job with the user who cancelled it."""
    uid = state.rpartition(" ")[2]
    try:
        who = pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        who = f"user {uid}"
    return msgspec.structs.replace(over, detail=f"cancelled by {who}")


def read_squeue(lines: Iterable[str]) -> dict[tuple[str, int], JobObservation]:
    """Parse ``squeue -hr -t all -O SQUEUE``."""
    seen: dict[tuple[str, int], JobObservation] = {}
    for line in lines:
        fields = [field.strip() for field in line.split("|", SQUEUE.count("|"))]
        if len(fields) != len(SQUEUE.split(",")):
            continue
        job, task, word, reason, start, node, restarts, used, exit_code, submitted, name = fields
        # with -r each task has a line of its own; one without an index is the rest of a cancelled array
        if not task.isdigit() and (task, word) != ("N/A", "CANCELLED"):
            continue
        index = int(task) if task.isdigit() else REST
        phase, count = phase_of(word), int(restarts) if restarts.isdigit() else None
        over = None
        if phase is Phase.OVER:
            over = over_of(
                index,
                word,
                _exit_code(exit_code),
                node=node,
                restarts=count or 0,
                seconds=seconds_of(used),
            )
        is_released = phase is Phase.QUEUED and may_release(reason, count)
        seen[(job, index)] = JobObservation(
            phase=phase,
            word=word,
            reason=reason if phase is Phase.QUEUED else "",
            start="" if start in ("N/A", "Unknown") else start,
            node=node,
            restarts=count,
            over=over,
            name=name,
            stuck=never(reason) if phase is Phase.QUEUED and not is_released else "",
            may_release=is_released,
            is_ending=word == "COMPLETING",
            submitted_s=_seconds_since_1970(submitted),
        )
    return seen


_MAY_RETURN = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""Terminal states after which Slurm may requeue a job before accounting shows it."""

_UNLISTED = (
    "by accounting alone: the controller does not list it; if that stays so, an administrator can settle it: "
    "sacctmgr show runawayjobs"
)


def agreed(
    now: Mapping[tuple[str, int], JobObservation] | None, accounts: Mapping[tuple[str, int], JobObservation]
) -> dict[tuple[str, int], JobObservation]:
    """Combine the answers of controller and accounting about the same jobs into one.

    Neither suffices alone. The controller is current, but forgets finished jobs after minutes. Accounting
    remembers them, but may lag behind, and may list jobs as running for ever after a crash. So the controller
    decides what lives, and accounting decides how jobs ended:

        controller            accounting              result
        RUNNING, 1 restart    PREEMPTED, 0 restarts   RUNNING, with PREEMPTED as its previous end
        CANCELLED             CANCELLED               CANCELLED by accounting, which records by whom
        not listed            RUNNING                 unknown: the record may be stale
        not listed            NODE_FAIL               over, but may return
        no answer             NODE_FAIL               unknown: Slurm may have requeued it

    Args:
        now: the controller's answer; None if it did not answer.
        accounts: accounting's answer.
    """
    if now is None:
        return {
            task: job._replace(phase=Phase.UNKNOWN, over=None) if job.word in _MAY_RETURN else job
            for task, job in accounts.items()
        }
    seen = {
        task: job._replace(phase=Phase.UNKNOWN, reason=_UNLISTED, listed=False)
        if job.over is None
        else job._replace(may_return=job.word in _MAY_RETURN, listed=False)
        for task, job in accounts.items()
    }
    for task, job in now.items():
        account = accounts.get(task)
        if account is not None and account.submitted_s != job.submitted_s and account.name != job.name:
            account = None  # that is an earlier job, which had the same number
        if job.over is not None and account is not None and account.over is not None:
            seen[task] = account  # accounting has more detail, such as who cancelled it
            continue
        seen[task] = job if account is None or job.over is not None else _with_past(job, account)
    return seen


def _with_past(now: JobObservation, account: JobObservation) -> JobObservation:
    """Add to a living task how its previous start ended, by accounting, which may lag behind."""
    if now.restarts == account.restarts and account.over is None:
        return now._replace(before=account.before, before_word=account.before_word)
    restarts = max(now.restarts or 0, (account.restarts or 0) + (now.phase is Phase.QUEUED))
    if account.over is not None and restarts > (account.restarts or 0):
        return now._replace(before=_before(account.word), before_word=account.word, restarts=restarts)
    return now


def previous_end(states: Sequence[str]) -> Cause | None:
    """Return the cause of the end before the present start, None if there is none.

    Args:
        states: the lines of ``sacct -D -o State``, one for each start.
    """
    words = [state.split()[0] for state in states if state.strip()]
    return _before(words[-2]) if len(words) > 1 else None


def _before(word: str) -> Cause | None:
    """Return what the end before a restart counts as; REQUEUED, by an operator's hand, as a preemption."""
    return Cause.PREEMPTED if word == "REQUEUED" else _OVER.get(word)


def _exit_code(status: str) -> str:
    """Convert a wait status, as squeue prints it, to ``code:signal``."""
    if ":" in status or not status.isdigit():
        return status
    return f"{int(status) >> 8}:{int(status) & 127}"


def _seconds_since_1970(text: str) -> float | None:
    """Parse a time as Slurm's programs print it, in this machine's time zone; None if it is not one."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def seconds_of(text: str) -> float | None:
    """Parse ``[days-][hours:]minutes:seconds``; None for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
