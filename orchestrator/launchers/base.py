"""What launchers do: start workers, or have a scheduler start them. The store tells all the rest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

from orchestrator.core.records import Code
from orchestrator.core.selector import Subject
from orchestrator.core.settings import RunSettings
from orchestrator.costs import Estimate, Hardware
from orchestrator.execution.assignment import JobContext
from orchestrator.jobs.judgement import JobListing, SubmissionState
from orchestrator.jobs.records import JobEnd, Resources, Submission


class Launch(NamedTuple):
    """What a launcher is asked to start.

    Attributes:
        store: URL of the store.
        revision: of the sweep.
        request: number of the request that asked; names the logs.
        cells: ids of the cells; None for all of the revision.
        preload: modules that fork servers import.
        log_folder: local folder for the logs of workers.
        job: the scheduler's job that all this happens in, None without one.
        code: the snapshot that workers were started from, None when they run the checkout.
        named: see `WorkerOrder`.
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


class Launcher(Protocol):
    """Starts the workers of one launch and stays with them.

    Attributes:
        takes_snapshot: whether its workers run a snapshot of the code instead of the checkout.

    Made with ``(settings, num_cells, cluster)``: `launcher` in the config, how many cells there are, and
    `cluster`; making one raises `UserError` for settings that cannot be met.
    """

    takes_snapshot: bool

    def hardware(self) -> Hardware | None:
        """Says what one worker has, before anything is started; None when it cannot be known."""

    def start(self, launch: Launch) -> None:
        """Starts the workers; returns when they are started or queued."""

    def poll(self) -> int:
        """Returns how many workers live or are queued; starts anew those that died without finishing."""

    def stop(self, *, kill: bool = False) -> None:
        """Asks the workers to checkpoint and end; with `kill` ends them at once."""

    def refusal(self) -> str:
        """Says why workers would not work, "" when they do."""


class Verdict(StrEnum):
    """How giving a submission to a scheduler ended."""

    ACCEPTED = "accepted"
    LIMIT = "limit"  # a limit on jobs: fewer may be taken
    REFUSED = "refused"  # for good: the same words will be refused again
    UNREACHED = "unreached"  # it cannot have been taken
    UNCLEAR = "unclear"  # it may have been taken


class SubmitOutcome(NamedTuple):
    """The verdict, with the job's id or the scheduler's words."""

    verdict: Verdict
    job: str = ""
    said: str = ""


class Limits(NamedTuple):
    """What a scheduler says of itself.

    Attributes:
        cluster: its name.
        max_tasks: of one submission.
        controller: where it is reached, as words of which any is the same one; "" when it has but one place.
        notes: what the user should know of how it will be asked, one line each.
    """

    cluster: str
    max_tasks: int
    controller: str = ""
    notes: tuple[str, ...] = ()


@runtime_checkable
class Submitter(Protocol):
    """Gives cells to a scheduler that starts their workers later. Made like a `Launcher`.

    Attributes:
        name: a key of `orchestrator.registry.SCHEDULERS`.
        cells_per_job, max_running, max_jobs: see `conf/launcher/slurm.yaml`.
        settle_s: seconds after which a submission that the scheduler does not know was never accepted.
        attached: whether a launch stays by itself until all is done.
        file: the name under which what the scheduler is given is kept beside the logs.
    """

    name: str
    cells_per_job: int
    max_running: int | None
    max_jobs: int | None
    settle_s: float
    attached: bool
    file: str

    def hardware(self) -> Hardware | None:
        """Says what one cell may have, before anything is submitted; None when it cannot be known."""

    def meet(self, store: str, mark: bytes) -> None:
        """Finds out, before anything is recorded, whether the scheduler's workers could run.

        Args:
            store: its URL, which they must reach.
            mark: the content of its mark, by which they know it.

        Raises:
            UserError: they could not.
            InfrastructureError: it does not answer.
        """

    def limits(self, *, dry_run: bool = False) -> Limits:
        """Asks the scheduler for its limits.

        Args:
            dry_run: whether nothing will be submitted, so that its usual limits do where it does not answer.

        Raises:
            InfrastructureError: it does not answer.
        """

    def resources(
        self, cells: Sequence[tuple[Subject, Estimate | None, int]], *, known: Sequence[Subject]
    ) -> list[tuple[str, Resources]]:
        """Says what each cell's job asks for.

        Args:
            cells: each with its estimate and how often its jobs were out of host memory.
            known: all cells of the revision: what selectors may name.

        Raises:
            UserError: there is nothing that a cell fits on.
        """

    def excluded(self, filed: Sequence[SubmissionState]) -> tuple[str, ...]:
        """Names the nodes that must not be used now."""

    def logs(self, sweep: str, number: int) -> str:
        """Returns the folder for the logs of a submission's jobs, "" for one in the store."""

    def text(self, submission: Submission, *, sweep: str, store: str, code: Path, logs: Path) -> str:
        """Returns what the scheduler is given, word for word."""

    def submit(self, submission: Submission, text: str) -> SubmitOutcome:
        """Gives a submission to the scheduler."""

    def find(self, submission: Submission) -> str | None:
        """Looks for the job of a submission whose id is not known.

        Raises:
            InfrastructureError: the scheduler does not answer.
        """

    def explain(self, filed: SubmissionState, over: JobEnd, logs: Path) -> JobEnd:
        """Adds what the job's own log tells of its end."""


class Scheduler(Protocol):
    """What anybody may ask about submitted jobs, whatever their settings were.

    Made with (cluster,): `Submission.cluster`.
    """

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Asks one batched question about many jobs; never raises."""

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Returns why tasks such as ``12_3`` wait, and when they may start; never raises."""

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancels tasks that wait, and no others; one that has just started is asked to end.

        Raises:
            InfrastructureError: the scheduler did not do it.
        """
