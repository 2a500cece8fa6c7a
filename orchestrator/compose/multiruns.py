"""Jobs of old Hydra multiruns, read as the cells of a sweep of their app."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml  # type: ignore[import-untyped]
from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict

from orchestrator.compose import hydra_seal
from orchestrator.compose.apps import STAGE, stage_fields
from orchestrator.compose.axes import Axis, list_axis, plain
from orchestrator.compose.overrides import refuse_secrets
from orchestrator.core.grid import Grid
from orchestrator.core.selector import Selectors
from orchestrator.core.sweep import ComposedSweep
from orchestrator.core.tree import checked_rows, convert, scalar_text
from orchestrator.errors import StageFailure, UserError
from orchestrator.execution.command_output import printed_row
from orchestrator.execution.command_text import read_rows
from orchestrator.stage import Row, StageSpec


class HydraJob(NamedTuple):
    """A job of an old multirun.

    Attributes:
        folder: its output folder.
        overrides: of its task, in Hydra's grammar.
        config: the cell's config, as `orchestrator.compose.apps` composes it.
        rows: its results.
        name: of its task, which is the stem of the script.
    """

    folder: Path
    overrides: tuple[str, ...]
    config: dict[str, Any]
    rows: tuple[Row, ...]
    name: str


def read_jobs(
    root: Path,
    *,
    results: str | None,
    metrics: Mapping[str, str],
    volatile: Sequence[str],
    base: Callable[[str], dict[str, Any]],
) -> tuple[list[HydraJob], dict[str, str]]:
    """Return the jobs that have results, and the folder of each other job with the reason.

    Args:
        root, results, metrics, volatile: see `orchestrator.api.importing.import_jobs`.
        base: name of a job to `orchestrator.compose.hydra_seal.Identity`'s base.

    Raises:
        UserError: there is no job, or none with results.
    """
    folders = sorted(path.parent.parent for path in root.rglob(".hydra/config.yaml"))
    if not folders:
        raise UserError(f"{root} holds no job of Hydra", allowed="folders with .hydra/config.yaml in them")
    jobs, left_out = list[HydraJob](), dict[str, str]()
    for folder in folders:
        try:
            rows = _rows(folder, results, metrics)
        except StageFailure as failure:
            left_out[str(folder)] = str(failure)
            continue
        config, overrides, name = _config(folder, volatile, base)
        jobs.append(HydraJob(folder, overrides, config, rows, name))
    if not jobs:
        first, reason = next(iter(left_out.items()))
        raise UserError(
            f"none of {len(folders)} jobs has results",
            where=f"{first}: {reason}",
            allowed="metrics.json in its folder, --results FILE, or --metric NAME=REGEX for its log",
        )
    return jobs, left_out


def _rows(folder: Path, results: str | None, metrics: Mapping[str, str]) -> tuple[Row, ...]:
    path = folder / (results or hydra_seal.METRICS)
    rows: tuple[Row, ...] = read_rows(path) if results or not metrics or path.is_file() else ({},)
    logs = "".join(log.read_text(encoding="utf-8", errors="replace") for log in sorted(folder.glob("*.log")))
    printed = printed_row(metrics, logs) if metrics else {}
    return checked_rows([{**hydra_seal.flat(row), **printed} for row in rows], cause="data")


def _config(
    folder: Path, volatile: Sequence[str], base: Callable[[str], dict[str, Any]]
) -> tuple[dict[str, Any], tuple[str, ...], str]:
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
    seen = hydra_seal.Identity(list(volatile), given, base(str(hydra.job.name)))
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


def sweep_of(jobs: Sequence[HydraJob], program: Sequence[str], name: str) -> ComposedSweep:
    """Return the sweep of some jobs; what differs between their overrides are its axes.

    Args:
        jobs: with results.
        program: see `orchestrator.compose.apps.program_of`.
        name: of the sweep.
    """
    values = _values(jobs)
    keys = list(dict.fromkeys(key for each in values for key in each))
    varying = [key for key in keys if len({scalar_text(each.get(key)) for each in values}) > 1]
    specs = {STAGE: convert(stage_fields(program), StageSpec)}
    grid = Grid(Selectors((), (), {}), {}, specs, where="the imported jobs")
    grid.check_labels([])
    for job, each in zip(jobs, values, strict=True):
        axes: list[Axis] = [list_axis(key.lstrip("+~"), [each.get(key)]) for key in varying]
        labels = [axis.labels[0] for axis in axes]
        texts = {axis.name: label.text for axis, label in zip(axes, labels, strict=True)}
        grid.add(texts, ".".join(label.part for label in labels), job.config)
    cells, _ = grid.cells([len(jobs)], len(jobs))
    return ComposedSweep(
        name=name,
        description=f"imported: the Hydra app {' '.join(program)}",
        specs=specs,
        stages=grid.stages,
        cells=cells,
    )


def digests_of(jobs: Sequence[HydraJob], sweep: ComposedSweep) -> Iterator[str]:
    """Yield the digest of the stage of each job."""
    for job in jobs:
        identity = {**job.config, "hydra": {"set": {}}}
        yield next(digest for digest, stage in sweep.stages.items() if stage.reads == identity)
