"""The records of the store protocol: small JSON objects with one writer each.

A record that is *created* (written only if absent) carries a nonce, a random text. The reply to a create may
get lost, and the writer then finds a record at its key. The nonce shows whether it is the writer's own:

    worker A  create claim (nonce 71..)  -> no reply
    worker A  read claim: nonce 71..     -> own record, A holds the claim
                          nonce e4..     -> another worker was first

Times are UTC in ISO 8601 and meant for people. No decision compares the clocks of two machines.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from orchestrator.core.failure import Cause
from orchestrator.core.settings import Retention, RunSettings
from orchestrator.core.sweep import ComposedSweep, GateFacts
from orchestrator.formats import FORMAT, SINCE_2, Stored
from orchestrator.manifest import File, check_inside


class Record(Stored, frozen=True, kw_only=True):
    """Base class of all records."""


class StoreMark(Record, frozen=True, kw_only=True):
    """`store.json`: marks a folder or bucket as a store, and states its format."""

    nonce: str
    format: int = FORMAT
    created_at: str = ""


class Process(Record, frozen=True, kw_only=True):
    """A process, identified so that another process on the same machine can prove that it is gone.

    Attributes:
        boot_id: of the running kernel; it changes at each boot.
        namespace: of process ids. Two containers on one kernel do not see each other's processes.
        pid: process id.
        start: start time in the kernel's own units. It differs if the pid was reused.
    """

    boot_id: str
    namespace: str
    pid: int
    start: str


class Owner(Record, frozen=True, kw_only=True):
    """The owner of an attempt: a worker's process, and the scheduler's name for its job.

    The same (cluster, job, array_index) with a lower `restart_count` is the same worker before its job was
    restarted, if its slot is 0. That owner is gone. Workers of a driver (slots from 1) outlive its restart.

    Attributes:
        host: name of the machine.
        process: the worker's process.
        cluster: name of the scheduler's cluster, ``local`` without one.
        job: the scheduler's id of the job, "" without one.
        array_index: of the task in its job array.
        restart_count: how often the scheduler restarted the job.
        slot: number of the worker in its job; 0 in a job that is one worker.
    """

    host: str
    process: Process
    cluster: str = "local"
    job: str = ""
    array_index: int = 0
    restart_count: int = 0
    slot: int = 0


class Supersedes(Record, frozen=True, kw_only=True):
    """Why a claim may follow an attempt without an `end` record.

    Attributes:
        attempt: the number of the earlier attempt.
        evidence: how its end was established.
        cause: the failure cause that it counts as.
    """

    attempt: int
    evidence: str
    cause: Cause


class Claim(Record, frozen=True, kw_only=True):
    """`claim.json`: an attempt exists, and this is its owner.

    Attributes:
        nonce: identifies the writer.
        owner: the worker that holds the attempt.
        lease_s: seconds without a new heartbeat after which an observer may consider the attempt dead.
        generation: of the product that the attempt may make. It is fixed at the claim, so that an attempt
            that was superseded can never overwrite a newer product.
        sweep, cell: on whose behalf the stage runs; another sweep may share the stage.
        supersedes: the earlier attempt that left no `end`, if there was one.
        at: time of the claim.
        chosen_gpus: GPUs that were chosen for the cell, which it keeps; 0 if none were. See
            `hardware.moldable`.
    """

    nonce: str
    owner: Owner
    lease_s: float
    generation: int
    sweep: str
    cell: str
    supersedes: Supersedes | None = None
    at: str = ""
    chosen_gpus: Annotated[int, SINCE_2] = 0


class Parent(Record, frozen=True, kw_only=True):
    """The checkpoint from which an attempt resumed."""

    attempt: int
    step: int


class StartRecord(Record, frozen=True, kw_only=True):
    """`start.json`: what an attempt started from. It is written after the claim and before the child starts.

    Attributes:
        parent: the checkpoint it resumed from; None for a start from nothing.
        uses: the values of the stage's `uses` keys, as changed by remedies and by the stage itself.
        provenance: code, packages, host and command, see `orchestrator.provenance`.
        inputs: digest of each input to the generation of the product that is used.
        at: time of the start.
        work: the attempt whose work folder was taken over; None for an empty folder.
        unread: the attempt whose output is only read again; None if the stage runs.
        remedies, before: cause to rung and number of rungs; changed keys of `uses` to configured values.
    """

    parent: Parent | None
    uses: dict[str, Any]
    provenance: dict[str, Any]
    inputs: dict[str, int] = {}
    at: str = ""
    work: Annotated[int | None, SINCE_2] = None
    unread: Annotated[int | None, SINCE_2] = None
    remedies: Annotated[dict[str, tuple[int, int]], SINCE_2] = {}
    before: Annotated[dict[str, Any], SINCE_2] = {}


class TimeSpent(Record, frozen=True, kw_only=True):
    """How an attempt has spent its time so far, by its worker's monotonic clock, in seconds.

    Attributes:
        held_s: for which the worker had held its GPUs by then, since its own start.
        seconds: of the attempt, since its claim.
        phases: the parts of `seconds`, by the name of a phase; see `orchestrator.saving.Phase`.
        saved_step: step of the last complete checkpoint; None without one.
        saved_s: compute and evaluation that this checkpoint holds, of this attempt alone.
    """

    held_s: float = 0.0
    seconds: float = 0.0
    phases: dict[str, float] = {}
    saved_step: int | None = None
    saved_s: float = 0.0


class Heartbeat(Record, frozen=True, kw_only=True):
    """`heartbeat.json`: replaced every third of the lease.

    Only a counter that changes proves life. Times cannot, since the clocks of machines differ.

    Attributes:
        counter: increased by each heartbeat.
        phase: what the worker or its child is doing.
        step: the training step reached, None outside training.
        num_steps: the number of steps in all, if known.
        child, at: the process that computes, and time of the heartbeat.
        spent: how the attempt has spent its time so far; None in older records.
    """

    counter: int
    phase: str
    step: int | None = None
    num_steps: int | None = None
    child: Process | None = None
    at: str = ""
    spent: Annotated[TimeSpent | None, SINCE_2] = None


class End(Record, frozen=True, kw_only=True):
    """`end.json`: how an attempt ended.

    Attributes:
        nonce: identifies the writer.
        outcome: ``released`` is not a failure: the worker gave the attempt back. ``unknown`` stands for a
            value that a later version wrote; it counts as a failure of unknown cause.
        cause: of a failure.
        why: of a release: stopped, deadline, preempted, superseded, already_done, input_retired, not_kept,
            cancelled, budget or held.
        exception: class name, if an exception was raised.
        message, log_tail: one line, and the last lines of the log.
        seconds, at: wall time of the attempt, and time of the end.
        spent: how the attempt spent its time; None in older records.
    """

    nonce: str
    outcome: Literal["succeeded", "failed", "released", "unknown"]
    cause: Cause | None = None
    why: str = ""
    exception: str = ""
    message: str = ""
    log_tail: str = ""
    seconds: float = 0.0
    at: str = ""
    spent: Annotated[TimeSpent | None, SINCE_2] = None


class Done(Record, frozen=True, kw_only=True):
    """`done/<stage>/<digest>.<g>.json`: the stage is done, and this is its product of generation g.

    Attributes:
        nonce: identifies the writer.
        stage, digest: name in the sweep file, and digest of the stage instance.
        generation: of the product.
        attempt: the attempt whose output folder holds the files.
        files: the product's files, with paths relative to that folder.
        rows: the result rows that the stage returned.
        seconds: wall time of the attempt.
        inputs: digest of each input to the generation of the product that was used.
        retire: name of an input's stage to policy to patterns of the input's files that are worth keeping.
        code: version of the code that made the product, see `orchestrator.provenance.code_version`.
        at: time at which the product was complete.
    """

    nonce: str
    stage: str
    digest: str
    generation: int
    attempt: int
    files: tuple[File, ...]
    rows: tuple[dict[str, Any], ...]
    seconds: float
    inputs: dict[str, int] = {}
    retire: dict[str, dict[str, tuple[str, ...]]] = {}
    code: str = ""
    at: str = ""


class Void(Record, frozen=True, kw_only=True):
    """`void/<stage>/<digest>.<g>.json`: the product of generation g no longer counts.

    Attributes:
        nonce: identifies the writer.
        generation: of the product.
        kind: whether a user discarded it or its files were damaged; ``unknown``: of a later version.
        reason: one line, for people.
        by, at: who wrote the record, and when.
    """

    nonce: str
    generation: int
    kind: Literal["discarded", "damaged", "unknown"]
    reason: str
    by: str
    at: str = ""


class Retired(Record, frozen=True, kw_only=True):
    """`retired/<stage>/<policy>/<digest>.<g>.json`: files deleted on purpose, so not damaged.

    Attributes:
        nonce: identifies the writer.
        generation: of the product.
        attempt: the attempt whose output folder held the files.
        policy: the retention policy that applied.
        files: the deleted files. For each generation and policy, the first such record is final.
        why: which stages were made from the product and need the files no more.
        by: the stage and cell after which the files were deleted.
        at: time of the record.
    """

    nonce: str
    generation: int
    attempt: int
    policy: Retention
    files: tuple[File, ...]
    why: str
    by: str
    at: str = ""


class CodeFile(Record, frozen=True, kw_only=True):
    """One entry of a code snapshot.

    Attributes:
        path: relative to the snapshot's folder, with ``/``.
        kind: ``exec`` is a file with the executable bit, ``folder`` an empty folder.
        size: in bytes.
        sha256: of a file's content, or of a link's relative target.
    """

    path: str
    kind: Literal["file", "exec", "link", "folder"]
    size: int
    sha256: str

    def __post_init__(self) -> None:
        # A record may come from anyone with access to the store; it must not name files outside the folder.
        check_inside(self.path)


class CodeManifest(Record, frozen=True, kw_only=True):
    """`code/<digest>.json`: a code snapshot is complete. Its digest is computed from its files."""

    files: tuple[CodeFile, ...]


class Code(Record, frozen=True, kw_only=True):
    """The code at a launch, for workers that start later or on other machines.

    Attributes:
        digest: of the snapshot in the store.
        import_paths: relative to the snapshot's folder; an absolute path is that of an installed package.
        git: the checkout's state, as in `provenance`, without the diff. A snapshot itself has no git history.
        version: digest of the checkout, as workers record it that run it; "" if not recorded.
    """

    digest: str
    import_paths: tuple[str, ...]
    git: dict[str, Any] = {}
    version: Annotated[str, SINCE_2] = ""


class Request(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/requests/<n>.json`: a user's command. Later requests take precedence over earlier ones.

    Attributes:
        nonce: identifies the writer.
        number: position in the sequence of the sweep's requests.
        verb: the command. ``unknown`` stands for one that a later version wrote; it has no effect.
        revision: the revision of the sweep that is meant.
        cells: the ids of the cells that are meant; None for all cells of the revision.
        after: digest of a stage to attempt number; only later attempts count against budgets.
        reason: the user's reason.
        settings: the run settings of a launch or rerun.
        import_paths: where the user's stages can be imported on the machine of the command.
        code: the snapshot that workers run; None if they run the code at `import_paths`.
        folder: the working folder of the command.
        provenance: code, packages, host and command line.
        by, at: the user, and the time of the command.
        gates: what the gates of a launch or rerun are for; None without any.
        failures: of a launch or rerun, digest of a stage to its last attempt, for stages of other cells that
            have failed: up to there, their failures hold the named cells back no more. None: not recorded.
        last_submission: of a launch or rerun, the newest submission that it found, or 0. None: not recorded.
        held: of a launch or rerun, cell to the submission whose job it found open.
    """

    nonce: str
    number: int
    verb: Literal["launch", "rerun", "cancel", "discard", "unknown"]
    revision: int
    cells: tuple[str, ...] | None = None
    after: dict[str, int] = {}
    reason: str = ""
    settings: RunSettings | None = None
    import_paths: tuple[str, ...] = ()
    code: Code | None = None
    folder: str = ""
    provenance: dict[str, Any] = {}
    by: str = ""
    at: str = ""
    gates: Annotated[GateFacts | None, SINCE_2] = None
    failures: Annotated[dict[str, int] | None, SINCE_2] = None
    last_submission: Annotated[int | None, SINCE_2] = None
    held: Annotated[dict[str, int], SINCE_2] = {}


class Revision(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/<k>.json`: a sealed sweep. Equal content is the same revision.

    Attributes:
        nonce: identifies the writer.
        number: of the revision, from 1.
        content: digest of `sweep`.
        sweep: the sealed sweep.
        source: the sweep file.
        overrides: of the command line.
        notes: remarks from composition, such as merged cells.
        at: time at which it was sealed.
    """

    nonce: str
    number: int
    content: str
    sweep: ComposedSweep
    source: str = ""
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    at: str = ""
