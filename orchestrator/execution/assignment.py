"""Messages and records that a launcher, its workers and their children exchange.

A launcher sends an `Assignment` to each worker. A worker sends an `AttemptSpec` to the child that runs the
attempt. The two exchange `Message` objects over a pipe, and the child leaves a `ChildOutcome` in a file.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import msgspec

from orchestrator import formats, provenance
from orchestrator.core.evidence import Former
from orchestrator.core.failure import Cause
from orchestrator.core.records import Claim, Code, Owner, Process
from orchestrator.core.remedies import Remedied
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import InfrastructureError, is_out_of_space
from orchestrator.formats import SINCE_2, Stored
from orchestrator.jobs.records import JobContext
from orchestrator.manifest import File, fsync_path
from orchestrator.provenance import process_of
from orchestrator.spec import StageSpec
from orchestrator.store import layout


class Shortage(NamedTuple):
    """Lack of memory on a node, which forces a worker to end.

    Attributes:
        cause: the failure cause of its attempt.
        message: the reason, for people.
        at_once: whether the stage itself holds the memory, so that it must end without a last checkpoint.
    """

    cause: Cause
    message: str
    at_once: bool


class GpuShare(Stored, frozen=True, kw_only=True):
    """The GPUs that all workers of a launch share, where each stage gets a number of its own.

    Attributes:
        ids: as CUDA_VISIBLE_DEVICES takes them.
        token: distinguishes this launch's GPUs from those of others.
        stages: digest of a stage to its number of GPUs.
        chosen: digests of the stages whose number was chosen to end the sweep early; claims record it.
        default: of a stage without an estimate.
    """

    ids: tuple[str, ...]
    token: str
    stages: dict[str, int]
    chosen: frozenset[str]
    default: int


class Assignment(Stored, frozen=True, kw_only=True):
    """The work and the settings of one worker.

    Attributes:
        store: URL of the store.
        sweep, revision: the sealed sweep to work on.
        cells: ids of the worker's cells; None for all cells of the revision.
        settings: the run settings of the launch.
        slot, num_slots: index of this worker and number of workers. Each starts at its own share of the
            cells.
        env: environment variables of its children, such as CUDA_VISIBLE_DEVICES.
        num_threads: CPU threads of a child.
        import_paths: folders from which the user's stages are imported. The first holds the sweep file.
        code_digest: digest of the code at launch. A worker that finds other code claims nothing.
        job: the scheduler's job; None without a scheduler.
        max_idle_s: seconds without a claimable stage after which the worker leaves although others still
            work. A launcher sets it where it starts another worker as soon as there is work. None: stay until
            the end.
        code: the snapshot that the worker was started from; None when it runs the checkout. With a snapshot,
            its import paths replace `import_paths`, and a damaged file makes the worker refuse to claim.
        named: words of the commands that named code or settings in the checkout at launch; None without a
            checkout. Any other file that a command names is output of that command.
        request: number of the launch or rerun, whose gates the worker obeys; 0 if it is not recorded.
        gpus: the GPUs that it shares with the launch's other workers; None if `env` names its own.
        num_gpus: GPUs that the worker holds.
        device: kind of these GPUs, "" if it is not known.
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
    request: Annotated[int, SINCE_2] = 0
    gpus: Annotated[GpuShare | None, SINCE_2] = None
    num_gpus: Annotated[float, SINCE_2] = 0.0
    device: Annotated[str, SINCE_2] = ""

    @property
    def rungs(self) -> dict[Cause, tuple[int, int]]:
        """Cause to the rung of its remedy in the resources of the worker's job, and the number of rungs."""
        return {} if self.job is None else self.job.rungs


class ClaimedAttempt(msgspec.Struct, frozen=True, kw_only=True):
    """An attempt that a worker has claimed, and what it starts from.

    Attributes:
        order: the worker's assignment.
        spec: the stage in the sweep.
        cell: on whose behalf the attempt runs.
        instance: the stage instance.
        number: number of the attempt.
        claim: the claim that won.
        inputs: stage name to label to verified folder.
        input_generations: digest of each input to the generation of its product.
        begin: the values of `uses` that it starts with, and the remedies among them.
        former: the product of an earlier version of the stage. It can stand in for retired inputs.
    """

    order: Assignment
    spec: StageSpec
    cell: Cell
    instance: StageInstance
    number: int
    claim: Claim
    inputs: dict[str, dict[str, str]]
    input_generations: dict[str, int]
    begin: Remedied
    former: Former | None = None

    @property
    def key(self) -> str:
        """The key of the attempt's payload folder in the store."""
        return layout.payload(self.instance, self.number)


