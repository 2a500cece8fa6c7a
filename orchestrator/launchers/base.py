"""The interfaces between the engine and whatever starts workers.

A launcher only gets workers running. Workers find their stages in the store and record results there, so a
launcher neither hands out stages nor collects results. `Launcher` starts workers itself and supervises them.
`Submitter` gives cells to a scheduler, which starts workers later. `Scheduler` queries and cancels such jobs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

import msgspec
from msgspec import structs

from orchestrator.core.records import Code
from orchestrator.core.selector import Subject, select
from orchestrator.core.settings import RunSettings
from orchestrator.costs import DEVICES, Estimate, Hardware
from orchestrator.errors import UserError, nearest
from orchestrator.jobs.cells import scheduler_of
from orchestrator.jobs.judgement import JobListing, SubmissionState
from orchestrator.jobs.records import JobContext, JobEnd, Resources, Shortfalls, Submission
from orchestrator.registry import SCHEDULERS, lookup
from orchestrator.store.ledger import Ledger

Positive = Annotated[int, msgspec.Meta(ge=1)]
"""A setting that is at least 1."""

NotNegative = Annotated[float, msgspec.Meta(ge=0)]
"""A setting that is at least 0."""

Amount = Annotated[float, msgspec.Meta(gt=0)]
"""A setting that is more than 0."""

Entry = TypeVar("Entry", bound=msgspec.Struct)


class LaunchGpus(NamedTuple):
    """The GPUs that a launch may use at once.

    Attributes:
        number: in all.
        per_node: of one node. A cell whose number of GPUs is chosen gets at most so many.
    """

    number: int
    per_node: int


class GpuNumbers(NamedTuple):
    """How many GPUs the stages of a launch get (`hardware.moldable`).

    Attributes:
        stages: digest of a stage to its number. A stage without an estimate is not among them.
        chosen: digests of the stages whose number was chosen.
    """

    stages: dict[str, int]
    chosen: frozenset[str]


class Launch(NamedTuple):
    """Everything that a `Launcher` needs to start the workers of one launch.

    Attributes:
        store: URL of the store.
        sweep: name of the sweep.
        revision: number of the sweep's revision.
        request: number of the request behind this launch; log files are named after it.
        cells: ids of the cells to work on; None for all cells of the revision.
        settings: run settings of the launch.
        import_paths: folders from which stages are imported.
        code_digest: digest of the code at launch.
        preload: modules that fork servers import.
        log_folder: local folder for the logs of workers.
        job: the scheduler's job in which all of this happens; None outside of a job.
        code: the snapshot that workers were started from; None when they run the checkout.
        named: files of the checkout that commands name; see `Assignment`.
        gpus: how many GPUs each stage gets; None for the launcher's `gpus_per_worker`.
    """

    store: str
    sweep: str
    revision: int
    request: int
    cells: tuple[str, ...] | None
    settings: RunSettings
    import_paths: tuple[str, ...]
    code_digest: str
    preload: tuple[str, ...]
    log_folder: str
    job: JobContext | None = None
    code: Code | None = None
    named: tuple[str, ...] | None = None
    gpus: GpuNumbers | None = None


class Launcher(Protocol):
    """A launcher that starts the workers of one launch itself and stays with them.

    Implementations are constructed as ``(settings, num_cells, cluster)``: the config's `launcher`, the number
    of cells, and the config's `cluster`. The constructor raises `UserError` for settings that cannot be met.

    Attributes:
        takes_snapshot: whether its workers run a snapshot of the code instead of the checkout.
    """

    takes_snapshot: bool

    def hardware(self) -> Hardware | None:
        """Return what one worker has, before anything is started; None if it cannot be determined."""

    def gpus(self) -> LaunchGpus | None:
        """Return the GPUs among which those of each cell are chosen; None if there are none."""

    def start(self, launch: Launch) -> None:
        """Start the workers, and return once they are started or queued."""

    def poll(self) -> int:
        """Return how many workers live or are queued. Restart those that died before they were finished."""

    def stop(self, *, kill: bool = False) -> None:
        """Signal all workers to save a checkpoint and end; with `kill`, kill them at once."""

    def refusal(self) -> str:
        """Return why workers refused to work, "" if none did."""


class Verdict(StrEnum):
    """How an attempt to submit to a scheduler ended."""

    ACCEPTED = "accepted"
    LIMIT = "limit"  # a limit on jobs was reached: a smaller submission may pass
    REFUSED = "refused"  # permanently: the same submission would be refused again
    UNREACHED = "unreached"  # the scheduler cannot have accepted it
    UNCLEAR = "unclear"  # the scheduler may have accepted it


class SubmitOutcome(NamedTuple):
    """The verdict on a submission, with the job's id if it was accepted, or else the scheduler's message."""

    verdict: Verdict
    job: str = ""
    message: str = ""


class Limits(NamedTuple):
    """What a scheduler reports about itself.

    Attributes:
        cluster: its name.
        max_tasks: the most tasks that one submission may have.
        controller: addresses of the scheduler, separated by spaces. Two values that share an address mean the
            same scheduler. "" for schedulers with only one address.
        notes: what the user should know about the submission, one line each.
    """

    cluster: str
    max_tasks: int
    controller: str = ""
    notes: tuple[str, ...] = ()


@runtime_checkable
class Submitter(Protocol):
    """A launcher that gives cells to a scheduler, which starts their workers later.

    Implementations are constructed like those of `Launcher`.

    Attributes:
        name: a key of `orchestrator.registry.SCHEDULERS`.
        cells_per_job, max_running, max_jobs: see `conf/launcher/slurm.yaml`.
        settle_s: seconds after which a submission that the scheduler does not list was never accepted.
        attached: whether a launch stays until all cells are done, even if the user did not request it.
        file: name of the file, beside the logs, that keeps a copy of what the scheduler receives.
    """

    name: str
    cells_per_job: int
    max_running: int | None
    max_jobs: int | None
    settle_s: float
    attached: bool
    file: str

    def hardware(self) -> Hardware | None:
        """Return what one cell may have, before anything is submitted; None if it cannot be determined."""

    def gpus(self) -> LaunchGpus | None:
        """Return the GPUs among which those of each cell are chosen; None on a cluster without GPUs.

        Raises:
            UserError: the settings lack the number that the launch may use.
        """

    def meet(self, store: str, mark: bytes) -> None:
        """Check, before anything is recorded, that the scheduler's workers could run.

        Args:
            store: URL of the store, which the workers must reach.
            mark: content of the store's mark, by which they identify it.

        Raises:
            UserError: the workers could not run.
            InfrastructureError: the scheduler does not answer.
        """

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Return the scheduler's limits.

        Args:
            dry_run: whether nothing will be submitted. Then the usual limits suffice if the scheduler does
                not answer.

        Raises:
            InfrastructureError: the scheduler does not answer.
        """

    def resources(
        self,
        cells: Sequence[tuple[Subject, Estimate | None, Shortfalls]],
        *,
        known: Sequence[Subject],
        chosen: Mapping[str, int],
    ) -> list[tuple[str, Resources]]:
        """Return what the job of each cell requests, as pairs of cell id and resources.

        Args:
            cells: each with its estimate, and how many of its jobs lacked memory or hours.
            known: all cells of the revision, which selectors may name.
            chosen: id of a cell to its GPUs, where they were chosen; its estimate is for so many.

        Raises:
            UserError: a cell fits on nothing that the scheduler has.
        """

    def excluded(
        self,
        filed: Sequence[SubmissionState],
        ledger: Ledger,
        cluster: str,
        *,
        quarantine_s: float,
        is_dry: bool,
    ) -> tuple[str, ...]:
        """Return the nodes that new jobs must not use now.

        Args:
            filed: all submissions of the sweep.
            ledger, cluster: the store with reports about nodes, and the name of the scheduler's cluster.
            quarantine_s: how long a node is left out that was reported, in seconds.
            is_dry: whether nothing may be written, not even a probe of the store's clock.
        """

    def logs(self, sweep: str, number: int) -> str:
        """Return the folder for the logs of a submission's jobs, "" for the one in the store."""

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Return the exact text that the scheduler receives."""

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        """Submit the text to the scheduler."""

    def find(self, submission: Submission) -> str | None:
        """Return the id of a submission's job by its name, as after a lost reply; None if there is none.

        Raises:
            InfrastructureError: the scheduler does not answer.
        """

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        """Return the end of a job, completed by what the job's own log contains about it."""


