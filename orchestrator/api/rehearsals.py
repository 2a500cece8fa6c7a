"""The gates that a launch would have: which come first, what they cost, and which are left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestrator import provenance
from orchestrator.api.requests import gate_facts
from orchestrator.api.state import SweepState
from orchestrator.core.gates import gates_of
from orchestrator.core.plan import Action, Step
from orchestrator.core.records import Request
from orchestrator.core.settings import HardwareSettings, RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, GateFacts, gates_among
from orchestrator.costs import Estimate
from orchestrator.errors import counted
from orchestrator.store.checkout import checkout_of

MAX_NAMED = 4
"""Most gates that a line names."""


class PlannedGate(NamedTuple):
    """A gate that a launch would have.

    Attributes:
        stage: its name, with the axes on which its cells agree.
        digest: of the gate.
        num_cells: the cells that wait for it.
        state: of the gate.
        reason: why it is in that state, or is left out.
        device_hours: that it takes, by estimate; None if that is not known.
        left_out: whether stages start without it.
        action: what a launch would do with it; left if none of its stages would start.
    """

    stage: str
    digest: str
    num_cells: int
    state: State
    reason: str
    device_hours: float | None
    left_out: bool = False
    action: Action = Action.RUN


def planned_facts(
    view: SweepState,
    named: tuple[str, ...] | None,
    settings: RunSettings,
    hardware: HardwareSettings,
    import_paths: Sequence[str],
) -> GateFacts | None:
    """Return what a launch would record of its gates; None without any.

    Args:
        view: the revision.
        named: ids of the cells; None for all.
        settings: of the launch.
        hardware: that the plan assumes.
        import_paths: folders from which the user's hooks are imported.
    """
    if settings.policy.rehearse is False or not gates_among(view.sweep.specs):
        return None
    code = checkout_of(view.ledger.objects, view.sweep, import_paths).digest()
    packages = provenance.packages_digest()
    for before in reversed(view.requests):
        facts = before.gates if (before.revision, before.cells) == (view.number, named) else None
        # The same code on the hardware of that launch, which this machine may not know.
        if facts is not None and (facts.code, facts.packages) == (code, packages):
            return facts
    request = Request(
        nonce="",
        number=0,
        verb="launch",
        revision=view.number,
        cells=named,
        settings=settings,
        provenance={"code": code, "packages_digest": packages},
    )
    return gate_facts(view, request, hardware.assumed, import_paths)


def planned_gates(
    view: SweepState,
    cells: Sequence[Cell],
    facts: GateFacts | None,
    estimates: Mapping[str, Estimate],
    steps: Mapping[str, Mapping[str, Step]],
) -> list[PlannedGate]:
    """Return the gates of stages that are not done, and those that would be left out.

    Args:
        view: the sweep state, with the gates that a launch would have.
        cells: of the launch.
        facts: what it would record of its gates.
        estimates: digest of a stage to its estimate.
        steps: what a launch would do, by cell and digest of a stage.
    """
    if facts is None:
        return []
    named = [cell.id for cell in cells]
    every = gates_of(view.sweep, msgspec.structs.replace(facts, left_out={}), named)
    waiting: Counter[str] = Counter()
    needed = set[str]()
    for cell, gate in ((cell, gate) for cell, of_cell in every.cells.items() for gate in of_cell):
        waiting[gate.digest] += any(view.stages[stage].state is not State.DONE for stage in gate.stages)
        if any(steps[cell][stage].action in (Action.RUN, Action.RESUME) for stage in gate.stages):
            needed.add(gate.digest)
    found = []
    for digest, instance in every.instances.items():
        estimate, status = estimates.get(digest), view.stages.get(digest)
        if waiting[digest]:
            state = status.state if status else State.PENDING
            found.append(
                PlannedGate(
                    stage=instance.name,
                    digest=digest,
                    num_cells=waiting[digest],
                    state=state,
                    reason=facts.left_out.get(digest) or (status.reason if status else ""),
                    device_hours=estimate.wall_hours * max(1, estimate.num_gpus) if estimate else None,
                    left_out=digest in facts.left_out,
                    action=_action(state, digest in needed and digest not in facts.left_out),
                )
            )
    return found


def _action(state: State, is_needed: bool) -> Action:
    if state is State.DONE:
        return Action.REUSE
    if state in (State.RUNNING, State.QUEUED):
        return Action.WAIT
    return Action.RUN if is_needed else Action.LEAVE


def gate_lines(gates: Sequence[PlannedGate]) -> list[str]:
    """Return lines on which gates come first and what they cost, and on which are left out."""
    lines = []
    first = [gate for gate in gates if gate.action in (Action.RUN, Action.WAIT)]
    if first:
        hours = sum(gate.device_hours or 0.0 for gate in first)
        known = f", {hours:.2g} device hours" if hours else ""
        names = ", ".join(gate.stage for gate in first[:MAX_NAMED])
        more = ", ..." if len(first) > MAX_NAMED else ""
        lines.append(f"{counted(len(first), 'rehearsal')} first{known}: {names}{more}")
    out = [gate for gate in gates if gate.left_out]
    if out:
        lines.append(f"{counted(len(out), 'rehearsal')} left out: {out[0].stage}: {out[0].reason}")
    return lines
