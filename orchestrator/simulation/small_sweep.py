"""The sweep that is simulated, the store in which it was launched, and the table that must come of it."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, Literal

from orchestrator.core.failure import Cause
from orchestrator.core.grid import Chains
from orchestrator.core.records import Request, Revision
from orchestrator.core.selector import Subject
from orchestrator.core.settings import Policy, RunSettings, StoreSettings, TrackerSettings
from orchestrator.core.sweep import Cell, ComposedSweep
from orchestrator.simulation.children import OUTPUT
from orchestrator.simulation.files import SHARED, Files
from orchestrator.simulation.system import running
from orchestrator.simulation.world import World
from orchestrator.stage import StageSpec
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import content_digest, open_ledger

NAME = "simulated"
STAGES = {
    name: StageSpec(run="orchestrator.simulation.children:count", name=name, reads=(name,), after=after)
    for name, after in {"make": (), "use": ("make",)}.items()
}
LEASE_S = 6.0


@functools.cache
def sweep_of(num_cells: int, *, is_slow: bool) -> ComposedSweep:
    """Return a sweep whose cells share a stage and have one of their own.

    Args:
        num_cells: number of cells.
        is_slow: whether a stage takes longer than a lease.
    """
    chains = Chains(STAGES)
    cells = []
    for seed in range(num_cells):
        step = {"num_steps": 4, "step_s": 2.5} if is_slow else {"num_steps": 2, "step_s": 0.3}
        config = {"make": {**step, "seed": 0, "takes": []}, "use": {**step, "seed": seed, "takes": ["make"]}}
        chain = chains.chain(Subject({"seed": str(seed)}, {}, config))
        cells.append(
            Cell(id=f"seed{seed}", axes={"seed": str(seed)}, columns={}, config=config, stage_digests=chain)
        )
    return ComposedSweep(name=NAME, specs=dict(chains.specs), stages=chains.stages, cells=tuple(cells))


@functools.cache
def settings_of(retention: Literal["all", "best", "none"], num_retries: int) -> RunSettings:
    """Return the run settings of a launch: short times, and as many retries for each cause."""
    policy = Policy(
        lease_s=LEASE_S,
        grace_s=2.0,
        checkpoint_interval_s=0.0,
        retention=retention,
        retries=dict.fromkeys(Cause, num_retries),
        breaker=0,
        quarantine_s=0.0,
    )
    return RunSettings(
        launcher={"name": "local"}, tracker=TrackerSettings(), policy=policy, store=StoreSettings()
    )


@functools.cache
def revision_of(num_cells: int, is_slow: bool) -> Revision:
    """Return the sealed sweep. Each worker reads it in reality; here that would take most of the time."""
    sweep = sweep_of(num_cells, is_slow=is_slow)
    return Revision(nonce="sealed", number=1, content=content_digest(sweep), sweep=sweep)


@functools.cache
def prepared(
    num_cells: int, is_slow: bool, retention: Literal["all", "best", "none"], num_retries: int
) -> Mapping[str, tuple[int, bytes]]:
    """Return the files of a store in which a sweep was launched; called in a running world."""
    world = World(0)
    files = Files(world)
    revision = revision_of(num_cells, is_slow)
    with running(world, files):
        ledger = open_ledger(SHARED, create=True, at="")
        ledger.seal(lambda number: revision, NAME, revision.content)
        settings = settings_of(retention, num_retries)
        ledger.add_request(
            NAME, Request(nonce=new_nonce(), number=0, verb="launch", revision=1, settings=settings)
        )
    return files.snapshot()


@functools.cache
def calm_table(num_cells: int, is_slow: bool) -> Mapping[str, Any]:
    """Return the rows of a run that nothing befell, computed by hand: digest of a stage to its rows."""
    sweep = sweep_of(num_cells, is_slow=is_slow)
    return {digest: ({"state": _state(sweep, digest)},) for digest in sweep.stages}


def _state(sweep: ComposedSweep, digest: str) -> str:
    instance = sweep.stages[digest]
    settings = instance.reads[instance.stage]
    taken = "".join(f"{name} {_state(sweep, each.digest)}" for each in instance.inputs for name in OUTPUT)
    state = hashlib.sha256(f"{settings['seed']} {taken}".encode()).hexdigest()[:16]
    for step in range(1, settings["num_steps"] + 1):
        state = hashlib.sha256(f"{state}:{step}".encode()).hexdigest()[:16]
    return state