class Scheduler(Protocol):
    """Queries about submitted jobs, and their cancellation, whatever the settings of their launch were.

    Implementations are constructed as ``(cluster,)``, with `Submission.cluster`.
    """

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Query many jobs in one batch; never raise."""

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return why tasks such as ``12_3`` wait, and when they may start; never raise."""

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        """Cancel tasks of a submission that wait. A task that has started in the meantime is stopped.

        Raises:
            InfrastructureError: the scheduler did not cancel them.
        """

    def release(self, tasks: Sequence[str]) -> None:
        """Let tasks start that are held since a node failed to start them, or raise `InfrastructureError`."""


def hardware_for(launcher: Launcher | Submitter, settings: RunSettings) -> Hardware | None:
    """Return what one cell may have, also where the number of its GPUs is chosen; None if it is unknown."""
    hardware = launcher.hardware()
    gpus = launcher.gpus() if settings.hardware.moldable else None
    if hardware is None or gpus is None:
        return hardware
    return structs.replace(hardware, max_gpus=max(hardware.max_gpus, gpus.per_node))


def stepped(amount: float) -> float:
    """Round up to the next of 1, 1.5, 2, 3, 4, 6, 8, ...

    Cells with similar needs then request the same amount, and can share a job array: 5 and 5.7 become 6.
    """
    power = 2.0 ** max(0, math.ceil(math.log2(amount)))
    return 0.75 * power if amount <= 0.75 * power and power > 1 else power


