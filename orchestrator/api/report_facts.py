"""Facts about a sweep for its reports: states, retries, launches, hosts and logged metrics."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator import provenance
from orchestrator.api.state import SweepState
from orchestrator.core.records import Request, StartRecord
from orchestrator.core.state import State
from orchestrator.core.sweep import StageInstance
from orchestrator.core.tree import dotted_keys, pick
from orchestrator.reporting import About, AttemptFacts, CellFacts, Curve, LaunchFacts, RetryFacts
from orchestrator.results import evenly
from orchestrator.store import layout
from orchestrator.trackers.base import history

MAX_POINTS = 200
"""Points of one curve. A figure as wide as a page cannot show more."""

_NO_METRIC = frozenset({"step", "time_s"})
"""Fields of a line of metrics that are not metrics."""


def curves(view: SweepState) -> tuple[Curve, ...]:
    """Return the metrics that the stage instances of a revision logged, each shared instance once."""
    sharing: dict[str, list[str]] = {}
    for cell in view.sweep.cells:
        for digest in cell.stage_digests:
            sharing.setdefault(digest, []).append(cell.id)
    found = []
    for digest, cells in sharing.items():
        done = view.snapshot.evidence(digest).done
        # The attempt that made the product, else the last one: earlier attempts logged the same steps.
        number = done.attempt if done is not None else view.stages[digest].attempts
        if not number:
            continue
        node = view.sweep.stages[digest]
        points = _points(history(view.ledger, node, number))
        if points:
            found.append(Curve(stage=node.name, cells=tuple(cells), points=points))
    return tuple(found)


def _points(lines: Sequence[Mapping[str, Any]]) -> dict[str, tuple[tuple[int, float], ...]]:
    """Return metric to its points (step, value), evenly thinned to `MAX_POINTS`."""
    found: dict[str, list[tuple[int, float]]] = {}
    for number, line in enumerate(lines, start=1):
        step = line.get("step", number)  # a command may log no step; lines are counted instead
        for name, value in line.items():
            if name not in _NO_METRIC and isinstance(value, bool | int | float) and math.isfinite(value):
                found.setdefault(name, []).append((step, float(value)))
    return {name: tuple(evenly(sorted(points), MAX_POINTS)) for name, points in found.items()}


PACKAGES = ("accelerate", "numpy", "polysweep", "scipy", "statsmodels", "torch", "transformers", "vllm")
"""Packages whose versions a report shows. The record of a launch holds those of all packages."""


def about(view: SweepState) -> About:
    """Return the facts about a revision.

    Attempts are read only for stages that took more than one, because each read costs requests in a bucket.
    """
    sharing: dict[str, list[str]] = {}
    for cell in view.sweep.cells:
        for digest in cell.stage_digests:
            sharing.setdefault(digest, []).append(cell.id)
    retries = tuple(
        _retry(view, view.sweep.stages[digest], tuple(cells))
        for digest, cells in sharing.items()
        if view.stages[digest].attempts > 1
    )
    requests = [request for request in view.requests if request.verb in ("launch", "rerun")]
    return About(
        sweep=view.sweep.name,
        revision=view.number,
        sealed=view.sealed,
        description=view.sweep.description,
        stages=tuple(view.sweep.specs),
        cells=tuple(_cells(view)),
        retries=retries,
        launches=tuple(_launch(request) for request in requests if request.revision == view.number),
        hosts=tuple(sorted(_hosts(view))),
        made_at=provenance.now(),
        notes=tuple(view.problems),
    )


def _cells(view: SweepState) -> Iterator[CellFacts]:
    """Yield the facts about each cell."""
    for cell in view.sweep.cells:
        status = view.cells[cell.id]
        yield CellFacts(
            cell=cell.id,
            axes=cell.axes,
            columns=cell.columns,
            config=cell.config,
            state=str(status.state),
            cause=str(status.cause or ""),
            reason=status.reason,
            num_attempts=status.attempts,
        )


def _retry(view: SweepState, node: StageInstance, cells: tuple[str, ...]) -> RetryFacts:
    """Return the facts about a stage that took more than one attempt."""
    attempts = view.attempts(node)
    # A lost attempt cannot record its own end. The attempt that replaced it records the evidence in its
    # claim.
    superseded = {
        later.claim.supersedes.attempt: later.claim.supersedes
        for later in attempts
        if later.claim is not None and later.claim.supersedes is not None
    }
    facts, before = [], None
    for attempt in attempts:
        lost = superseded.get(attempt.number)
        outcome, why, message = "open", "", attempt.problem
        if attempt.end is not None:
            outcome, message = attempt.end.outcome, attempt.end.message
            why = str(attempt.end.cause or attempt.end.why)
        elif lost is not None:
            outcome, why, message = "lost", str(lost.cause), lost.evidence
        changed = _changed(before, attempt.start)
        facts.append(
            AttemptFacts(number=attempt.number, outcome=outcome, why=why, message=message, changed=changed)
        )
        before = attempt.start or before
    return RetryFacts(stage=node.name, cells=cells, attempts=tuple(facts))


def _changed(before: StartRecord | None, now: StartRecord | None) -> dict[str, tuple[Any, Any]]:
    """Return the settings that changed since the attempt before, as a remedy for its failure."""
    if before is None or now is None:
        return {}
    found = {}
    for key in sorted({*dotted_keys(before.uses), *dotted_keys(now.uses)}):
        old, new = pick(before.uses, key), pick(now.uses, key)
        if not isinstance(old, Mapping) and not isinstance(new, Mapping) and old != new:
            found[key] = (_plain(old), _plain(new))
    return found


def _plain(value: Any) -> Any:
    """Return a value that a report can show; None for any other."""
    return value if isinstance(value, str | int | float | bool | list | None) else None


def _hosts(view: SweepState) -> set[str]:
    """Return the machines that made the products."""
    hosts, keys = set(), []
    for digest, status in view.stages.items():
        done = view.snapshot.evidence(digest).done
        if status.state is State.DONE and done is not None:
            node = view.sweep.stages[digest]
            keys.append(layout.attempt(node.stage, digest, done.attempt, layout.START))
    # One bulk read instead of one request for each stage.
    ledger = view.ledger.having_read(keys)
    for key in keys:
        start, _ = ledger.read(key, StartRecord)
        if start is not None and (host := start.provenance.get("host")):
            hosts.add(str(host))
    return hosts


def _launch(request: Request) -> LaunchFacts:
    """Return the facts about a launch or rerun."""
    known = request.provenance
    git, packages = known.get("git") or {}, known.get("packages") or {}
    commit = str(git.get("commit", ""))[:12] + ("+" if git.get("dirty") else "")
    return LaunchFacts(
        number=request.number,
        verb=request.verb,
        command=str(known.get("command", "")),
        by=request.by,
        at=request.at,
        code=" ".join(filter(None, (commit, str(known.get("polysweep", ""))))),
        packages={name: str(packages[name]) for name in PACKAGES if name in packages},
        python=str(known.get("python", "")),
    )
