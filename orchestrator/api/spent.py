"""What a sweep has cost: the held time of its workers over all revisions, where it went, and the budget."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

from orchestrator.api.state import SweepState
from orchestrator.core.evidence import Evidence
from orchestrator.core.gates import Gates, gates_of
from orchestrator.core.goodput import CATEGORIES, Goodput, HeldJob, Holder, goodput, shares_of
from orchestrator.core.sweep import StageInstance
from orchestrator.errors import InfrastructureError
from orchestrator.jobs.judgement import SubmissionState
from orchestrator.jobs.records import spending
from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.reporting import HeldFacts
from orchestrator.store import layout
from orchestrator.store.access import Prefetched
from orchestrator.store.decisions import readable_revisions
from orchestrator.store.objects import ObjectStore

HOUR_S = 3600.0


def spent_of(view: SweepState) -> list[Goodput]:
    """Return the held time of all workers of a sweep, and where it went. GPUs come first.

    Stages of earlier revisions are read too, which takes time in a sweep with many revisions.

    Args:
        view: the sweep state; its revision does not matter.
    """
    holders = [
        Holder(record.owner, record.num_gpus, record.seconds, record.start_s, record.device)
        for record in WorkerRecords(view.ledger, view.sweep.name).read()
    ]
    jobs = [job for filed in view.jobs.filed for job in _held_jobs(filed)]
    return goodput(view.sweep.name, holders, _all_stages(view), jobs)


def _all_stages(view: SweepState) -> Iterator[tuple[str, Evidence]]:
    """Yield name and evidence of each stage that any revision has, and of each gate of its launches."""
    revisions = readable_revisions(view.ledger, view.sweep.name, view.problems)
    others = [r for r in revisions if r.number != view.number]
    seen: set[str] = set()
    for other in (None, *reversed(others)):
        state = view if other is None else SweepState(view.ledger, other.sweep, other.number, sealed=True)
        if gates := _all_gates(state):
            state = state.with_gates(Gates(gates))
        instances = {d: instance for d, instance in state.instances.items() if d not in seen}
        seen.update(instances)
        read = partial(_all_attempts, view.ledger.objects, list(instances.values()))
        ledger = view.ledger.reading_ahead(read)
        for digest, instance in instances.items():
            # The evidence of a finished stage holds its product, and not the records of its attempts.
            with contextlib.suppress(OSError, InfrastructureError):
                attempts = ledger.attempts(instance)
                yield instance.stage, state.reader.evidence(digest)._replace(attempts=attempts)


def _all_gates(state: SweepState) -> dict[str, StageInstance]:
    """Return the gates of all launches and reruns of a revision. Other code has other ones."""
    asked = [each for each in state.requests if each.gates is not None and each.revision == state.number]
    found = (gates_of(state.sweep, each.gates, each.cells).instances for each in asked)
    return {digest: instance for gates in found for digest, instance in gates.items()}


def _all_attempts(objects: ObjectStore, instances: Sequence[StageInstance]) -> Prefetched:
    """Read all attempts in two bulk requests."""
    listings = objects.list_many([layout.attempts(instance) for instance in instances])
    keys = [
        layout.attempt(instance, int(name), record)
        for instance in instances
        for name in listings[layout.attempts(instance)].folders
        if name.isdigit()
        for record in layout.RECORDS
    ]
    return Prefetched(objects.get_many(keys), listings)


def _held_jobs(filed: SubmissionState) -> Iterator[HeldJob]:
    """Yield the starts of a submission's jobs that are recorded, with the GPUs that each held.

    The job of a Ray driver holds no GPUs itself, but its workers do.
    """
    if filed.accepted is None:
        return
    submission, job = filed.submission, filed.accepted.job
    num_gpus = submission.resources.num_nodes * submission.resources.gpus_per_node
    if submission.launcher == "ray":
        for restart in range((filed.driver.restart if filed.driver else 0) + 1):
            yield HeldJob(submission.cluster, job, 0, restart, num_gpus)
        return
    for index in range(len(submission.tasks)):
        report, over = filed.reports.get(index), filed.over.get(index)
        if report is not None:
            yield HeldJob(submission.cluster, job, index, report.restart, num_gpus, report.seconds)
        elif over is not None and over.seconds is not None:
            yield HeldJob(submission.cluster, job, index, over.restarts, num_gpus, over.seconds)


def spent_json(view: SweepState, found: Sequence[Goodput]) -> dict[str, Any]:
    """Return the machine-readable form of what a sweep has cost; amounts are in seconds.

    What was spent of the budget is what its workers held. Jobs hold their GPUs for a moment longer, and what
    they held without a worker is in no budget.

    Args:
        view: the sweep state.
        found: result of `spent_of`.
    """
    limit = view.policy.budget
    workers = WorkerRecords(view.ledger, view.sweep.name).read()
    gpu_seconds = spending(workers, (), checkpoint_s=0.0).gpu_seconds
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "spent": [
            {**each._asdict(), "useful": each.useful, "shares": dict(shares_of(each))} for each in found
        ],
        "budget": {
            "gpu_hours": limit.gpu_hours,
            "until": limit.until,
            "spent_gpu_hours": gpu_seconds / HOUR_S,
        },
    }


def unit_of(found: Goodput) -> str:
    """Return the unit in which people read an amount, such as ``GPU-hours``."""
    return "GPU-hours" if found.unit == "gpu_seconds" else "worker-hours"


def summary_line(found: Goodput) -> str:
    """Return a line such as ``12.3 GPU-hours held by 4 workers (A100): 81.2 % goodput``."""
    devices = f" ({', '.join(found.devices)})" if found.devices else ""
    plural = "" if found.num_workers == 1 else "s"
    share = 100 * found.useful / found.total if found.total else 0.0
    return (
        f"{found.total / HOUR_S:.4g} {unit_of(found)} held by {found.num_workers} worker{plural}{devices}: "
        f"{share:.1f} % goodput"
    )


def held_facts(view: SweepState) -> tuple[HeldFacts, ...]:
    """Return what a report receives about the held time of a sweep."""
    return tuple(
        HeldFacts(
            unit=unit_of(found),
            summary=summary_line(found),
            hours={name: found.parts[name] / HOUR_S for name in CATEGORIES},
            by_stage={
                stage: {name: amount / HOUR_S for name, amount in parts.items()}
                for stage, parts in found.by_stage.items()
            },
            lost_hours={why: amount / HOUR_S for why, amount in found.lost_by.items()},
        )
        for found in spent_of(view)
    )