class AttemptSpec(Stored, frozen=True, kw_only=True):
    """The attempt that a child runs, and the folders that it uses.

    Attributes:
        store: URL of the store.
        sweep, cell: on whose behalf the attempt runs.
        instance: the stage instance.
        spec: its stage in the sweep.
        attempt: number of the attempt.
        generation: generation of the product that it makes.
        folder: the attempt's payload folder.
        inputs: stage name to instance label to folder.
        uses: the values of the config keys that the stage declares in `uses`.
        config: the cell's resolved config.
        resume_step, resume_folder: the adopted checkpoint; None and "" without one.
        former_folder: the adopted product of an earlier version of the stage; "" without one.
        settings: the run settings of the launch.
        env, num_threads, import_paths: as in `Assignment`.
        in_job: whether a scheduler may signal all processes of the job at once.
        unread: the earlier attempt whose command finished, and whose output was copied here to be read again.
            None: run the stage.
    """

    store: str
    sweep: str
    cell: str
    instance: StageInstance
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
    """A message between worker and child over their pipe. A closed pipe means that the other process is gone.

    Attributes:
        stop: from the worker: why the child should stop.
        phase: from the child: where it is ("starting", "running", "finishing").
        step, num_steps: from the child: its progress.
        process: from the child: its identity, by which others can prove that it is gone.
        stop_s: from the child: seconds that it needs to save and end after a stop; 0 while it is unknown.
        adapted: from the child: keys of `uses` whose values it replaced, because they did not fit.
        times: from the child: seconds of each of its phases, since it is "running".
        does: from the child: its present phase, in which time goes on after the message.
        saved: from the child: see `orchestrator.saving.PhaseClock.saved`.
    """

    stop: str = ""
    phase: str = ""
    step: int | None = None
    num_steps: int | None = None
    process: Process | None = None
    stop_s: float = 0.0
    adapted: dict[str, Any] = {}
    times: dict[str, float] = {}
    does: str = ""
    saved: tuple[int, float] | None = None


NO_OUTCOME, NO_SPACE = 74, 75
"""Exit codes of a child that could not write its outcome; EX_IOERR of sysexits.h, or for want of space."""


