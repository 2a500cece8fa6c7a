"""Phases and rungs of a sweep file: all cells that the sweep can have, and what decisions choose among.

Each phase is a grid of its own. After the first one it has the axes of the phase before, without those over
which `select` takes the mean, and its own:

    tune      lr x seed           27 cells; select: {top: 1, mean: [seed]}
    confirm   lr x seed=0..4      45 cells, 5 for each lr: those of the winner will exist

Since all cells are composed here, the seal holds whatever a decision may choose. Nothing is composed later.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import msgspec

from orchestrator.compose.axes import Axis, Label, axis_of
from orchestrator.compose.configs import Configs
from orchestrator.compose.files import CONDITIONS, labels_of
from orchestrator.compose.main import ComposedCells, Progress, fill_grid
from orchestrator.compose.overrides import Overrides
from orchestrator.compose.root import Root
from orchestrator.core.commandspec import placeholders
from orchestrator.core.grid import Grid
from orchestrator.core.sealed import Cell, Cut, Rungs, SealedPhase, Select, most_cells
from orchestrator.core.selector import Selectors
from orchestrator.core.sweep import PhaseFile, RungsFile, SweepFile, gates_among
from orchestrator.errors import UserError, counted, nearest
from orchestrator.registry import load
from orchestrator.spec import StageSpec

AXIS = "phase"
"""Name of the axis whose label is the name of a cell's phase."""


class _Grown(NamedTuple):
    """A phase with its composed cells.

    Attributes:
        axes: by name, as the command line left them.
        when: the conditions of the axes.
        made: the cells.
        merged: labels of each point that was merged, and of the one that it equals.
    """

    axes: dict[str, Axis]
    when: dict[str, str]
    made: ComposedCells
    merged: list[tuple[Mapping[str, str], Mapping[str, str]]]

    @property
    def cells(self) -> tuple[Cell, ...]:
        """The cells, in the order of the grid."""
        return self.made.cells


def compose_phases(
    file: SweepFile,
    specs: Mapping[str, StageSpec],
    words: Sequence[str],
    folders: tuple[Path, Path],
    where: str,
    max_cells: int,
    progress: Progress,
) -> ComposedCells:
    """Return all cells that a sweep with phases can have.

    Args:
        file: the sweep file.
        specs: stage name to spec.
        words: overrides of the command line. One that names an axis of some phase concerns phases with that
            axis alone; others concern all phases.
        folders: the working folder, and that of the sweep file.
        where: the sweep file, for messages.
        max_cells: most points that all phases may have together.
        progress: called before each point of a phase.

    Raises:
        UserError: there is a mistake in a phase.
    """
    _check(file, where)
    cwd, folder = folders
    root = Root.of_cells(file, cwd, folder, where=where)
    made: list[tuple[SealedPhase, _Grown]] = []
    left = max_cells
    only = PhaseFile(
        name="", axes=file.axes, when=file.when, exclude=file.exclude, include=file.include, rungs=file.rungs
    )
    for part in file.phases or [only]:
        place = f"phase {part.name}, {where}" if part.name else where
        before = made[-1] if made else None
        grown = _grow(file, part, before, specs, words, root, folders, place, left, progress)
        left -= len(grown.cells)
        made.append((_sealed(part, grown, before, place), grown))
    names = dict.fromkeys(axis for _, grown in made for axis in grown.axes)
    cells = tuple(_with_axes(cell, names) for _, grown in made for cell in grown.cells)
    stages = {digest: each for _, grown in made for digest, each in grown.made.stages.items()}
    befores = [None, *(phase for phase, _ in made)]
    numbers = [most_cells(phase, before) for (phase, _), before in zip(made, befores, strict=False)]
    course = ", then ".join(
        (f"{phase.name}: " if phase.name else "")
        + (f"at most {number}" if index else counted(number, "cell"))
        + _rungs_text(phase, number)
        for index, ((phase, _), number) in enumerate(zip(made, numbers, strict=True))
    )
    notes = [note for _, grown in made for note in grown.made.notes]
    return ComposedCells(
        cells, stages, tuple(phase for phase, _ in made), sum(numbers), [course, *notes], course
    )


def _rungs_text(phase: SealedPhase, number: int) -> str:
    """Return how many cells of a phase reach each rung, at most; "" without rungs."""
    if phase.rungs is None:
        return ""
    texts = []
    for step in phase.rungs.at:
        texts.append(f"{number} to step {step}")
        number = max(1, math.floor(number * phase.rungs.keep + 1e-9))
    return f" ({phase.rungs.stage}: {', '.join(texts)})"


def _with_axes(cell: Cell, names: Iterable[str]) -> Cell:
    """Return a cell with the axes of all phases; its label is empty on those that its phase does not have."""
    return msgspec.structs.replace(cell, axes={name: cell.axes.get(name, "") for name in names})


