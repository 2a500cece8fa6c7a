"""What a child left in its attempt's folder: its outcome, and the end of its log."""

from __future__ import annotations

import contextlib
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from orchestrator import formats, provenance
from orchestrator.core.failure import Cause
from orchestrator.core.records import Code, Process
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import StageInstance
from orchestrator.formats import SINCE_2, Stored
from orchestrator.manifest import File
from orchestrator.stage import StageSpec
from orchestrator.store import layout


class LostWorker(Stored, frozen=True, kw_only=True):
    """A start of a scheduler's job that is over, up to this restart: what it held needs no wait.

    Attributes:
        slot: of one worker of the job; None for all of them.
    """

    cluster: str
    job: str
    array_index: int = 0
    slot: int | None = None
    restart_count: int
    cause: Cause
    evidence: str


class Shortage(NamedTuple):
    """Why a worker has to end: its node ran out of memory.

    Attributes:
        cause: what its attempt counts as.
        message: for people.
        at_once: whether the stage holds the memory, and must let go of it without a last checkpoint.
    """

    cause: Cause
    message: str
    at_once: bool


class JobContext(Stored, frozen=True, kw_only=True):
    """The scheduler's job that a worker runs in.

    Attributes:
        cluster, job, array_index, restart_count: who it is, see `orchestrator.core.records.Owner`.
        node: the scheduler's name of this machine.
        end_at: when the scheduler ends it, in seconds since 1970 by this machine's clock; None: not known.
        notice_s: before that end, when stages are asked for their last checkpoint.
        min_left_s: nothing is started with less time left.
        before: why its former start ended; None when that is not known, or there was none.
        gone: earlier jobs of its cells that are over.
    """

    cluster: str
    job: str
    array_index: int = 0
    restart_count: int = 0
    node: str = ""
    end_at: float | None = None
    notice_s: float = 0.0
    min_left_s: float = 0.0
    before: Cause | None = None
    gone: tuple[LostWorker, ...] = ()


class Assignment(Stored, frozen=True, kw_only=True):
    """A worker's assignment.

    Attributes:
        store: URL of the store.
        sweep, revision: what to work on.
        cells: ids of its cells; None for any cell of the revision.
        slot, num_slots: which of the launcher's workers it is; it starts at its own share of the cells.
        env: environment of its children, such as CUDA_VISIBLE_DEVICES.
        num_threads: CPU threads of a child.
        import_paths: where the user's stages are importable; the first is the folder of the sweep file.
        code_digest: of the code at launch; a worker that finds another refuses.
        job: the scheduler's, None without one.
        max_idle_s: seconds without anything to claim after which it leaves though others still work, as where
            another is started when there is work again; None to stay until all is done.
        code: the snapshot that the worker was started from, None when it runs the checkout. Then it takes the
            snapshot's import paths instead of `import_paths`, and refuses a snapshot that is not whole.
        named: words of the commands that were code or settings of the checkout at launch, None without one.
            Another file that a command names is its own output.
    """

    store: str
    sweep: str
    revision: int
    cells: tuple[str, ...] | None = None
    settings: RunSettings
    slot: int = 0
    num_slots: int = 1
    env: dict[str, str] = {}
    num_threads: int = 1
    import_paths: tuple[str, ...] = ()
    code_digest: str = ""
    job: JobContext | None = None
    max_idle_s: float | None = None
    code: Code | None = None
    named: Annotated[tuple[str, ...] | None, SINCE_2] = None


class AttemptSpec(Stored, frozen=True, kw_only=True):
    """What a child runs, and where.

    Attributes:
        folder: the attempt's payload folder.
        inputs: stage name to instance label to folder.
        resume_step, resume_folder: the adopted checkpoint.
        former_folder: the adopted product of an earlier version of the stage, "" for none.
        in_job: whether a scheduler may signal all processes at once.
        unread: the earlier attempt whose command was through, and whose output lies in this one's to be read
            again; None to run the stage.
    """

    store: str
    sweep: str
    cell: str
    node: StageInstance
    spec: StageSpec
    attempt: int
    generation: int
    folder: str
    inputs: dict[str, dict[str, str]]
    uses: dict[str, Any]
    config: dict[str, Any]
    resume_step: int | None = None
    resume_folder: str = ""
    former_folder: str = ""
    settings: RunSettings
    env: dict[str, str] = {}
    num_threads: int = 1
    import_paths: tuple[str, ...] = ()
    in_job: bool = False
    unread: int | None = None


class Message(msgspec.Struct, frozen=True, omit_defaults=True):
    """What worker and child tell each other over their pipe; a closed pipe means that the other is gone."""

    stop: str = ""
    phase: str = ""
    step: int | None = None
    num_steps: int | None = None
    process: Process | None = None


class ChildOutcome(Stored, frozen=True, kw_only=True):
    """`outcome.json`: the child's last words, written after its output is durable.

    Attributes:
        files: of the output; also of a command that was through, but whose results could not be read.
        unread: such a command's attempt, this one or an earlier.
    """

    outcome: str
    cause: Cause | None = None
    why: str = ""
    exception: str = ""
    message: str = ""
    rows: tuple[dict[str, Any], ...] = ()
    files: tuple[File, ...] = ()
    retire: dict[str, dict[str, tuple[str, ...]]] = {}
    unread: int | None = None


def git_of(order: Assignment) -> dict[str, Any]:
    """Returns the checkout's state: that of the launch, if the code is a snapshot of it."""
    if order.code is not None:
        return order.code.git
    return provenance.git_state(order.import_paths[0] if order.import_paths else ".")


def send(pipe: Connection, message: Message) -> None:
    """Sends a message to a child, which may be ending."""
    with contextlib.suppress(OSError):
        pipe.send_bytes(msgspec.json.encode(message))


LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 8192
LOG_END_BYTES = 65536
"""What is read to find a traceback."""


def read_outcome(folder: Path) -> ChildOutcome | None:
    """Returns a child's last words, None when it left none."""
    try:
        return formats.decode((folder / layout.OUTCOME).read_bytes(), ChildOutcome)
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def end_of_log(path: Path, num_bytes: int = LOG_END_BYTES) -> str:
    """Returns the end of a log, from the beginning of a line where it is long."""
    try:
        with path.open("rb") as stream:
            start = max(0, path.stat().st_size - num_bytes)
            stream.seek(start)
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    return text.partition("\n")[2] if start else text


def log_tail(path: Path) -> str:
    """Returns the last lines of a log."""
    return "\n".join(end_of_log(path, LOG_TAIL_BYTES).splitlines()[-LOG_TAIL_LINES:])
