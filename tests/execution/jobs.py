"""A worker as a batch script starts it, and what it left in the store."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from orchestrator.core.records import Claim, End
from orchestrator.core.sweep import ComposedSweep
from orchestrator.jobs.records import JobContext as SchedulersJob
from orchestrator.saving import MANIFEST
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from tests import forked
from tests.execution.faults import order_for
from tests.execution.waiting import signal_all, until
from tests.store.builders import instance_of, ledger_at, seal, sweep_of

IN_JOB = SchedulersJob(cluster="here", job="7")


class Job:
    """A worker's process, which runs the one stage of a sweep."""

    def __init__(
        self, store: Path, sweep: ComposedSweep, job: SchedulersJob | None = None, **policy: object
    ) -> None:
        self.folder_of_store, self.instance = store, instance_of(sweep)
        file = store.parent / "order.json"
        policy = {"grace_s": 60.0, **policy}
        order = order_for(store, sweep.name, policy=policy, job=job, import_paths=(str(store.parent),))
        file.write_bytes(msgspec.json.encode(order))
        self.process = forked.Started("orchestrator.execution.main", [str(file)])

    def folder(self, attempt: int = 1) -> Path:
        """Where an attempt writes."""
        return self.folder_of_store / layout.payload(self.instance, attempt)

    def log(self, attempt: int = 1) -> list[str]:
        """The lines of an attempt's log so far."""
        path = self.folder(attempt) / layout.LOG
        return path.read_text().splitlines() if path.exists() else []

    def wait_for(self, line: str, attempt: int = 1) -> None:
        """Waits until a line of the stage's log says so."""
        until(lambda: line in self.log(attempt))

    def steps(self, attempt: int = 1) -> list[int]:
        """The checkpoints of an attempt that count, by their manifests."""
        manifests = self.folder(attempt).glob(f"{layout.CHECKPOINTS}/*/{MANIFEST}")
        return sorted(msgspec.json.decode(path.read_bytes())["step"] for path in manifests)

    def end(self, attempt: int = 1) -> End:
        """Waits until the worker has ended; returns the end of an attempt."""
        self.process.wait(60)
        found = ledger_at(self.folder_of_store).attempt(self.instance, attempt)
        assert found is not None and found.end is not None
        return found.end

    def claim(self, attempt: int) -> Claim:
        """The claim of an attempt."""
        found = ledger_at(self.folder_of_store).attempt(self.instance, attempt)
        assert found is not None and found.claim is not None
        return found.claim

    def kill_all(self) -> None:
        """Kills the worker and all its descendants at once, as the loss of a node does."""
        signal_all(self.process.pid, signal.SIGKILL)
        self.process.wait()


class Jobs:
    """Starts jobs for a test, each with a stage that is one command or function."""

    def __init__(self, store: Path) -> None:
        self._store, self._started = store, list[Job]()

    def __call__(self, spec: StageSpec | str, job: SchedulersJob | None = None, **policy: object) -> Job:
        """Seals a sweep of one stage, if there is none yet, and starts a worker for it."""
        if isinstance(spec, str):
            spec = StageSpec(command=spec)
        spec = msgspec.structs.replace(spec, reads=("seed",))
        sweep = sweep_of(1, {"fit": spec})
        if not self._started:
            seal(self._store, sweep)
        self._started.append(Job(self._store, sweep, job, **policy))
        return self._started[-1]

    def close(self) -> None:
        """Ends what still runs."""
        for job in self._started:
            if job.process.poll() is None:
                job.kill_all()


@pytest.fixture
def run(store: Path) -> Iterator[Jobs]:
    """Starts workers, which are ended after the test."""
    jobs = Jobs(store)
    yield jobs
    jobs.close()
