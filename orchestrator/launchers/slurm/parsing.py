"""Slurm's words: the states of a job, what they count as, and how its commands print them. Pure.

Sources: the manual pages of sacct ("JOB STATE CODES"), squeue and sbatch of Slurm 22.05. A state that
is not known here counts as neither alive nor over; so does REVOKED: another cluster of the federation started
the job.
"""

from __future__ import annotations

import pwd
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from orchestrator.core.failure import Cause
from orchestrator.jobs.judgement import JobObservation, Phase
from orchestrator.jobs.records import JobEnd
from orchestrator.launchers.jobs import EXITS
from orchestrator.launchers.slurm.reasons import never

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
SQUEUE = (
    "ArrayJobID:|,ArrayTaskID:|,State:|,Reason:|,StartTime:|,NodeList:|,RestartCnt:|,TimeUsed:|,exit_code:|"
    ",SubmitTime:|,Name:"
)
"""The columns that are asked for; both are given with a separator, so that no width cuts them.
The name, which people may change to anything, is the last."""

SINCE = "2000-01-01"
"""The start time that accounting is asked with: without one it may tell of jobs since midnight alone."""

REST = -1
"""Index of what is left, without one, of an array whose waiting tasks were cancelled one by one."""

_TASK = re.compile(r"(?P<job>\d+)_(?P<index>\d+)")
_TASKS = re.compile(r"(?P<job>\d+)_\[(?P<indexes>[\d,\-:]+)(%\d+)?\]")


def phase_of(word: str) -> Phase:
    """Returns what a state means for us."""
    if word in _WAITING:
        return Phase.QUEUED
    if word in _LIVE:
        return Phase.RUNNING
    return Phase.OVER if word in _OVER else Phase.UNKNOWN


def over_of(
    index: int, word: str, exit_code: str, *, node: str = "", restarts: int = 0, seconds: float | None = None
) -> JobEnd:
    """Returns the end that a terminal state and an exit code (``4:0`` is code:signal) stand for."""
    code, _, number = exit_code.partition(":")
    cause, detail = _OVER[word], ""
    if word == "FAILED" and code.isdigit() and int(code) in EXITS and number in ("", "0"):
        cause, detail = EXITS[int(code)]
    elif word == "FAILED":
        detail = f"exit code {code}" if number in ("", "0") else f"signal {number}"
        if number == "53":  # no signal: Slurm's own word for what failed before the script could run
            detail = (
                "Slurm could not start it (0:53): the node cannot write the job's log, or enter its folder; "
                "the store, cluster.logs and the folder of the launch must be on file systems that it sees"
            )
    elif word == "COMPLETED":
        detail = "exit code 0"  # whether a worker ended so is for the job's report to say
    elif word == "CANCELLED":  # only accounting knows by whom, and it lags behind
        detail = "cancelled by its user or an administrator"
    return JobEnd(
        index=index, word=word, cause=cause, detail=detail, node=node, restarts=restarts, seconds=seconds
    )


def indexes_of(text: str) -> Iterator[int]:
    """Yields the indexes of ``0-3,7,10-20:5``."""
    for part in text.split(","):
        span, _, step = part.partition(":")
        first, _, last = span.partition("-")
        yield from range(int(first), int(last or first) + 1, int(step or 1))


def tasks_of(name: str) -> list[tuple[str, int]]:
    """Returns the (job, index) that a JobID of sacct names: ``12_3`` or ``12_[0-4%2]``; [] for others."""
    if match := _TASK.fullmatch(name):
        return [(match["job"], int(match["index"]))]
    if match := _TASKS.fullmatch(name):
        return [(match["job"], index) for index in indexes_of(match["indexes"])]
    return []


def read_sacct(lines: Iterable[str]) -> dict[tuple[str, int], JobObservation]:
    """Reads ``sacct -nPXD -o SACCT``: with -D a job has a line for each of its starts, oldest first."""
    starts: dict[tuple[str, int], list[list[str]]] = {}
    for line in lines:
        fields = line.split("|", SACCT.count(","))
        if len(fields) == len(SACCT.split(",")):
            is_rest = fields[0].isdigit() and fields[1].startswith("CANCELLED")
            for task in [(fields[0], REST)] if is_rest else tasks_of(fields[0]):
                starts.setdefault(task, []).append(fields)
    return {task: _of_starts(task[1], lines) for task, lines in starts.items()}


