"""Results of old Hydra multiruns as done cells, with the identity that ``--app`` would give them."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from orchestrator import provenance
from orchestrator.api.launching import as_view, seal
from orchestrator.api.state import SweepState
from orchestrator.compose import hydra_app, hydra_seal
from orchestrator.compose.apps import STAGE, stage_fields
from orchestrator.compose.axes import Axis, list_axis, plain
from orchestrator.compose.main import Composition
from orchestrator.compose.overrides import refuse_secrets, run_settings
from orchestrator.core.grid import Grid, Selectors
from orchestrator.core.records import Claim, Done, End, Owner
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance, check_name
from orchestrator.core.tree import checked_rows, convert, scalar_text
from orchestrator.errors import StageFailure, UserError
from orchestrator.execution.command_output import printed_row
from orchestrator.execution.command_text import read_rows
from orchestrator.manifest import contain, copy_file, fsync_tree, scan
from orchestrator.processes import describe
from orchestrator.stage import Row, StageSpec
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import open_ledger
from orchestrator.store.opening import store_url


class HydraJob(NamedTuple):
    """A job of an old multirun.

    Attributes:
        folder: its output folder.
        overrides: of its task, in Hydra's grammar.
        config: the cell's config, as `orchestrator.compose.apps` composes it.
        rows: its results.
    """

    folder: Path
    overrides: tuple[str, ...]
    config: dict[str, Any]
    rows: tuple[Row, ...]


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
        UserError: there is no job, no script, or no job with results.
    """
    folders = sorted(path.parent.parent for path in root.rglob(".hydra/config.yaml"))
    if not folders:
        raise UserError(f"{root} holds no job of Hydra", allowed="folders with .hydra/config.yaml in them")
    jobs, left_out, names = list[HydraJob](), dict[str, str](), list[str]()
    for folder in folders:
        try:
            rows = _rows(folder, results, metrics or {})
        except StageFailure as failure:
            left_out[str(folder)] = str(failure)
            continue
        config, overrides, job_name = _config(folder, volatile)
        jobs.append(HydraJob(folder, overrides, config, rows))
        names.append(job_name)
    if not jobs:
        first, reason = next(iter(left_out.items()))
        raise UserError(
            f"none of {len(folders)} jobs has results",
            where=f"{first}: {reason}",
            allowed="metrics.json in its folder, --results FILE, or --metric NAME=REGEX for its log",
        )
    script = script or f"{names[0]}.py"
    if not script.startswith("-m ") and not Path(script).is_file():
        raise UserError(
            f"there is no script {script!r} here", fix="--app SCRIPT, as for `sweep launch --app`"
        )
    sweep = _composed(jobs, script, check_name(name or Path(script).stem, what="sweep"))
    ledger = open_ledger(store_url(url), create=True, at=provenance.now())
    source = yaml.safe_dump({"description": sweep.description, "app": script})
    composition = Composition(sweep, run_settings(), (), source, (str(Path.cwd()),))
    view = seal(as_view(ledger, composition).ledger, composition, ())
    by_digest = {cell.stage_digests[0]: cell for cell in sweep.cells}
    num_new = 0
    for job, digest in zip(jobs, _digests(jobs, sweep), strict=True):
        cell = by_digest.pop(digest, None)  # a later job of the same config is the same cell
        if cell is not None and view.cells[cell.id].state is not State.DONE:
            num_new += _record(view, cell, sweep.stages[digest], job)
    return Imported(view, num_new, left_out)


def _rows(folder: Path, results: str | None, metrics: Mapping[str, str]) -> tuple[Row, ...]:
    path = folder / (results or hydra_app.METRICS)
    rows: tuple[Row, ...] = read_rows(path) if results or not metrics or path.is_file() else ({},)
    logs = "".join(log.read_text(encoding="utf-8", errors="replace") for log in sorted(folder.glob("*.log")))
    printed = printed_row(metrics, logs) if metrics else {}
    return checked_rows([{**hydra_app.flat(row), **printed} for row in rows], cause="data")


