"""A store of a study with cells of every history, each number of its own, at a moment of `tests.seen`.

Times are relative to the start of that clock, 2027-01-15T08:00:00Z. All workers are on other machines.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.core.grid import Chains
from orchestrator.core.nodes import NodeReport
from orchestrator.core.notices import NoticeOutcome, NoticeTry
from orchestrator.core.records import (
    Code,
    End,
    Heartbeat,
    Parent,
    Request,
    Retired,
    Revision,
    Supersedes,
    TimeSpent,
    Void,
)
from orchestrator.core.selector import Subject
from orchestrator.core.settings import (
    NotifySettings,
    Policy,
    RunSettings,
    SpendingLimit,
    StoreSettings,
    TrackerSettings,
)
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.costs import Estimate, Hardware, Need
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import JobListing, JobObservation, Phase
from orchestrator.jobs.records import Accepted, JobEnd, JobEndBatch, Resources, Submission, WorkerRecord
from orchestrator.stage import Config, StageSpec
from orchestrator.store import layout
from orchestrator.store.ledger import content_digest, open_ledger
from tests.store.study_records import NAME, NOW_S, Writer, at

# fmt: off
AXES = {"model": ("small", "large"), "mixture": ("none", "en", "en+es", "all", "no-sw", "de")}
FIT = StageSpec(
    run="demo:fit",
    estimate="tests.store.study:estimate",
    needs="tests.store.study:needs",
    reads=("model", "mixture", "seed"),
    uses=("batch",),
    remedies={"oom_gpu": ({"halve": "batch", "times": 2},), "nan": ({"suggest": "lower lr"},)},
)
SCORE = StageSpec(run="demo:score", reads=("items",), after=("fit",), version=2, estimate="tests.store.study:answers")


def estimate(config: Config, *, hardware: Hardware, **_: Any) -> Estimate:
    """What a fit costs: a large model takes two devices and four times as long."""
    is_large = config.model == "large"
    return Estimate(
        num_steps=100, num_tokens=4_000_000, gpu_hours=8.0 if is_large else 2.0, wall_hours=4.0 if is_large else 2.0,
        num_gpus=2 if is_large else 1, memory_gib=30.0, host_memory_gib=12.0, disk_gib=6.0, peak_disk_gib=18.0,
        lost_s=300.0, stop_s=20.0, load_s=15.0, checkpoint_share=0.05, micro_batch=8, assumptions=(f"on {hardware.device}",),
    )


def answers(config: Config, **_: Any) -> Estimate:
    """What a score costs."""
    return Estimate(
        num_generations=config["items"], generation_gpu_hours=0.5, wall_hours=0.5, num_gpus=1, num_requests=20,
        prompt_tokens=4000, completion_tokens=900, measured=True,
    )


def needs(config: Config) -> list[Need]:
    """What a fit needs: a model that is there, or one that is not."""
    problem = "it is not in the cache" if config.model == "large" else ""
    return [Need(what=f"model {config.model}", problem=problem, fetch="demo:fetch", arguments={"name": config.model})]


HISTORIES = (
    *("done", "retried", "running", "failed", "renewed", "unscored"),
    *("waiting", "cancelled", "job_failed", "released", "alike", "lost"),
)
"""What is recorded of the cells, in their order."""

TRACE = """Traceback (most recent call last):
  File "/home/ann/demo.py", line 41, in fit
    raise ValueError(f"row {row} has no answer")