class ChildOutcome(Stored, frozen=True, kw_only=True):
    """The content of `outcome.json`: the result of a child, written after its output is durable.

    Attributes:
        outcome: "succeeded", "failed" or "released".
        cause: the failure cause; None without a failure.
        why: the reason of a release.
        exception, message: of a failure.
        rows: result rows of the stage.
        files: files of the output; also those of a finished command whose results could not be read.
        retire: an input's stage to policy to patterns of the files that are still worth keeping.
        unread: the attempt, this one or an earlier one, whose command finished without readable results.
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
    """Return the git state of the code that runs: for a snapshot, that of the checkout at launch."""
    if order.code is not None:
        return order.code.git
    return _git_at_start(order.import_paths[0] if order.import_paths else ".")


@functools.cache
def _git_at_start(folder: str) -> dict[str, Any]:
    """Return the git state as the worker first found it, so that attempts do not wait for git."""
    return provenance.git_state(folder)


# A record holds the tail of a log, so it must stay small.
LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 8192
LOG_END_BYTES = 65536
"""Bytes at the end of a log that are searched for a traceback."""


def read_outcome(folder: Path) -> ChildOutcome | None:
    """Return the outcome that a child recorded; None if it recorded none, or if the file is unreadable."""
    try:
        return formats.decode((folder / layout.OUTCOME).read_bytes(), ChildOutcome)
    # A child that was killed leaves no file or an incomplete one. Its exit code then decides.
    except (OSError, msgspec.DecodeError, UnicodeDecodeError):
        return None


def write_outcome(folder: Path, outcome: ChildOutcome, log: Callable[[str], object]) -> int:
    """Write the outcome of a child durably, and return its exit code; 0 if the outcome was written.

    Half a product is useless, and fills the disk for all others and for this file. So it is deleted if a disk
    was full, unless the next attempt reads it. Space may come back between the tries.

    Args:
        folder: of the attempt.
        outcome: to be written.
        log: writes a text to the attempt's log.
    """
    path, temporary, code = folder / layout.OUTCOME, folder / f".{layout.OUTCOME}", 0
    is_full, is_kept = outcome.cause is Cause.STORAGE, outcome.outcome == "succeeded" or outcome.unread
    for number in range(1, 6):
        for name in (layout.OUTPUT, layout.SCRATCH) if is_full and not is_kept else ():
            shutil.rmtree(folder / name, ignore_errors=True)
        try:
            with temporary.open("wb") as stream:
                stream.write(msgspec.json.encode(outcome))
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
            fsync_path(folder)
            return 0
        except OSError as error:
            is_full = is_out_of_space(error)
            code = NO_SPACE if is_full else NO_OUTCOME
            log(f"the outcome cannot be written, try {number} of 5: {error}\n")
            time.sleep(0.1 * 2**number if number < 5 else 0)
    return code


def drop_half(folder: Path) -> None:
    """Delete the output of an attempt without a product, unless by its outcome a later attempt reads that."""
    outcome = read_outcome(folder)
    for name in (layout.OUTPUT, layout.SCRATCH) if outcome is None or not outcome.unread else ():
        shutil.rmtree(folder / name, ignore_errors=True)


def end_of_log(path: Path, num_bytes: int = LOG_END_BYTES) -> str:
    """Return the end of a log; of a long log, from the beginning of a line on."""
    try:
        with path.open("rb") as stream:
            start = max(0, path.stat().st_size - num_bytes)
            stream.seek(start)
            text = stream.read().decode(errors="replace")
    except OSError:
        return ""
    # The read may begin inside a line, or inside a character: drop that incomplete first line.
    return text.partition("\n")[2] if start else text


def log_tail(path: Path) -> str:
    """Return the last lines of a log."""
    return "\n".join(end_of_log(path, LOG_TAIL_BYTES).splitlines()[-LOG_TAIL_LINES:])


def share(cells: Sequence[Cell], order: Assignment, *, later: Collection[str] = ()) -> tuple[Cell, ...]:
    """Return the worker's cells in the order in which it tries them. Workers then rarely compete for a stage.

    Cells in the order of the sweep are divided among the workers: of 8 cells and 4 workers, worker 2 starts
    at cell 4, and returns to cell 0 after cell 7. An assignment that orders its cells by length must be
    worked off from the front, so worker 2 starts at cell 2.

    Args:
        cells: of the revision.
        order: the worker's assignment.
        later: ids of cells that came to exist after it, by decisions. They come last.
    """
    start = order.slot * len(cells) // max(1, order.num_slots)
    if order.cells is not None:
        named = (*order.cells, *(cell.id for cell in cells if cell.id in later))
        wanted = {name: place for place, name in enumerate(dict.fromkeys(named))}
        in_grid_order = [cell for cell in cells if cell.id in wanted]
        cells = sorted(in_grid_order, key=lambda cell: wanted[cell.id])
        start = order.slot * len(cells) // max(1, order.num_slots) if cells == in_grid_order else order.slot
    start %= max(1, len(cells))
    return (*cells[start:], *cells[:start])


def this_owner(order: Assignment, pid: int) -> Owner:
    """Return the identity of the calling worker.

    Args:
        order: its assignment.
        pid: its process id.

    Raises:
        InfrastructureError: the process cannot be described.
    """
    process = process_of(pid)
    # Without the start time nobody could prove this worker gone, and each of its claims would block others
    # for a whole lease.
    if process is None:
        raise InfrastructureError(f"cannot read this process's start time (pid {pid})")
    job = order.job
    if job is None:
        return Owner(host=platform.node(), process=process, slot=order.slot)
    return Owner(
        host=job.node or platform.node(),
        process=process,
        cluster=job.cluster,
        job=job.job,
        array_index=job.array_index,
        restart_count=job.restart_count,
        slot=order.slot,
    )