def _grow(
    file: SweepFile,
    part: PhaseFile,
    before: tuple[SealedPhase, _Grown] | None,
    specs: Mapping[str, StageSpec],
    words: Sequence[str],
    root: Root,
    folders: tuple[Path, Path],
    where: str,
    max_cells: int,
    progress: Progress,
) -> _Grown:
    """Compose the cells that a phase can have."""
    cut = cut_of(part.rungs, specs, where=where) if part.rungs is not None else None
    own = {axis: axis_of(axis, value, where=where) for axis, value in part.axes.items()}
    named = {AXIS: Axis(AXIS, (Label(part.name, part.name, ()),), is_map=True)} if part.name else {}
    inherited: dict[str, Axis] = {}
    if before is not None and before[0].select is not None:
        dropped = {AXIS, *before[0].select.mean}
        inherited = {name: axis for name, axis in before[1].axes.items() if name not in dropped}
    taken = before[1].when if before is not None else {}
    when = {key: on for key, on in taken.items() if key.partition("=")[0].strip() in inherited.keys() - own}
    when |= part.when
    conditions = load(CONDITIONS)(when, {**inherited, **own}, where=where) if when else None
    names = conditions.names if conditions is not None else ()
    overrides = Overrides({**named, **inherited, **own}, conditional=names)
    overrides.add_file(file.overrides, root, where=where)
    num_settings = len(overrides.engine)
    if part.name and (idle := [key for key in part.overrides if key in overrides.axes]):
        raise UserError(
            f"the override {idle[0]!r} would change nothing: it is an axis of the phase",
            where=where,
            fix=f"leave it out, or name {idle[0]} in `mean` of the phase before, which ends the axis",
        )
    overrides.add_file(part.overrides, root, where=where)
    if len(overrides.engine) > num_settings:
        raise UserError(
            f"{overrides.engine[-1]!r} is a setting of the engine",
            where=where,
            allowed="the same for all phases: under `overrides` of the sweep",
        )
    elsewhere = {name for other in file.phases for name in other.axes} - overrides.axes.keys()
    mine = [word for word in words if overrides.parse(word).key_or_group not in elsewhere]
    overrides.add_command_line(mine, root)
    paths = tuple(dict.fromkeys([str(folders[1]), str(folders[0])]))
    configs = Configs(root, overrides, cwd=folders[0], import_paths=paths, where=where)
    both = (file, part) if part.name else (part,)
    exclude = [text for each in both for text in each.exclude]
    include = [text for each in both for text in each.include]
    selectors = Selectors.parse(exclude, include, labels_of({**inherited, **own}.values()))
    grid = Grid(selectors, file.columns, specs, where=where, cut=cut)
    made = fill_grid(grid, configs, overrides, conditions, file.columns, specs, max_cells, where, progress)
    return _Grown(dict(overrides.axes), when, made, grid.merged)


def _sealed(
    part: PhaseFile, grown: _Grown, before: tuple[SealedPhase, _Grown] | None, where: str
) -> SealedPhase:
    """Return a phase with what can be chosen in it, and what follows from the choices before it."""
    select = part.select
    candidates: dict[str, list[str]] = {}
    groups: dict[str, str] = {}
    if select is not None:
        for axis in (*select.mean, *select.per):
            if axis == AXIS:
                raise UserError(
                    f"select names {AXIS!r}, of which a phase has one value",
                    where=where,
                    allowed=", ".join(each for each in grown.axes if each != AXIS),
                )
            if axis not in grown.axes:
                raise UserError(
                    f"select names the unknown axis {axis!r}", where=where, allowed=nearest(axis, grown.axes)
                )
        keys = [axis for axis in grown.axes if axis not in {AXIS, *select.mean}]
        for cell in grown.cells:
            key = _labels(cell.axes, keys)
            candidates.setdefault(key, []).append(cell.id)
            if select.per:
                groups[key] = _labels(cell.axes, select.per)
    return SealedPhase(
        name=part.name,
        candidates={key: tuple(ids) for key, ids in candidates.items()},
        follows=_follows(part, grown, before),
        groups=groups,
        select=select,
        rungs=_rungs(part, grown) if part.rungs is not None else None,
    )


def cut_of(rungs: RungsFile, specs: Mapping[str, StageSpec], *, where: str) -> Cut:
    """Return how rungs cut a stage, after a check that its parts can go on from one another.

    Args:
        rungs: as written.
        specs: stage name to spec.
        where: the sweep file, for messages.

    Raises:
        UserError: the stage cannot be cut so.
    """
    where = f"rungs, {where}"
    if rungs.stage not in specs:
        raise UserError(f"unknown stage {rungs.stage!r}", where=where, allowed=nearest(rungs.stage, specs))
    spec = specs[rungs.stage]
    if len(rungs.at) < 2 or rungs.at[0] < 1 or sorted(set(rungs.at)) != rungs.at:
        raise UserError(f"at is {rungs.at}", where=where, allowed="two steps or more, ascending")
    _share(rungs.keep, where)
    if not any(f"{rungs.key}.".startswith(f"{read}.") for read in spec.reads):
        raise UserError(
            f"stage {rungs.stage!r} does not read the key {rungs.key!r}",
            where=where,
            allowed=nearest(rungs.key, spec.reads),
        )
    if spec.name == "train":
        raise UserError(
            "the stage 'train' cannot be cut: its learning rate falls towards its last step",
            where=where,
            allowed="a stage of which a shorter run is the beginning of a longer one",
        )
    if spec.each or spec.gated_by or rungs.stage in gates_among(specs):
        raise UserError(f"stage {rungs.stage!r} has `each` or gates, so it cannot be cut", where=where)
    if spec.command is not None and not {"checkpoint", "resume"} & set(placeholders(spec)):
        raise UserError(
            f"the command of stage {rungs.stage!r} takes no checkpoint to go on from",
            where=where,
            allowed="{checkpoint} with `checkpoints: PATTERN`, or {resume}",
        )
    return Cut(rungs.stage, rungs.key, tuple(rungs.at))


