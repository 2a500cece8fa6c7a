"""Sweeps, records and stores made by hand, for tests that need no sweep file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from orchestrator.core.failure import Cause
from orchestrator.core.grid import Chains
from orchestrator.core.records import Claim, Done, End, Owner, Process, Retired, Revision, Supersedes, Void
from orchestrator.core.selector import Subject
from orchestrator.core.settings import Policy, RunSettings, StoreSettings, TrackerSettings
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.count import COUNT
from orchestrator.jobs.records import Resources, Submission
from orchestrator.manifest import scan
from orchestrator.provenance import process_of
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, content_digest, open_ledger
from orchestrator.store.objects import PosixStore

NUM_STEPS = 2


def sweep_of(
    num_cells: int,
    specs: Mapping[str, StageSpec] | None = None,
    *,
    name: str = "counts",
    first_seed: int = 0,
    **count: Any,
) -> ComposedSweep:
    """A sweep with a cell for each seed; by default each counts to `NUM_STEPS`, checkpointing every step."""
    counting = {"num_steps": NUM_STEPS, "checkpoint_every": 1, "step_s": 0.0, "fail": None, **count}
    chains = Chains(specs or {"count": COUNT})
    cells = []
    for seed in range(first_seed, first_seed + num_cells):
        axes, config = {"seed": str(seed)}, {"seed": seed, "count": counting, "shared": 0}
        chain = chains.chain(Subject(axes, {}, config))
        cells.append(Cell(id=f"seed{seed}", axes=axes, columns={}, config=config, stage_digests=chain))
    return ComposedSweep(name=name, specs=dict(chains.specs), stages=chains.stages, cells=tuple(cells))


def submission_of(number: int = 1, **more: Any) -> Submission:
    """A submission of one task to Slurm, with the cell ``a``; `more` are other fields, or other values."""
    usual: dict[str, Any] = {"nonce": "n", "revision": 1, "request": 1, "launcher": "slurm", "cluster": "lab"}
    usual |= {"name": f"s.{number}", "tasks": (("a",),), "resources": Resources()}
    return Submission(**{**usual, "number": number, **more})


def instance_of(sweep: ComposedSweep, cell: int = 0) -> StageInstance:
    """The last stage of a cell."""
    return sweep.stages[sweep.cells[cell].stage_digests[-1]]


def counted(seed: int, num_steps: int = NUM_STEPS) -> str:
    """What ``count.txt`` must hold: the chain of digests over all steps, each once and in order."""
    state = str(seed)
    for step in range(1, num_steps + 1):
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()
    return f"{num_steps} {state}\n"


def settings(**policy: Any) -> RunSettings:
    """Engine settings with short times and generous budgets."""
    chosen = {
        "lease_s": 1.0,
        "grace_s": 5.0,
        "retries": {"unknown": 3, "node_lost": 5, "storage": 5, "nan": 3},
        **policy,
    }
    return RunSettings(
        launcher={"name": "local"}, tracker=TrackerSettings(), policy=Policy(**chosen), store=StoreSettings()
    )


def seal(root: Path | str, sweep: ComposedSweep) -> Revision:
    """Makes the store and seals the sweep in it."""
    content = content_digest(sweep)
    return open_ledger(str(root), create=True).seal(
        lambda number: Revision(nonce=new_nonce(), number=number, content=content, sweep=sweep),
        sweep.name,
        content,
    )


def ledger_at(root: Path) -> Ledger:
    """A store without a mark, enough for records."""
    return Ledger(PosixStore(root))


def owner(*, host: str = "here", pid: int | None = None, boot: str | None = None, **rest: Any) -> Owner:
    """This process as an owner, or one elsewhere (another `boot`) or one that never was (a `pid`)."""
    process = process_of(os.getpid())
    assert process is not None
    process = Process(
        boot_id=boot or process.boot_id,
        namespace=process.namespace,
        pid=pid or process.pid,
        start=process.start if pid is None else "0",
    )
    return Owner(host=host, process=process, **rest)


def claim(*, generation: int = 1, supersedes: int | None = None, lease_s: float = 90.0, **rest: Any) -> Claim:
    """A claim of `owner()`."""
    return Claim(
        nonce=new_nonce(),
        owner=rest.pop("owner", None) or owner(),
        lease_s=lease_s,
        generation=generation,
        sweep="counts",
        cell="seed0",
        supersedes=None
        if supersedes is None
        else Supersedes(attempt=supersedes, evidence="gone", cause=Cause.NODE_LOST),
        **rest,
    )


def end(outcome: str = "failed", cause: Cause | None = Cause.UNKNOWN, why: str = "") -> End:
    """An end; a failure unless told otherwise."""
    return End(nonce=new_nonce(), outcome=outcome, cause=cause if outcome == "failed" else None, why=why)  # type: ignore[arg-type]


def void(generation: int, kind: str = "damaged") -> Void:
    """A void by the test."""
    return Void(nonce=new_nonce(), generation=generation, kind=kind, reason="told so", by="test")  # type: ignore[arg-type]


def retired(product: Done, generation: int = 1) -> Retired:
    """A record that all files of a product are deleted on purpose."""
    return Retired(
        nonce=new_nonce(),
        generation=generation,
        attempt=product.attempt,
        policy="best",
        files=product.files,
        why="taken",
        by="test",
    )


def make_product(
    ledger: Ledger,
    instance: StageInstance,
    *,
    attempt: int = 1,
    generation: int = 1,
    text: str = "whole",
    inputs: Mapping[str, int] | None = None,
) -> Done:
    """Writes a product's file and creates its `done`; returns what it created."""
    folder = ledger.objects.workspace(f"{layout.payload(instance, attempt)}/{layout.OUTPUT}")
    (folder / "file.txt").write_text(text)
    done = Done(
        nonce=new_nonce(),
        stage=instance.stage,
        digest=instance.digest,
        generation=generation,
        attempt=attempt,
        files=scan(folder),
        rows=({"value": 1},),
        seconds=1.0,
        inputs=dict(inputs or {}),
    )
    ledger.finish(done)
    return done
