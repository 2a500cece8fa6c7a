"""The records of the store protocol: small JSON objects with one writer each.

Records that are *created* (only if absent) carry a nonce, so that a writer whose reply was lost can
tell its own record from another's. Times are UTC, ISO 8601, for people: no decision compares clocks.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from orchestrator.core.failure import Cause
from orchestrator.core.settings import Retention, RunSettings
from orchestrator.core.sweep import Sweep
from orchestrator.formats import FORMAT, SINCE_2, Stored
from orchestrator.manifest import File, check_inside


class Record(Stored, frozen=True, kw_only=True):
    """The base of all records."""


class StoreMark(Record, frozen=True, kw_only=True):
    """`store.json`: makes a place a store, and says of which format."""

    nonce: str
    format: int = FORMAT
    created_at: str = ""


class Process(Record, frozen=True, kw_only=True):
    """A process that another on the same machine can prove to be gone.

    Attributes:
        boot_id: of the running kernel.
        namespace: of process ids; two containers on one kernel do not see each other's.
        pid: process id.
        start: start time, in the kernel's own units; tells a reused pid.
    """

    boot_id: str
    namespace: str
    pid: int
    start: str


class Owner(Record, frozen=True, kw_only=True):
    """Who holds an attempt: a worker's process, and the scheduler's name for its job.

    The same (cluster, job, array_index, slot) with a lower `restart_count` is the same worker before its
    scheduler started it anew: it needs no wait.
    """

    host: str
    process: Process
    cluster: str = "local"
    job: str = ""
    array_index: int = 0
    restart_count: int = 0
    slot: int = 0


class Supersedes(Record, frozen=True, kw_only=True):
    """Why a claim may follow an attempt that left no `end`: the evidence, and the cause it counts as."""

    attempt: int
    evidence: str
    cause: Cause


class Claim(Record, frozen=True, kw_only=True):
    """`claim.json`: an attempt exists, and whose it is.

    Attributes:
        lease_s: seconds without a new heartbeat after which an observer may call it dead.
        generation: of the product that it may make, fixed here.
        sweep, cell: on whose behalf; another sweep may share the stage.
    """

    nonce: str
    owner: Owner
    lease_s: float
    generation: int
    sweep: str
    cell: str
    supersedes: Supersedes | None = None
    at: str = ""


class Parent(Record, frozen=True, kw_only=True):
    """The checkpoint that an attempt went on from."""

    attempt: int
    step: int


class StartRecord(Record, frozen=True, kw_only=True):
    """`start.json`: what an attempt started from. Written after the claim, before the child.

    Attributes:
        parent: the checkpoint adopted, None for a start from nothing.
        uses: the values of the stage's `uses` keys.
        inputs: digest of each input to the generation of the product that is used.
        provenance: code, packages, host and command, see `orchestrator.provenance`.
        work: the attempt whose work folder was taken over, None for an empty one.
        unread: the attempt whose output is only read again, None where the stage runs.
    """

    parent: Parent | None
    uses: dict[str, Any]
    provenance: dict[str, Any]
    inputs: dict[str, int] = {}
    at: str = ""
    work: Annotated[int | None, SINCE_2] = None
    unread: Annotated[int | None, SINCE_2] = None


class Heartbeat(Record, frozen=True, kw_only=True):
    """`heartbeat.json`: put every third of the lease; only a changing counter means life."""

    counter: int
    phase: str
    step: int | None = None
    num_steps: int | None = None
    child: Process | None = None
    at: str = ""


class End(Record, frozen=True, kw_only=True):
    """`end.json`: how an attempt ended.

    Attributes:
        outcome: ``released`` is no failure: the worker gave the attempt back. ``unknown`` is a word of a
            later version, which counts as a failure of unknown cause.
        cause: of a failure.
        why: of a release: stopped, deadline, preempted, superseded, already_done, input_retired, not_kept or
            cancelled.
        exception: class name, if one was raised.
        message: one line.
        log_tail: the last lines of the log.
        seconds: wall time of the attempt.
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


class Done(Record, frozen=True, kw_only=True):
    """`done/<stage>/<digest>.<g>.json`: the fact that a stage is done, and what it left.

    Attributes:
        attempt: whose output folder holds the files.
        files: with paths relative to that folder.
        rows: the result rows that the stage returned.
        inputs: digest of each input to the generation of the product that was used.
        retire: name of an input's stage to policy to patterns of its files that are still worth keeping.
        code: version of the code that made it, see `orchestrator.provenance.code_version`.
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
    """`void/<stage>/<digest>.<g>.json`: generation g no longer counts."""

    nonce: str
    generation: int
    kind: Literal["discarded", "damaged", "unknown"]
    reason: str
    by: str
    at: str = ""


class Retired(Record, frozen=True, kw_only=True):
    """`retired/<stage>/<policy>/<digest>.<g>.json`: files absent by decision, not damage.

    Attributes:
        attempt: whose output folder held the files.
        files: what is retired; the first such record of a generation and policy stands.
        why: what was made from the product and needs them no more.
        by: after which stage of which cell.
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
        kind: ``exec`` is a file with the executable bit, ``folder`` one that holds no file.
        sha256: of a file's content, or of a link's relative target.
    """

    path: str
    kind: Literal["file", "exec", "link", "folder"]
    size: int
    sha256: str

    def __post_init__(self) -> None:
        check_inside(self.path)


class CodeManifest(Record, frozen=True, kw_only=True):
    """`code/<digest>.json`: a code snapshot is whole. Its digest is that of its files."""

    files: tuple[CodeFile, ...]


class Code(Record, frozen=True, kw_only=True):
    """The code at a launch, for workers that start later or elsewhere.

    Attributes:
        digest: of the snapshot in the store.
        import_paths: in the snapshot's folder; an absolute one is of an installed package.
        git: the checkout's state, as in `provenance`, without the diff: a snapshot has no history of its own.
        version: digest of the checkout, as of workers that run it where it lies; "" where it was not kept.
    """

    digest: str
    import_paths: tuple[str, ...]
    git: dict[str, Any] = {}
    version: Annotated[str, SINCE_2] = ""


class Request(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/requests/<n>.json`: what a user asked for; their order is their meaning.

    Attributes:
        cells: whom it concerns; None for all cells of the revision.
        after: digest of a stage to the attempt after which attempts count against budgets again.
        settings: the engine settings of a launch or rerun.
        import_paths: where the user's stages are importable on the machine that asked.
        code: the snapshot that workers run; None when they run what lies at `import_paths`.
        folder: the working folder.
        provenance: code, packages, host and command line.
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


class Revision(Record, frozen=True, kw_only=True):
    """`sweeps/<sweep>/<k>.json`: a sealed sweep. Equal content is the same revision."""

    nonce: str
    number: int
    content: str
    sweep: Sweep
    source: str = ""
    overrides: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    at: str = ""
