"""The entry point `compose`: from a sweep file and overrides to a sealed sweep and its run settings."""

from __future__ import annotations

import contextlib
import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
from omegaconf import OmegaConf

from orchestrator.compose.axes import ABSENT, Axis, Label, axis_of, cut, texts_of
from orchestrator.compose.configs import Configs
from orchestrator.compose.files import (
    CONDITIONS,
    SweepSource,
    config_folders,
    labels_of,
    source_in_file,
    sweep_name,
)
from orchestrator.compose.interpolations import refuse_varying
from orchestrator.compose.overrides import Overrides, composed_run_settings, escaped, refuse_secrets
from orchestrator.compose.reading import noting
from orchestrator.compose.root import Root
from orchestrator.core.commandspec import placeholders
from orchestrator.core.grid import Grid
from orchestrator.core.sealed import Cell, SealedPhase, SealedSearch, StageInstance
from orchestrator.core.selector import Selectors
from orchestrator.core.settings import RunSettings, split_store
from orchestrator.core.sweep import ComposedSweep, SweepFile, check_axis, parse, stage_specs
from orchestrator.core.tree import MISSING, pick, scalar_text
from orchestrator.errors import UserError, nearest
from orchestrator.registry import REPORTS, STAGES, importable, is_known, known, load, lookup
from orchestrator.spec import StageSpec
from orchestrator.store.opening import store_url


@dataclass(frozen=True)
class Composition:
    """The result of composing a sweep.

    Attributes:
        sweep: the sealed sweep.
        settings: for running it.
        notes: remarks for the user: merged cells, checks that were skipped.
        source: the text of the sweep file.
        import_paths: folders from which the user's stages are imported.
    """

    sweep: ComposedSweep
    settings: RunSettings
    notes: tuple[str, ...]
    source: str
    import_paths: tuple[str, ...]


Progress = Callable[[int, int], None]
"""Callback that takes the number of points composed so far, and the number of all points."""


class ComposedCells(NamedTuple):
    """The cells of a sweep, composed.

    Attributes:
        cells: all that it can have.
        stages: digest to stage instance.
        phases: with the ids of their cells.
        num_cells: the most cells that can exist.
        notes: remarks for the user.
        sum_text: how their number came about.
        search: whose later points follow from results.
    """

    cells: tuple[Cell, ...]
    stages: dict[str, StageInstance]
    phases: tuple[SealedPhase, ...]
    num_cells: int
    notes: list[str]
    sum_text: str
    search: SealedSearch | None = None


# Loaded by name: few sweeps need them.
_APPS: Final = "orchestrator.compose.apps:hosted"
_PHASES: Final = "orchestrator.compose.phases:compose_phases"
_SEARCH: Final = "orchestrator.compose.search:compose_search"
_SPACE: Final = "orchestrator.compose.search:space_of"

_NUM_WORDS = 3
"""Most notes on words that YAML 1.1 would read differently."""


def compose(
    sweep: str,
    overrides: Sequence[str] = (),
    *,
    name: str | None = None,
    cwd: Path | None = None,
    progress: Progress = lambda number, of: None,
    given: Mapping[str, Any] | None = None,
) -> Composition:
    """Compose a sweep. Nothing is written.

    Args:
        sweep: a name, or a path to a YAML file; with `given`, only a name.
        overrides: in Hydra's grammar. Overrides of axes narrow or replace them.
        name: name of a variant in the store; the file's stem by default.
        cwd: the working folder; the current one by default.
        progress: called before each point of the grid, and at the end.
        given: the content of a sweep file, in place of one.

    Raises:
        UserError: there is a mistake in the file, the config or the overrides.
    """
    with noting() as words:
        here = (cwd or Path.cwd()).resolve()
        source = _given(sweep, given, here) if given is not None else source_in_file(sweep, here)
        composition = _composed(source, overrides, name, here, progress)
    shown = list(dict.fromkeys(words))
    more = [f"and {len(shown) - _NUM_WORDS} more such words"] if len(shown) > _NUM_WORDS else []
    return replace(composition, notes=(*composition.notes, *shown[:_NUM_WORDS], *more))


def _given(name: str, tree: Mapping[str, Any], cwd: Path) -> SweepSource:
    text = OmegaConf.to_yaml(OmegaConf.create(escaped(dict(tree))))
    return SweepSource(parse(tree, where="the command line"), text, name, cwd, "the command line")