def _of_starts(index: int, lines: list[list[str]]) -> JobObservation:
    # a line that was told before the job waited in vain is no start: only the last one may wait
    former = [
        fields
        for fields in lines[:-1]
        if fields[4] not in ("Unknown", "None") or fields[3] != "None assigned"
    ]
    _, state, exit_code, node, start, _, elapsed, reason, submitted, name = lines[-1]
    word = state.split()[0]  # "CANCELLED by 1000"
    phase, node = phase_of(word), "" if node == "None assigned" else node
    before = former[-1][1].split()[0] if former else ""
    if word.startswith("REQUEUE"):  # the line of a start that is over: the next has none yet
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
    uid = state.rpartition(" ")[2]
    try:
        who = pwd.getpwuid(int(uid)).pw_name
    except (KeyError, ValueError):
        who = f"user {uid}"
    return msgspec.structs.replace(over, detail=f"cancelled by {who}")


def read_squeue(lines: Iterable[str]) -> dict[tuple[str, int], JobObservation]:
    """Reads ``squeue -hr -t all -O SQUEUE``."""
    seen: dict[tuple[str, int], JobObservation] = {}
    for line in lines:
        fields = [field.strip() for field in line.split("|", SQUEUE.count("|"))]
        if len(fields) != len(SQUEUE.split(",")):
            continue
        job, task, word, reason, start, node, restarts, used, exit_code, submitted, name = fields
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
        seen[(job, index)] = JobObservation(
            phase=phase,
            word=word,
            reason=reason if phase is Phase.QUEUED else "",
            start="" if start in ("N/A", "Unknown") else start,
            node=node,
            restarts=count,
            over=over,
            name=name,
            stuck=never(reason) if phase is Phase.QUEUED else "",
            submitted_s=_seconds_since_1970(submitted),
        )
    return seen


_MAY_RETURN = frozenset({"PREEMPTED", "NODE_FAIL", "BOOT_FAIL"})
"""Ends after which Slurm may start a job anew before its accounting says so."""

_UNLISTED = (
    "by accounting alone: the controller does not list it; if that stays so, an administrator can settle it: "
    "sacctmgr show runawayjobs"
)


def agreed(
    now: Mapping[tuple[str, int], JobObservation] | None, accounts: Mapping[tuple[str, int], JobObservation]
) -> dict[tuple[str, int], JobObservation]:
    """Makes one answer of the controller's (None: it did not answer) and accounting's.

    The controller knows best what lives. What accounting calls alive and the controller does not list is
    unknown: accounting may lag behind, or the controller may not list all that it has.
    """
    if now is None:
        return {
            task: told._replace(phase=Phase.UNKNOWN, over=None) if told.word in _MAY_RETURN else told
            for task, told in accounts.items()
        }
    seen = {
        task: told._replace(phase=Phase.UNKNOWN, reason=_UNLISTED, listed=False)
        if told.over is None
        else told._replace(may_return=told.word in _MAY_RETURN, listed=False)
        for task, told in accounts.items()
    }
    for task, told in now.items():
        account = accounts.get(task)
        if account is not None and account.submitted_s != told.submitted_s and account.name != told.name:
            account = None  # of an earlier job that had this number
        if told.over is not None and account is not None and account.over is not None:
            seen[task] = account  # accounting tells more: who cancelled it
            continue
        seen[task] = told if account is None or told.over is not None else _with_past(told, account)
    return seen


def _with_past(now: JobObservation, account: JobObservation) -> JobObservation:
    """Adds to a task that lives how its former start ended, by accounting, which may lag behind."""
    if now.restarts == account.restarts and account.over is None:
        return now._replace(before=account.before, before_word=account.before_word)
    restarts = max(now.restarts or 0, (account.restarts or 0) + (now.phase is Phase.QUEUED))
    if account.over is not None and restarts > (account.restarts or 0):
        return now._replace(before=_before(account.word), before_word=account.word, restarts=restarts)
    return now


def previous_end(states: Sequence[str]) -> Cause | None:
    """Returns what the end before the present start counts as, from ``sacct -D -o State``, or None."""
    words = [state.split()[0] for state in states if state.strip()]
    return _before(words[-2]) if len(words) > 1 else None


def _before(word: str) -> Cause | None:
    """What an end counts as after which a job was started anew; REQUEUED is an operator's hand."""
    return Cause.PREEMPTED if word == "REQUEUED" else _OVER.get(word)


def _exit_code(status: str) -> str:
    """From a wait status, as squeue prints it, to ``code:signal``."""
    if ":" in status or not status.isdigit():
        return status
    return f"{int(status) >> 8}:{int(status) & 127}"


def _seconds_since_1970(text: str) -> float | None:
    """Reads a time as Slurm's programs print it, in this machine's time zone."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def seconds_of(text: str) -> float | None:
    """Reads ``[days-][hours:]minutes:seconds``, None for anything else."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
