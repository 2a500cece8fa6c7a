"""Results of old Hydra multiruns as done cells, with the identity that ``--app`` would give them."""

from __future__ import annotations

import functools
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]

from orchestrator import provenance
from orchestrator.api.launching import as_view, seal
from orchestrator.api.state import SweepState
from orchestrator.compose.apps import base_texts, program_of
from orchestrator.compose.given import app_name
from orchestrator.compose.main import Composition
from orchestrator.compose.multiruns import HydraJob, digests_of, read_jobs, sweep_of
from orchestrator.compose.overrides import run_settings
from orchestrator.core.commandspec import check_pattern
from orchestrator.core.records import Claim, Done, End, Owner
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, StageInstance, check_name
from orchestrator.errors import UserError
from orchestrator.manifest import contain, copy_file, fsync_tree, scan
from orchestrator.provenance import process_of
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import store_url


class Imported(NamedTuple):
    """What came of an import.

    Attributes:
        view: the sealed sweep.
        num_new: number of cells that are done now and were not before.
        left_out: folder of each job without results to the reason.
    """

    view: SweepState
    num_new: int
    left_out: dict[str, str]


def import_jobs(
    root: Path,
    *,
    script: str | None = None,
    name: str | None = None,
    results: str | None = None,
    metrics: Mapping[str, str] | None = None,
    volatile: Sequence[str] = (),
    url: str | None = None,
) -> Imported:
    """Record the jobs of old multiruns that have results as done cells of a sweep.

    A job is a folder with ``.hydra/config.yaml``. Its files are copied into the store. It counts as done if
    it has results: its ``metrics.json``, the file `results`, or matches in its logs.

    Args:
        root: a folder that holds jobs at any depth.
        script: of the app; by default ``NAME.py`` of the job in this folder.
        name: of the sweep; by default the stem of the script.
        results: a file in each job's folder with result rows; by default ``metrics.json``.
        metrics: column to a pattern, whose last match in ``*.log`` is the value.
        volatile: keys to leave out of the identity.
        url: of the store.

    Raises:
        UserError: there is no job, no script, or no job with results, or a pattern is malformed.
    """

    @functools.cache
    def base(name: str) -> dict[str, Any]:
        own = script or f"{name}.py"
        if script is None and not Path(own).is_file():
            raise UserError(f"there is no script {own!r} here", fix="--app SCRIPT, as for `sweep launch`")
        return base_texts(own, volatile, folder=Path.cwd())

    for column, pattern in (metrics or {}).items():
        check_pattern(f"--metric {column}", pattern)
    jobs, left_out = read_jobs(root, results=results, metrics=metrics or {}, volatile=volatile, base=base)
    script = script or f"{jobs[0].name}.py"
    program = program_of(script, folder=Path.cwd())
    sweep = sweep_of(jobs, program, check_name(name or app_name(script), what="sweep"))
    ledger = open_ledger(store_url(url), create=True, at=provenance.now())
    source = yaml.safe_dump({"description": sweep.description, "app": script})
    composition = Composition(sweep, run_settings(), (), source, (str(Path.cwd()),))
    view = seal(as_view(ledger, composition).ledger, composition, ())
    by_digest = {cell.stage_digests[0]: cell for cell in sweep.cells}
    num_new = 0
    for job, digest in zip(jobs, digests_of(jobs, sweep), strict=True):
        cell = by_digest.pop(digest, None)  # a later job of the same config is the same cell
        if cell is not None and view.cells[cell.id].state is not State.DONE:
            num_new += _record(view, cell, sweep.stages[digest], job)
    return Imported(view, num_new, left_out)


def _record(view: SweepState, cell: Cell, instance: StageInstance, job: HydraJob) -> bool:
    """Copy a job's files into the store, and record them as the product; return whether it was the first."""
    ledger = view.ledger
    number = max(ledger.numbers(instance), default=0) + 1
    voided = ledger.generations(f"void/{instance.stage}").get(instance.digest, set())
    generation = max(voided, default=0) + 1
    process = process_of(os.getpid())
    assert process is not None
    claim = Claim(
        nonce=new_nonce(),
        owner=Owner(host=platform.node(), process=process),
        lease_s=600.0,
        generation=generation,
        sweep=view.sweep.name,
        cell=cell.id,
        at=provenance.now(),
    )
    if ledger.objects.get(layout.stage_spec(instance)) is None:
        ledger.objects.put(layout.stage_spec(instance), ledger.encode(instance))
    if not ledger.claim(instance, number, claim):
        return False
    key = layout.payload(instance, number)
    output = ledger.objects.workspace(key) / layout.OUTPUT
    shutil.copytree(job.folder, output, copy_function=lambda a, b: copy_file(Path(a), Path(b)))
    contain(output)
    fsync_tree(output)
    files = scan(output)
    publisher = ledger.objects.publisher(key, adopted=None, warn=print)
    if publisher is None:
        ledger.objects.upload(key)
    else:
        publisher.output(files, lambda: None)
    at = provenance.now()
    done = Done(
        nonce=new_nonce(),
        stage=instance.stage,
        digest=instance.digest,
        generation=generation,
        attempt=number,
        files=files,
        rows=job.rows,
        seconds=0.0,
        code="imported",
        at=at,
    )
    is_first = ledger.finish(done)
    ledger.end(instance, number, End(nonce=new_nonce(), outcome="succeeded", message="imported", at=at))
    return is_first