def check_device(device: str, key: str) -> None:
    """Raise unless plans can be made for a device.

    Raises:
        UserError: it is neither ``cpu`` nor a key of `orchestrator.costs.DEVICES`.
    """
    if device not in (known := [*DEVICES, "cpu"]):
        raise UserError(f"unknown device {device!r} in {key}", allowed=nearest(device, known))


def check_variables(names: Iterable[str], key: str) -> None:
    """Raise unless all names can be those of environment variables.

    Raises:
        UserError: one cannot.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise UserError(f"{name!r} in {key} is no name of a variable")


def overrides_of(
    entries: Sequence[Entry], cells: Iterable[str], known: Sequence[Subject]
) -> dict[str, dict[str, Any]]:
    """Return what `launcher.resources` sets for each cell. Later entries override earlier ones by field.

    Args:
        entries: each with a selector ``only``, "" for all cells; a field that is None sets nothing. Fields
            that are mappings are combined.
        cells: ids of the cells.
        known: all cells of the revision, which selectors may name.

    Raises:
        UserError: a selector is wrong.
    """
    found: dict[str, dict[str, Any]] = {cell: {} for cell in cells}
    subjects = [(subject.cell, subject) for subject in known]
    for entry in entries:
        fields = {name: value for name, value in structs.asdict(entry).items() if value is not None}
        only = fields.pop("only")
        for cell in found.keys() & set(select([only] if only else [], subjects)):
            before = found[cell]
            found[cell] = before | {
                name: {**before.get(name, {}), **value} if isinstance(value, dict) else value
                for name, value in fields.items()
            }
    return found


def scheduler(launcher: str, cluster: str) -> Scheduler:
    """Return the client that queries a scheduler about the jobs of a launcher on a cluster.

    Args:
        launcher: name of the launcher, such as ``slurm``.
        cluster: name of the cluster.

    Raises:
        UserError: there is no such launcher.
    """
    made: Scheduler = lookup(SCHEDULERS, launcher, kind="launcher")(cluster)
    return made


def ask_schedulers(filed: Sequence[SubmissionState]) -> dict[tuple[str, str], JobListing]:
    """Query schedulers about all tasks that may not be over, with one query for each scheduler.

    A task whose job has reported its own end needs no query, unless the job is to start again.

    Args:
        filed: the submissions of a sweep.

    Returns:
        By launcher and cluster, the scheduler's answer.
    """
    open_jobs: dict[tuple[str, str], set[str]] = {}
    for each in filed:
        silent = [t for t in each.open_tasks if t not in each.reports or each.reports[t].requeued]
        if each.accepted is not None and silent:
            open_jobs.setdefault(scheduler_of(each.submission), set()).add(each.accepted.job)
    return {place: scheduler(*place).jobs(ids) for place, ids in open_jobs.items()}