def _composed(
    source: SweepSource, overrides: Sequence[str], name: str | None, cwd: Path, progress: Progress
) -> Composition:
    """Compose a sweep: its axes, then the overrides, the stages and the run settings, and last its cells.

    Args:
        source: the sweep as written.
        overrides, name, progress: as for `compose`.
        cwd: the working folder.
    """
    file, where, folder = source.file, source.where, source.folder
    sweep_id = sweep_name(source.name, name, where=where)
    refuse_secrets(sweep_id, key="the name")
    # Stages are imported from the sweep file's folder first, then from the working folder.
    import_paths = tuple(dict.fromkeys([str(folder), str(cwd)]))
    file_axes = {axis: axis_of(axis, value, where=where) for axis, value in file.axes.items()}
    store_url, words = split_store(overrides)
    space = load(_SPACE)(file, words, where=where) if file.search is not None else None
    file_axes |= space.axes if space is not None else {}
    conditions: Any = load(CONDITIONS)(file.when, file_axes, where=where) if file.when else None
    words = words if space is None else space.words
    with contextlib.ExitStack() as stack:
        if file.app is not None:
            app = stack.enter_context(load(_APPS)(file, file_axes, words, folder=folder, where=where))
            merged, configs, stages = app
        else:
            root = Root.of_cells(file, cwd, folder, where=where)
            merged = Overrides(dict(file_axes), conditional=conditions.names if conditions else ())
            merged.add_file(file.overrides, root, where=where)
            merged.add_command_line(words, root)
            configs = Configs(root, merged, cwd=cwd, import_paths=import_paths, where=where)
            stages = file.stages
        specs = _specs(msgspec.structs.replace(file, stages=stages), import_paths, where)
        _check_texts(file, specs, where)
        _check_reports(file.report, import_paths, where)
        # Check all that needs no composed cell before the grid is composed, which takes most of the time.
        settings = composed_run_settings(merged.engine, config_folders(cwd, folder), store_url)
        _check_limits(settings, specs)
        _check_work(settings, specs)
        most = file.max_cells if merged.max_cells is None else merged.max_cells
        if file.phases or file.rungs:
            made: ComposedCells = load(_PHASES)(file, specs, words, (cwd, folder), where, most, progress)
        elif space is not None:
            made = load(_SEARCH)(file, space, merged, conditions, configs, specs, where, most, progress)
        else:
            # Labels of the file: to exclude one that the command line narrowed away is no mistake.
            selectors = Selectors.parse(file.exclude, file.include, labels_of(file_axes.values()))
            grid = Grid(selectors, file.columns, specs, where=where)
            made = fill_grid(grid, configs, merged, conditions, file.columns, specs, most, where, progress)
    notes = made.notes + _check_count(made.num_cells, file.expect_cells, merged, made.sum_text, where)
    sealed = ComposedSweep(
        name=sweep_id,
        description=file.description.strip(),
        specs=specs,
        stages=made.stages,
        cells=made.cells,
        report=tuple(file.report),
        phases=made.phases,
        search=made.search,
    )
    notes += configs.notes if file.app is not None else ()
    return Composition(sealed, settings, tuple(notes), source.text, import_paths)


def fill_grid(
    grid: Grid,
    configs: Configs,
    overrides: Overrides,
    conditions: Any,
    columns: Mapping[str, str],
    specs: Mapping[str, StageSpec],
    max_cells: int,
    where: str,
    progress: Progress,
) -> ComposedCells:
    """Compose the points of a grid that its early selectors keep, and return its cells.

    Args:
        grid: without points.
        configs: composes them.
        overrides: with the axes of the grid.
        conditions: at which points they count; None for all.
        columns: column name to config key.
        specs: stage name to spec.
        max_cells: most points that there may be.
        where: the sweep file, for messages.
        progress: called before each point, and at the end.

    Raises:
        UserError: there are too many points, or one of them cannot be composed.
    """
    axes = list(overrides.axes.values())
    for axis in axes:
        check_axis(axis.name)
    # Before any loop over the points: a mistyped range may give billions of them.
    points = _points(axes, conditions, overrides.touched, max_cells, where)
    grid.check_labels(texts_of(axes, labels) for labels in points)
    for number, labels in enumerate(points):
        progress(number, len(points))
        if not grid.admits(texts_of(axes, labels)):
            continue
        named = (
            f"{axis.name}={cut(label.text)}"
            for axis, label in zip(axes, labels, strict=True)
            if label is not ABSENT
        )
        place = " ".join(["cell", *named]) + f", {where}"
        config = configs.config(labels, where=place)
        refuse_varying(specs, configs.varying, where=place)
        shown = configs.shown(labels, config, where=place)
        texts = texts_of(axes, shown)
        _check_columns(columns, texts, config, where)
        grid.add(texts, ".".join(filter(None, (label.part for label in shown))), config)
    progress(len(points), len(points))
    cells, notes = grid.cells([len(axis.labels) for axis in axes], len(points))
    return ComposedCells(cells, grid.stages, (), len(cells), notes, grid.sum_text)


def _points(
    axes: Sequence[Axis], conditions: Any, touched: Sequence[str], max_cells: int, where: str
) -> list[tuple[Label, ...]]:
    """Return the points of the grid, after a check that they are not too many."""
    if conditions is None:
        _check_size(axes, max_cells, where)
        return list(itertools.product(*(axis.labels for axis in axes)))
    conditions.refuse_idle(axes, touched)
    points = list(itertools.islice(conditions.points(axes), max_cells + 1))
    if len(points) > max_cells:
        _check_size(axes, max_cells, where)
    return points


