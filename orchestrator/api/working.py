"""What a worker that was started by hand may do: which code it runs, which cells, and which stages fit."""

from __future__ import annotations

import math
import os
import platform
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from orchestrator.api.estimates import estimates_of, longest_first
from orchestrator.api.state import SweepState, current_revision, parse_reference, sealed_view
from orchestrator.core.plan import code_of, codes_of
from orchestrator.core.records import Code, Request
from orchestrator.core.settings import Policy, RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, preload
from orchestrator.costs import DEVICES, Estimate, Hardware
from orchestrator.errors import UserError, nearest
from orchestrator.jobs.records import JobContext
from orchestrator.jobs.submissions import settings_of
from orchestrator.launchers.base import GpuNumbers, Launch, overrides_of
from orchestrator.launchers.external import GpuOverride
from orchestrator.launchers.local import gpu_hardware, host_hardware, visible_gpus
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import store_url

MOST_GPUS = 1024
"""More GPUs than any worker has: the estimate is how many a stage needs, not whether they are here."""

MARGIN_S = 30.0
"""Seconds beyond `policy.grace_s` between the last checkpoint and the end, in which it is uploaded."""


class Work(NamedTuple):
    """What workers of a sweep may do.

    Attributes:
        view: the revision.
        request: the newest launch or rerun, whose settings apply.
        code: the snapshot that they run.
        cells: that they may work on.
        num_other: cells that are not done, and were last launched with other code: they are not among these.
    """

    view: SweepState
    request: Request
    code: Code
    cells: tuple[Cell, ...]
    num_other: int = 0

    @property
    def settings(self) -> RunSettings:
        """The run settings."""
        return settings_of(self.request)

    @property
    def reference(self) -> str:
        """The sweep with its revision, as on a command line."""
        return f"{self.view.sweep.name}@{self.view.number}"

    @property
    def import_paths(self) -> tuple[str, ...]:
        """The import paths in the snapshot on this machine."""
        return snapshots.import_paths(self.view.ledger.objects, self.code)

    def open_cells(self) -> list[Cell]:
        """Return the cells that are not done."""
        return [cell for cell in self.cells if self.view.cells[cell.id].state is not State.DONE]

    def counts(self) -> Counter[State]:
        """Return the number of cells in each state, as of now."""
        view = self.view.fresh()
        return Counter(view.cells[cell.id].state for cell in self.cells)


def find_work(word: str, url: str | None, only: Sequence[str] = ()) -> Work:
    """Find what a worker may do, in the store alone: no sweep file is read.

    The newest launch or rerun counts. Where it kept no snapshot of its code, as a local launch, that of an
    earlier one with the same code serves.

    Args:
        word: the sweep, with @k for a revision.
        url: of the store; see `store_url`.
        only: selectors of cells.

    Raises:
        UserError: the sweep was not launched here, no snapshot of its code was kept, or a selector is wrong.
    """
    reference, ledger = parse_reference(word), open_ledger(store_url(url))
    number = reference.revision or current_revision(ledger, reference.name)
    if number is None:
        raise UserError(
            f"no sweep {reference.name!r} was launched here",
            where=ledger.objects.url,
            allowed=nearest(reference.name, ledger.sweeps()),
            fix=_launch(reference.source),
        )
    view = sealed_view(ledger, reference.name, number)
    launched = [r for r in view.requests if r.verb in ("launch", "rerun") and r.settings is not None]
    launched = [request for request in launched if request.revision == number]
    if not launched:
        raise UserError(f"{view.title} was never launched", fix=_launch(reference.name) + view.hint)
    newest = launched[-1]
    version = code_of(newest)
    kept = [request.code for request in launched if request.code is not None and code_of(request) == version]
    if not kept or kept[-1] is None:
        raise UserError(
            f"the last launch of {view.title} kept no snapshot of its code",
            where=f"launcher={newest.settings.launcher['name'] if newest.settings else ''}",
            fix=_launch(reference.name) + view.hint,
        )
    codes = codes_of(launched, view.request_summary.asked)
    chosen = [cell for cell in view.select(only) if cell.id in codes]
    cells = tuple(cell for cell in chosen if codes[cell.id] == version)
    others = [c for c in chosen if codes[c.id] != version and view.cells[c.id].state is not State.DONE]
    return Work(view, newest, kept[-1], cells, len(others))


def _launch(sweep: str) -> str:
    return f"sweep launch {sweep} launcher=external"


def gpus_here(number: int | None) -> tuple[str, ...]:
    """Return the ids of the GPUs that workers may use: the first of the visible ones.

    Args:
        number: how many; None for all.

    Raises:
        UserError: there are not as many.
    """
    visible = visible_gpus()
    if number is not None and not 0 <= number <= len(visible):
        raise UserError(
            f"--gpus {number}, and {len(visible)} are visible on {platform.node()}",
            allowed=f"0 to {len(visible)}",
            fix="CUDA_VISIBLE_DEVICES names those that a process may use",
        )
    return visible if number is None else visible[:number]