MAX_SHARE = 40
"""Most characters of a share."""


def _share(keep: float | str, where: str) -> float:
    """Return the share of cells that go on, such as ``1/3``."""
    text = str(keep)
    try:
        # An exponent may stand for a number of any size.
        share = float(Fraction(text)) if len(text) <= MAX_SHARE and not set(text) & set("eE_") else 0.0
    except (ValueError, ZeroDivisionError):
        share = 0.0
    if not 0 < share < 1:
        raise UserError(f"keep is {keep!r}", where=where, allowed="a share between 0 and 1, such as 1/3")
    return share


def _rungs(part: PhaseFile, grown: _Grown) -> Rungs:
    """Return the sealed rungs of a phase."""
    written = part.rungs
    assert written is not None
    stages = grown.made.stages
    return Rungs(
        stage=written.stage,
        at=tuple(written.at),
        keep=_share(written.keep, ""),
        select=Select(metric=written.metric, mode=written.mode, where=written.where),
        parts={
            cell.id: tuple(d for d in cell.stage_digests if stages[d].stage == written.stage)
            for cell in grown.cells
        },
    )


def _follows(
    part: PhaseFile, grown: _Grown, before: tuple[SealedPhase, _Grown] | None
) -> dict[str, tuple[str, ...]]:
    """Return which cells of a phase follow from each candidate of the one before."""
    if before is None or before[0].select is None:
        return {"": tuple(cell.id for cell in grown.cells)}
    # What the phase sets on its own axes replaces what was chosen for them.
    shared = [
        name
        for name in before[1].axes
        if name in grown.axes and name not in {AXIS, *before[0].select.mean, *part.axes}
    ]
    ids = {tuple(cell.axes.items()): cell.id for cell in grown.cells}
    points: list[tuple[Mapping[str, str], str]] = [(cell.axes, cell.id) for cell in grown.cells]
    points += [(labels, ids[tuple(first.items())]) for labels, first in grown.merged]
    by_labels: dict[str, dict[str, None]] = {}
    for labels, cell_id in points:
        by_labels.setdefault(_labels(labels, shared), {})[cell_id] = None
    labels_by_id = {cell.id: cell.axes for cell in before[1].cells}
    found = {
        key: tuple(by_labels.get(_labels(labels_by_id[members[0]], shared), ()))
        for key, members in before[0].candidates.items()
    }
    if empty := [key for key, cells in found.items() if not cells]:
        raise UserError(
            f"phase {part.name} has no cell if {empty[0]} is chosen before",
            allowed="`exclude` and `include` that leave a cell for each candidate",
        )
    return found


def _labels(labels: Mapping[str, str], axes: Iterable[str]) -> str:
    return " ".join(f"{axis}={labels[axis]}" for axis in axes)


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")


def _check(file: SweepFile, where: str) -> None:
    """Refuse phases that contradict themselves or the rest of the file."""
    if file.app is not None:
        raise UserError("a sweep with `app` has no phases", where=where, allowed="`axes` of the sweep")
    if not file.phases:
        return
    if file.axes or file.when:
        raise UserError("the sweep has both `axes` and `phases`", where=where, fix="the axes go into a phase")
    names: set[str] = set()
    for index, part in enumerate(file.phases):
        place = f"phase {part.name}, {where}"
        if not _NAME.fullmatch(part.name) or len(part.name) > 40 or part.name in names:
            raise UserError(
                f"{part.name!r} cannot be the name of a phase",
                where=where,
                allowed="letters, digits, _ and -, at most 40, and each name once",
            )
        names.add(part.name)
        if file.rungs is not None:
            raise UserError("the sweep has both `phases` and `rungs`", where=where, fix="rungs of a phase")
        if AXIS in part.axes:
            raise UserError(f"{AXIS!r} cannot be the name of an axis", where=place)
        is_last = index == len(file.phases) - 1
        if is_last and part.select is not None:
            raise UserError("the last phase has a `select`, after which nothing comes", where=place)
        if not is_last and part.select is None:
            raise UserError("no `select`", where=place, fix="select: {metric: NAME, mode: max}")
        if part.select is not None:
            _check_select(part.select, place)


def _check_select(select: Select, where: str) -> None:
    if not select.metric:
        raise UserError("select.metric is empty", where=where, allowed="a column of the result rows")
    if select.top < 1:
        raise UserError(f"select.top is {select.top}", where=where, allowed="at least 1")
    if both := set(select.mean) & set(select.per):
        raise UserError(f"select has the axis {min(both)!r} in both `mean` and `per`", where=where)