def _check_size(axes: Sequence[Axis], max_cells: int, where: str) -> None:
    num_points = math.prod(len(axis.labels) for axis in axes)
    if num_points > max_cells:
        product = " x ".join(f"{len(axis.labels):,}" for axis in axes)
        raise UserError(
            f"the grid has {product} = {num_points:,} points, more than max_cells: {max_cells:,}",
            where=where,
            fix=f"max_cells={num_points} if that is what you mean",
        )


def _check_columns(
    columns: Mapping[str, str], labels: Mapping[str, str], config: Mapping[str, Any], where: str
) -> None:
    for column, key in columns.items():
        value = pick(config, key)
        _check_column_name(column, key, value, labels, config, where)
        if isinstance(value, Mapping):
            raise UserError(
                f"the column {column!r} is of {key!r}, a section of the config and not a value",
                where=where,
                allowed=nearest(key, [f"{key}.{name}" for name in value]),
            )


def _check_column_name(
    column: str, key: str, value: Any, labels: Mapping[str, str], config: Mapping[str, Any], where: str
) -> None:
    """Refuse a column that shows another value than the axis or config key of the same name."""
    own = labels.get(column, pick(config, column))
    text = scalar_text(value)
    if own is MISSING or isinstance(own, Mapping) or value is MISSING or scalar_text(own) == text:
        return
    raise UserError(
        f"the column {column!r} shows {key}, which is {text}, but {column!r} itself is {scalar_text(own)}",
        where=where,
        fix="give the column another name",
    )


def _specs(file: SweepFile, import_paths: Sequence[str], where: str) -> dict[str, StageSpec]:
    def registered(name: str) -> StageSpec | None:
        if not is_known(STAGES, name):
            return None
        spec: StageSpec = lookup(STAGES, name, kind="stage")
        return spec

    specs = stage_specs(file, registered, known=lambda: known(STAGES), where=where)
    for name, spec in specs.items():
        if spec.run is not None:
            _check_target(f"stage {name!r} runs {spec.run!r}", spec.run, import_paths, where)
    return specs


def _check_texts(file: SweepFile, specs: Mapping[str, StageSpec], where: str) -> None:
    """Refuse credentials in texts that are sealed beside the cells' config."""
    for name, spec in specs.items():
        refuse_secrets(spec.command, key=f"stages.{name}.command", where=where)
    refuse_secrets(file.description, key="description", where=where)


def _check_reports(names: Sequence[str], import_paths: Sequence[str], where: str) -> None:
    for name in names:
        if re.fullmatch(r"[\w.]+:\w+", name):
            _check_target(f"report {name!r} is asked for", name, import_paths, where)
        elif not is_known(REPORTS, name):
            raise UserError(f"unknown report {name!r}", where=where, allowed=nearest(name, known(REPORTS)))


def _check_target(what: str, target: str, import_paths: Sequence[str], where: str) -> None:
    with importable(import_paths):
        problem, there = load("orchestrator.plugins:unfound")(target)
    if problem:
        looked = f"looked in {', '.join(import_paths)} and the environment"
        raise UserError(f"{what}, but {problem}", where=where, allowed=there or looked)


def _check_limits(settings: RunSettings, specs: Mapping[str, StageSpec]) -> None:
    for stage in settings.policy.limits_s:
        if stage not in specs:
            raise UserError(
                f"policy.limits_s is of the unknown stage {stage!r}",
                where="the engine's settings",
                allowed=nearest(stage, specs),
            )


def _check_work(settings: RunSettings, specs: Mapping[str, StageSpec]) -> None:
    """Refuse stages with a work folder over a bucket, where the next attempt would not find the folder."""
    url = store_url(settings.store.url)
    in_bucket = "://" in url and not url.startswith("file://")
    for name, spec in specs.items():
        if in_bucket and (spec.keep or "work" in placeholders(spec)):
            raise UserError(
                f"stage {name!r} uses a work folder, which a store in a bucket does not keep",
                where=f"store.url={url}",
                allowed="a store in a folder; or {checkpoints} and {resume}, which are kept in a bucket too",
            )


def _check_count(
    num_cells: int, expected: int | None, merged: Overrides, sum_text: str, where: str
) -> list[str]:
    """Compare the number of cells with the expected number, and return notes.

    If the command line changed an axis, the number in the sweep file no longer applies.
    """
    if merged.expect_cells is not None:
        expected = merged.expect_cells
    elif expected is not None and merged.touched:
        axes = ", ".join(dict.fromkeys(merged.touched))
        return [f"expect_cells={expected} is not checked: the command line changed {axes}"]
    if expected is not None and num_cells != expected:
        difference = num_cells - expected
        raise UserError(
            f"the sweep has {num_cells} cells, {abs(difference)} {'more' if difference > 0 else 'fewer'} "
            f"than expect_cells: {expected}",
            where=where,
            allowed=sum_text,
            fix=f"expect_cells={num_cells} if that is what you mean",
        )
    return []