def _config(folder: Path, volatile: Sequence[str]) -> tuple[dict[str, Any], tuple[str, ...], str]:
    """Return a job's config as a cell has it, its overrides, and the name of its task."""
    where = str(folder / ".hydra")
    try:
        config: Any = OmegaConf.load(folder / ".hydra/config.yaml")
        loaded: Any = OmegaConf.load(folder / ".hydra/hydra.yaml").hydra
        # Its launcher and sweeper may be plugins that are not installed here.
        schema = OmegaConf.structured(HydraConf)
        OmegaConf.set_struct(schema, False)  # Hydra itself adds keys that its schema has not
        hydra: Any = OmegaConf.merge(schema, loaded)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"the job cannot be read: {str(error).splitlines()[0]}", where=where) from None
    overrides = tuple(hydra.overrides.task)
    choices = set(hydra.runtime.choices)
    given = {
        each.key_or_group: text
        for text, each in zip(
            overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True
        )
        if each.get_key_element().lstrip("+~") not in choices and not each.is_delete()
    }
    seen = hydra_seal.Identity(list(volatile), given)
    with hydra_seal.without_resolvers() as touched:
        seen.touched = touched
        tree = seen.tree(config)
    refuse_secrets(tree, where=where)
    with open_dict(config), open_dict(hydra):
        hydra.runtime.output_dir = "???"
        hydra.sweep.subdir = "."
        for name in hydra.job.env_copy:
            hydra.job.env_set.pop(name, None)
        config.hydra = hydra
    sealed = json.dumps(hydra_seal.seal(config), separators=(",", ":"))
    return {**tree, "hydra": {"set": {}, "sealed": sealed, "resume": []}}, overrides, str(hydra.job.name)


def _values(jobs: Sequence[HydraJob]) -> list[dict[str, Any]]:
    parser = OverridesParser.create()
    return [
        {
            each.get_key_element(): None if each.is_delete() else plain(each._value)
            for each in parser.parse_overrides(list(job.overrides))
        }
        for job in jobs
    ]


def _composed(jobs: Sequence[HydraJob], script: str, name: str) -> ComposedSweep:
    """Return the sweep of some jobs; what differs between their overrides are its axes."""
    values = _values(jobs)
    keys = list(dict.fromkeys(key for each in values for key in each))
    varying = [key for key in keys if len({scalar_text(each.get(key)) for each in values}) > 1]
    specs = {
        STAGE: convert(stage_fields(script.split() if script.startswith("-m ") else [script]), StageSpec)
    }
    grid = Grid(Selectors((), (), {}), {}, specs, where="the imported jobs")
    grid.check_labels([])
    for job, each in zip(jobs, values, strict=True):
        axes: list[Axis] = [list_axis(key.lstrip("+~"), [each.get(key)]) for key in varying]
        labels = [axis.labels[0] for axis in axes]
        texts = {axis.name: label.text for axis, label in zip(axes, labels, strict=True)}
        grid.add(texts, ".".join(label.part for label in labels), job.config)
    cells, _ = grid.cells([len(jobs)])
    return ComposedSweep(
        name=name,
        description=f"imported: the Hydra app {script}",
        specs=specs,
        stages=grid.stages,
        cells=cells,
    )


def _digests(jobs: Sequence[HydraJob], sweep: ComposedSweep) -> Iterator[str]:
    """Yield the digest of the stage of each job."""
    for job in jobs:
        identity = {**job.config, "hydra": {"set": {}}}
        yield next(digest for digest, stage in sweep.stages.items() if stage.reads == identity)


def _record(view: SweepState, cell: Cell, instance: StageInstance, job: HydraJob) -> bool:
    """Copy a job's files into the store, and record them as the product; return whether it was the first."""
    ledger = view.ledger
    number = max(ledger.numbers(instance), default=0) + 1
    voided = ledger.generations(f"void/{instance.stage}").get(instance.digest, set())
    generation = max(voided, default=0) + 1
    process = describe(os.getpid())
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