ValueError: row %d has no answer
"""


def sweep_of() -> ComposedSweep:
    """The sweep of the study."""
    chains, cells = Chains({"fit": FIT, "score": SCORE}), []
    for number, labels in enumerate(itertools.product(*AXES.values())):
        axes = dict(zip(AXES, labels, strict=True))
        config = {**axes, "seed": 7, "items": 10, "batch": 32, "note": "a study"}
        columns = {"params": "0.6B" if axes["model"] == "small" else "4B"}
        chain = chains.chain(Subject(axes, columns, config))
        id_ = f"{'.'.join(labels)}-{number:08x}"
        cells.append(Cell(id=id_, axes=axes, columns=columns, config=config, stage_digests=chain))
    return ComposedSweep(
        name=NAME, description="a study of mixtures", specs=dict(chains.specs), stages=chains.stages, cells=tuple(cells)
    )


def settings() -> RunSettings:
    """The settings of its launch."""
    policy = Policy(
        retries={"oom_gpu": 2, "node_lost": 3, "timeout": 1},
        budget=SpendingLimit(gpu_hours=40.0, until="2027-01-16T08:00:00+00:00"),
        limits_s={"score": 600.0},
        breaker=2,
    )
    return RunSettings(launcher={"name": "local", "workers": 3}, notify=NotifySettings(webhook_env="HOOK"), tracker=TrackerSettings(), policy=policy, store=StoreSettings())


class Lab:
    """The scheduler of its jobs; see `orchestrator.launchers.base.Scheduler`."""

    def __init__(self, cluster: str) -> None:
        self._cluster = cluster

    def jobs(self, ids: Iterable[str]) -> JobListing:
        """Return that one job waits."""
        seen = JobObservation(Phase.QUEUED, "PENDING", name="study.1", reason="Priority", start="11:00")
        return JobListing({("4711", 0): seen}, complete=True, scope=f"the scheduler of {self._cluster}")

    def waiting(self, tasks: Sequence[str]) -> dict[str, str]:
        """Return why it waits."""
        return dict.fromkeys(tasks, "Priority, starts 11:00")

    def cancel(self, submission: Submission, tasks: Sequence[str]) -> None:
        """Refuse to cancel it."""
        raise InfrastructureError(f"{self._cluster} does not cancel {', '.join(tasks)}")

    def release(self, tasks: Sequence[str]) -> None:
        """Do nothing: no job of its is held."""


class Study(Writer):
    """Makes the store; call it within a `tests.seen.moment`.

    Args:
        root: of the store.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root, open_ledger(str(root), create=True, at=at(0)))
        self.sweep = sweep_of()
        content = content_digest(self.sweep)
        self.ledger.seal(
            lambda number: Revision(
                nonce=self.nonce(),
                number=number,
                content=content,
                sweep=self.sweep,
                source="study.yaml",
                overrides=("seed=7",),
                notes=("2 cells are merged",),
                at=at(1),
            ),
            NAME,
            content,
        )
        self._ask(1, "launch", settings=settings(), at=at(2))
        for cell, history in zip(self.sweep.cells, HISTORIES, strict=True):
            getattr(self, history)(cell, *(self.sweep.stages[digest] for digest in cell.stage_digests))
        cancelled = tuple(cell.id for cell, kind in zip(self.sweep.cells, HISTORIES, strict=True) if kind == "cancelled")
        self._ask(2, "cancel", cells=cancelled, reason="no need", at=at(3000))
        self._others()

    def _ask(self, number: int, verb: Any, **more: Any) -> None:
        code = Code(digest="c0de", import_paths=("project-0",), git={"commit": "abc123", "dirty": False}, version="v1")
        if verb == "launch":
            more = {**more, "code": code, "folder": "/home/ann", "provenance": {"argv": ["sweep", "launch"], "code": "v1"}}
        self.put(
            layout.request(NAME, number),
            Request(nonce=self.nonce(), number=number, verb=verb, revision=1, by="ann@login", **more),
        )

    # Histories

    def done(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """Both stages at the first attempt."""
        self._finish(cell, fit, 100.0, 600.0, rows=[{"loss": 0.5}])
        rows = [{"language": name, "accuracy": value} for name, value in (("en", 0.75), ("es", 0.5))]
        self._finish(cell, score, 720.0, 60.0, rows=rows)

    def retried(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A lost attempt, one without memory, and one that went on with a remedy."""
        self._claim(cell, fit, 1, 50.0)
        self._start(fit, 1, 50.0)
        self._payload(fit, 1, "step 3\n", (1, 2, 3))
        lost = Supersedes(attempt=1, evidence="its node is gone", cause=Cause.NODE_LOST)
        self._fail(
            cell, fit, Cause.OOM_GPU, "OutOfMemoryError", "tried to allocate 2 GiB", attempt=2, start_s=300.0, supersedes=lost
        )
        self._finish(cell, fit, 400.0, 900.0, attempt=3, rows=[{"loss": 0.25}], chosen_gpus=2)
        self._start(
            fit,
            3,
            400.0,
            parent=Parent(attempt=1, step=3),
            uses={"batch": 16},
            before={"batch": 32},
            remedies={"oom_gpu": (1, 2)},
            work=2,
        )
        self._finish(cell, score, 1400.0, 30.0, rows=[{"language": "en", "accuracy": 0.875}])

    def running(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A stage that runs on two GPUs, and its worker."""
        owner = self._claim(cell, fit, 1, NOW_S - 500).owner
        self._start(fit, 1, NOW_S - 500)
        self._payload(fit, 1, "step 40 of 100\n", range(1, 41))
        spent = TimeSpent(held_s=520.0, seconds=480.0, phases={"start": 30.0, "compute": 450.0}, saved_step=30, saved_s=340.0)
        beat = Heartbeat(counter=3, phase="training", step=40, num_steps=100, child=owner.process, at=at(NOW_S - 20), spent=spent)
        self.put(layout.attempt(fit, 1, layout.HEARTBEAT), beat)
        worker = WorkerRecord(
            nonce=self.nonce(),
            owner=owner,
            revision=1,
            num_gpus=2.0,
            device="H100",
            seconds=5400.0,
            start_s=9.0,
            runs=layout.payload(fit, 1),
            until_saved=(60.0, 80.0),
            began_at=at(NOW_S - 5400),
            at=at(NOW_S - 20),
        )
        self.put(layout.worker(NAME, worker.nonce), worker)

    def failed(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A fault in the data."""
        self._fail(cell, fit, Cause.DATA, "ValueError", "row 17 has no answer", log=f"step 1\n{TRACE % 17}")

    def alike(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """The same fault in another row."""
        self._fail(cell, fit, Cause.DATA, "ValueError", "row 33 has no answer", log=f"step 2\n{TRACE % 33}", start_s=900.0)

    def renewed(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A product that was discarded, and the next one, some of whose files were deleted."""
        self._finish(cell, fit, 100.0, 300.0, rows=[{"loss": 9.0}])
        void = Void(nonce=self.nonce(), generation=1, kind="discarded", reason="wrong seed", by="ann@login", at=at(500))
        self.put(layout.void(fit, 1), void)
        done = self._finish(cell, fit, 600.0, 320.0, attempt=2, generation=2, rows=[{"loss": 0.3}])
        gone = tuple(file for file in done.files if file.path == "model.bin")
        self.put(
            layout.retired(fit, "best", 2),
            Retired(
                nonce=self.nonce(),
                generation=2,
                attempt=2,
                policy="best",
                files=gone,
                why="score is done",
                by="score",
                at=at(1000),
            ),
        )
        (self.root / layout.output(fit, 2) / "model.bin").unlink()
        self._finish(cell, score, 930.0, 45.0, rows=[{"language": "en", "accuracy": 0.5, "note": "renewed"}])

    def unscored(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A stage done, and the next one failed by its config."""
        self._finish(cell, fit, 200.0, 500.0, rows=[{"loss": 0.75}])
        self._fail(cell, score, Cause.CONFIG, "KeyError", "the stage does not declare 'lr' in its `reads`", start_s=800.0)

    def _submitted(self, number: int, cell: Cell, job: str) -> None:
        submission = Submission(
            nonce=self.nonce(),
            number=number,
            revision=1,
            request=1,
            launcher="tests.store.study:Lab",
            cluster="lab",
            name=f"study.{number}",
            tasks=((cell.id,),),
            resources=Resources(gpus_per_node=2, cpus=8, hours=4.0, memory_gib=64.0),
            by="ann@login",
            at=at(100.0 * number),
            uid=1000,
        )
        self.put(layout.submission(NAME, number), submission)
        if job:
            self.put(layout.accepted(NAME, number), Accepted(nonce=self.nonce(), job=job, at=at(100.0 * number + 1)))

    def waiting(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A job that waits."""
        self._submitted(1, cell, "4711")

    def cancelled(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """Nothing, but a request; see `__init__`."""

    def job_failed(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """Two jobs that ended at their time limit."""
        for number in (2, 3):
            self._submitted(number, cell, f"480{number}")
            over = JobEnd(index=0, word="TIMEOUT", cause=Cause.TIMEOUT, detail="its limit of 4 h", node="node3", seconds=14400.0)
            self.put(
                layout.closing(NAME, number, 1),
                JobEndBatch(nonce=self.nonce(), number=1, over=(over,), at=at(100.0 * number + 50)),
            )

    def released(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A stage that was given back."""
        self._claim(cell, fit, 1, 1500.0, owner=self._owner("node4", cluster="lab", job="4900", array_index=2, restart_count=1))
        self._start(fit, 1, 1500.0)
        self._payload(fit, 1, "stopping\n", (1,))
        end = End(nonce=self.nonce(), outcome="released", why="deadline", seconds=77.0, at=at(1577.0))
        self.put(layout.attempt(fit, 1, layout.END), end)

    def lost(self, cell: Cell, fit: StageInstance, score: StageInstance) -> None:
        """A stage whose worker has been silent for long."""
        self._claim(cell, fit, 1, 2000.0)
        self.put(layout.attempt(fit, 1, layout.HEARTBEAT), Heartbeat(counter=1, phase="starting", at=at(2030.0)))

    def _others(self) -> None:
        """What belongs to no cell: an ended worker, a node that is left out, and notices."""
        worker = WorkerRecord(
            nonce=self.nonce(),
            owner=self._owner("node1"),
            revision=1,
            num_gpus=1.0,
            device="A100",
            seconds=3600.0,
            has_ended=True,
            began_at=at(90),
            at=at(3690),
        )
        self.put(layout.worker(NAME, worker.nonce), worker)
        for number, kind in enumerate(("failed", "check"), start=1):
            cause = Cause.BAD_NODE if kind == "failed" else None
            report = NodeReport(
                nonce=self.nonce(),
                number=number,
                node="node3",
                cluster="lab",
                kind=kind,
                why="no GPU answers",
                cause=cause,
                sweep=NAME,
                attempt="attempt 1 of fit",
                by="ann@node3",
                at=at(NOW_S - 300 * number),
            )
            self.put(layout.node_report(number), report)
        event = {"event": "failure-data-9ffddbc127", "channel": "webhook"}
        tried = NoticeTry(nonce=self.nonce(), number=1, text="2 failed", by="ann@login", at=at(1000), **event)
        self.put(layout.notice_try(NAME, *event.values(), 1), tried)
        refused = NoticeOutcome(outcome="refused", detail="404 Not Found", pause_s=60.0, at=at(1001))
        self.put(layout.notice_outcome(NAME, *event.values(), 1), refused)