def gpu_needs(work: Work, gpus: Sequence[str], import_paths: Sequence[str]) -> dict[str, int]:
    """Return how many GPUs each stage needs, by digest; stages of which that is not known are left out.

    `launcher.resources` comes before an estimate, but gives no GPUs to a stage that needs none by it.

    Args:
        work: what workers may do.
        gpus: ids of those that are here.
        import_paths: folders from which the hooks of stages are imported.

    Raises:
        UserError: a hook fails, or a cell fits nowhere.
    """
    view, settings, cells = work.view, work.settings, work.open_cells()
    hardware = _hardware(settings, gpus)
    if hardware is not None and hardware.device == "cpu":
        return {digest: 0 for cell in cells for digest in view.chain(cell)}
    estimates = _estimates(work, cells, hardware, import_paths)
    needs = {digest: one.num_gpus for digest, one in estimates.items()}
    entries = [GpuOverride(only=each.get("only", ""), gpus=_whole(each)) for each in _resources(settings)]
    known = [view.subject(cell) for cell in view.sweep.cells]
    found = overrides_of(entries, [cell.id for cell in cells], known)
    asked: dict[str, int] = {}
    for cell in cells:
        for digest in view.chain(cell) if "gpus" in found[cell.id] else ():
            if needs.get(digest) != 0:
                # What suffices for one of the cells that share a stage suffices for the stage.
                asked[digest] = min(asked.get(digest, MOST_GPUS), found[cell.id]["gpus"])
    return needs | asked


def _resources(settings: RunSettings) -> Sequence[Mapping[str, Any]]:
    """Return `launcher.resources`, which have ``only`` and ``gpus`` for Slurm and Ray too."""
    found: Sequence[Mapping[str, Any]] = settings.launcher.get("resources") or ()
    return found


def _whole(entry: Mapping[str, Any]) -> int | None:
    gpus = entry.get("gpus")
    return None if gpus is None else math.ceil(gpus) * (entry.get("nodes") or 1)


def _hardware(settings: RunSettings, gpus: Sequence[str]) -> Hardware | None:
    """Return the hardware to estimate for: as the launch names it, else of this machine; None if unknown."""
    device = settings.launcher.get("device") or settings.cluster.get("device")
    if device == "cpu":
        return host_hardware() or Hardware(device="cpu", memory_gib=1.0, peak_tflops=0.05)
    if isinstance(device, str) and device in DEVICES:
        return Hardware(device=device, max_gpus=MOST_GPUS, **DEVICES[device]._asdict())
    return gpu_hardware(tuple(gpus), MOST_GPUS) if gpus else None


def _estimates(
    work: Work, cells: Sequence[Cell], hardware: Hardware | None, import_paths: Sequence[str]
) -> dict[str, Estimate]:
    if not any(spec.estimate for spec in work.view.sweep.specs.values()):
        return {}
    settings = work.settings
    return estimates_of(
        work.view,
        cells,
        hardware=hardware or msgspec.structs.replace(settings.hardware.assumed, max_gpus=MOST_GPUS),
        retention=settings.policy.retention,
        import_paths=import_paths,
        unfinished_only=True,
    )


def job_until(hours: float | None, policy: Policy, now: float) -> JobContext:
    """Return the context of workers that end after some hours, or stay.

    As in a scheduler's job, exit codes show whether work is left, and nothing starts that could not save.

    Args:
        hours: wall time from `now` on; None without a limit.
        policy: of the launch.
        now: seconds since 1970.
    """
    if hours is None:
        return JobContext(cluster="local", job="")
    limit_s = 3600 * hours
    notice_s = min(policy.grace_s + MARGIN_S, limit_s / 2)
    return JobContext(
        cluster="local",
        job="",
        end_at=now + limit_s,
        notice_s=notice_s,
        min_left_s=min(notice_s + policy.checkpoint_interval_s, limit_s / 2),
    )


def as_launch(work: Work, needs: Mapping[str, int], max_hours: float | None) -> Launch:
    """Return what a pool of workers on this machine is given.

    Args:
        work: what they may do.
        needs: digest of a stage to its GPUs, where that is known.
        max_hours: wall time after which they end; None for no limit.
    """
    view, paths, settings = work.view, work.import_paths, work.settings
    cells = work.open_cells()
    ordered = longest_first(view, cells, {})
    if ordered == cells:
        # Workers that start at once would all try the same cell.
        first = secrets.randbelow(max(1, len(cells)))
        ordered = [*cells[first:], *cells[:first]]
    name = f"work-{platform.node()}-{os.getpid()}-{secrets.token_hex(2)}"
    return Launch(
        store=view.ledger.objects.url,
        sweep=view.sweep.name,
        revision=view.number,
        request=work.request.number,
        cells=tuple(cell.id for cell in ordered),
        settings=settings,
        import_paths=paths,
        code_digest=snapshots.version_of(work.code, view.sweep, paths),
        preload=tuple(preload(view.sweep)),
        log_folder=str(view.ledger.objects.workspace(layout.logs(view.sweep.name)) / name),
        job=job_until(max_hours, settings.policy, time.time()),
        code=work.code,
        gpus=GpuNumbers(dict(needs), frozenset()),
    )
