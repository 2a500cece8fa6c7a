"""What a sweep waits for: its next decision; and a wait until its cells are done, failed or stand still."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.api.state import Notify, SweepState
from orchestrator.core.sealed import most_cells
from orchestrator.core.settings import StoreSettings
from orchestrator.core.state import Goal, Outlook, State, outlook
from orchestrator.core.sweep import Cell
from orchestrator.errors import InfrastructureError, UserError, counted
from orchestrator.store import layout
from orchestrator.store.access import error_line

if TYPE_CHECKING:
    from orchestrator.api.cell_outputs import DecisionFacts, LaterFacts

STALL_S = 300.0
"""Default time without any change after which a sweep counts as stalled, in seconds. It exceeds the usual
lease of 90 to 180 s, within which a dead worker's stage is claimed by another one.
"""

POLL_S, JOBS_S = 0.5, 10.0
"""Shortest pause between two looks at a folder, and between two queries of a scheduler, in seconds."""

COST = 5.0
"""Pause after a look, as a multiple of the time that the look took."""


def next_decision(view: SweepState) -> DecisionFacts | None:
    """Return the decision that a sweep waits for; None if none is left."""
    if (left := view.open_decision) is None:
        return None
    question, made = view.decisions.unfolded.question, view.decisions.unfolded.decisions
    begun = [request.at for request in view.requests if request.revision == view.number]
    return {
        "number": question.number,
        "title": question.title,
        "state": "waits" if left.is_passing else "blocked",
        "metric": question.select.metric,
        "mode": question.select.mode,
        "rule": question.rule,
        "chosen": (),
        "sampler": "",
        "seen": [],
        "why": left.reason,
        "waits_for": left.waits_for,
        "of": len(question.cells),
        "since": made[-1].at if made else next(iter(begun), ""),
        "by": "",
        "at": "",
        "differences": [],
    }


def decision_line(found: DecisionFacts) -> str:
    """Return a line on the decision that a sweep waits for: which, for what, since when, and the rule."""
    waits_for, since = found["waits_for"], f" since {found['since']}" if found["since"] else ""
    what = f"waits for {len(waits_for)} of {counted(found['of'], 'cell')}" if waits_for else found["state"]
    if waits_for and found["state"] == "blocked":
        what = f"blocked, {what}"
    line = f"decision {found['number']}, {found['title']}: {what}{since}: {found['why']}"
    # Where a record is damaged, the reason is the way out.
    return line if found["state"] == "blocked" and not waits_for else f"{line}; then {found['rule']}"


def later_of(view: SweepState) -> LaterFacts | None:
    """Return what may follow from open decisions, and so is in no plan yet; None if no decision is left."""
    question = view.decisions.unfolded.question if view.decisions is not None else None
    if question is None:
        return None
    search, phases = view.whole.search, view.whole.phases
    most = search.num_cells if search is not None else sum(map(most_cells, phases, (None, *phases)))
    return {
        "after": question.title,
        "num_cells": max(0, most - len(view.sweep.cells)),
        "num_longer": question.keep if question.rung else 0,
    }


def later_line(found: LaterFacts) -> str:
    """Return a line on what a plan does not count yet."""
    parts = [f"{counted(found['num_cells'], 'more cell')}"] if found["num_cells"] else []
    parts += [f"later parts of {counted(found['num_longer'], 'cell')}"] if found["num_longer"] else []
    return f"not counted: what follows {found['after']}, at most {' and '.join(parts) or 'nothing more'}"


class Waited(NamedTuple):
    """How a wait ended.

    Attributes:
        outlook: on the goal; `Outlook.OPEN` if the time ran out.
        counts: state to number of cells, at the last look.
        seconds: that the wait took.
        decision: that was next at the last look; None without one, or if single cells were named.
    """

    outlook: Outlook
    counts: dict[str, int]
    seconds: float
    decision: DecisionFacts | None = None


def wait_until(
    view: SweepState,
    cells: Sequence[Cell] | None,
    goal: Goal,
    *,
    timeout_s: float | None = None,
    stall_s: float = STALL_S,
    notify: Notify = lambda line: None,
) -> Waited:
    """Wait until the cells reach a goal, or cannot reach it any more. Nothing in the store is changed.

    Args:
        view: a launched revision.
        cells: whose states count; None for all cells, also those that come to exist meanwhile.
        goal: what to wait for.
        timeout_s: longest wait in seconds; None for no limit.
        stall_s: seconds without any change that count as stalled.
        notify: receives a line when the store stops answering.

    Raises:
        UserError: the sweep was never launched.
        InfrastructureError: the store did not answer for `store.outage_s`, or until the time ran out.
    """
    if not view.sealed:
        raise UserError(
            f"{view.sweep.name} was never launched here",
            where=view.ledger.objects.url,
            fix=f"sweep launch {view.sweep.name}",
        )
    start_s = changed_s = time.monotonic()
    outage_s = StoreSettings().outage_s
    seen: Hashable = None
    silent_s: float | None = None
    while True:
        look_s = time.monotonic()
        view = view.fresh()
        try:
            states, now_seen = _look(view, view.sweep.cells if cells is None else cells)
            outcome = [*states, *(_undecided(view) if cells is None else ())]
            outage_s = next(
                (r.settings.store.outage_s for r in reversed(view.requests) if r.settings), outage_s
            )
        except (OSError, InfrastructureError) as error:
            if silent_s is None:
                silent_s = look_s
                notify(f"the store does not answer ({error_line(error)}): waiting for up to {outage_s:.0f} s")
            is_late = timeout_s is not None and look_s - start_s >= timeout_s
            if is_late or look_s - silent_s >= outage_s:
                raise InfrastructureError(
                    f"the store does not answer: {error_line(error)}", where=view.ledger.objects.url
                ) from error
        else:
            silent_s = None
            if now_seen != seen:
                seen, changed_s = now_seen, look_s
            found = outlook(goal, outcome, quiet_s=look_s - changed_s, stall_s=stall_s)
            waited_s = time.monotonic() - start_s
            if found is not Outlook.OPEN or (timeout_s is not None and waited_s >= timeout_s):
                left = next_decision(view) if cells is None else None
                return Waited(found, dict(Counter(map(str, states))), waited_s, left)
        _pause(view, look_s, None if timeout_s is None else start_s + timeout_s, asks_jobs=silent_s is None)


def _look(view: SweepState, cells: Sequence[Cell]) -> tuple[list[State], Hashable]:
    """Return the cells' states, and a value that changes with any record that shows work on them.

    Raises:
        InfrastructureError: the place holds no store any more, as where a file system is not mounted.
    """
    # Without its mark, an empty mount point would look like a sweep of which nothing has started.
    if view.ledger.objects.get(layout.STORE) is None:
        raise InfrastructureError("there is no store any more", where=view.ledger.objects.url)
    states = [view.cells[cell.id].state for cell in cells]
    signs: list[Hashable] = [tuple(states), len(view.requests)]
    for digest in {digest for cell in cells for digest in cell.stage_digests}:
        last = view.reader.evidence(digest).attempts[-1:]
        beats = tuple(attempt.heartbeat.counter for attempt in last if attempt.heartbeat)
        signs.append((digest, view.stages[digest].state, view.stages[digest].attempts, beats))
    return states, frozenset(signs)


def _undecided(view: SweepState) -> list[State]:
    """Return a state for the next decision: `pending` while it may be made, else `blocked`."""
    found = view.open_decision
    return [] if found is None else [State.PENDING if found.is_passing else State.BLOCKED]


def _pause(view: SweepState, look_s: float, deadline_s: float | None, *, asks_jobs: bool) -> None:
    """Sleep between two looks: longer where these are slow or cost money, never beyond the deadline."""
    now_s = time.monotonic()
    pause_s = max(POLL_S, view.ledger.objects.poll_s, min(JOBS_S, COST * (now_s - look_s)))
    if asks_jobs and any(filed.open_tasks for filed in view.jobs.filed):
        pause_s = max(pause_s, JOBS_S)
    if deadline_s is not None:
        pause_s = min(pause_s, max(0.0, deadline_s - now_s))
    time.sleep(pause_s)
