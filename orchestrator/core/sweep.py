"""A sweep file as written, with checks of its names and stages. Its sealed form is in `core.sealed`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from orchestrator.core.commandspec import check_command, check_remedies
from orchestrator.core.sealed import Cell as Cell
from orchestrator.core.sealed import ComposedSweep as ComposedSweep
from orchestrator.core.sealed import GateFacts as GateFacts
from orchestrator.core.sealed import Input as Input
from orchestrator.core.sealed import Select
from orchestrator.core.sealed import StageInstance as StageInstance
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, nearest
from orchestrator.spec import StageSpec

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_NAME = 128
"""Maximum length of a name, in characters.

Names become parts of paths, with a suffix. File systems commonly allow 255 bytes.
"""

# Columns of every result row. An axis or column of the same name would hide them.
_ENGINE_COLUMNS = ("cell", "sweep", "revision", "stage", "attempts", "seconds", "code")


class RungsFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The cut of a stage into rungs, after each of which only the best cells go on.

    Attributes:
        stage: the stage.
        key: config key of the step at which the stage ends.
        at: its values, ascending; the last one is that of the whole stage.
        keep: share of the cells that goes on after each rung, such as ``1/3``.
        metric, mode: as in `Select`; the metric is one of the stage's own rows.
        where: as in `Select`.
    """

    stage: str
    key: str
    at: list[int]
    keep: float | str
    metric: str
    mode: Literal["min", "max"]
    where: dict[str, str | int | float | bool] = {}


class PhaseFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One phase of a sweep file. All but the first have the axes of the chosen cells too.

    Attributes:
        name: of the phase, which is the label of its cells on the axis ``phase``.
        axes, when, overrides, exclude, include: as in `SweepFile`, of this phase.
        select: how cells are chosen for the next phase; every phase but the last one has it.
        rungs: the cut of one of its stages.
    """

    name: str
    axes: dict[str, Any] = {}
    when: dict[str, str] = {}
    overrides: dict[str, Any] | list[str] = {}
    exclude: list[str] = []
    include: list[str] = []
    select: Select | None = None
    rungs: RungsFile | None = None


class SweepFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A sweep file as written, completed from the file that it names as `like`.

    Axes, conditions and overrides are completed key by key. Any other key that is missing is taken over as
    a whole, except the description and the number of cells.

    Attributes:
        description: its first line is shown by `sweep list`.
        expect_cells: the number of cells that it should have.
        max_cells: the number of points that its grid may have, before exclusions.
        overrides: key to value, or a list in Hydra's grammar; applied to every cell.
        axes: name to a list of values, a list in Hydra's grammar, or label to {key: value}.
        when: an axis, or ``axis=value``, to a selector of other axes' labels; elsewhere it does not count.
        exclude: selectors of cells to leave out.
        include: selectors; only cells that match one of them stay.
        columns: column name to config key.
        stages: names of built-in stages, or stage name to spec.
        report: names of the reports written at the end of a launch.
        config: the primary config itself, in place of ``conf/config.yaml``.
        app: a Hydra app: its script, or a mapping with ``script`` and further keys; see docs/hydra-apps.md.
        phases: phases in place of `axes`, in order; see `PhaseFile`.
        rungs: the cut of a stage in a sweep without `phases`; see `RungsFile`.
        search: parameters in place of `axes`, whose values a sampler proposes; see docs/search.md.
    """

    description: str = ""
    expect_cells: int | None = None
    max_cells: Annotated[int, msgspec.Meta(ge=1)] = 100_000
    overrides: dict[str, Any] | list[str] = {}
    axes: dict[str, Any] = {}
    when: dict[str, str] = {}
    exclude: list[str] = []
    include: list[str] = []
    columns: dict[str, str] = {}
    stages: list[str] | dict[str, dict[str, Any] | None] = []
    report: list[str] = []
    config: dict[str, Any] | None = None
    app: str | dict[str, Any] | None = None
    phases: list[PhaseFile] = []
    rungs: RungsFile | None = None
    search: dict[str, Any] | None = None


def parse(tree: Any, *, where: str) -> SweepFile:
    """Convert a tree read from YAML into a sweep file, and validate its names.

    Args:
        tree: what YAML gave.
        where: the file, for messages.

    Raises:
        UserError: a key is unknown, a type is wrong, or a name is not allowed.
    """
    if isinstance(tree, Mapping) and isinstance(tree.get("axes"), Mapping):
        # first: the rest of a function that YAML split would be reported as a wrong type
        _check_functions(tree["axes"], where)
    file = convert(tree, SweepFile, where=where)
    for name in file.axes:
        check_axis(name, where=where)
    for name in file.columns:
        if not name.strip() or len(name) > MAX_NAME or not name.isprintable():
            raise UserError(f"{_short(name)!r} cannot be the name of a column", where=where)
        if name in _ENGINE_COLUMNS:
            raise UserError(
                f"{name!r} cannot be the name of a column",
                where=where,
                allowed=f"every result row has its own {', '.join(_ENGINE_COLUMNS)}",
            )
    if not file.stages and file.app is None:
        raise UserError("the sweep has no stages", where=where, fix="stages: [NAME, ...]")
    return file


def check_axis(name: str, *, where: str = "") -> None:
    """Refuse a name that is not allowed for an axis, or has another meaning in result rows and selectors.

    Args:
        name: of the axis.
        where: the file, for messages.

    Raises:
        UserError: the name is refused.
    """
    if not name or len(name) > MAX_NAME or not name.isprintable() or re.search(r"[\s=,!]", name):
        allowed = "the dotted name of a key, without spaces and = , !"
        raise UserError(f"{_short(name)!r} cannot be the name of an axis", where=where, allowed=allowed)
    if name in (taken := (*_ENGINE_COLUMNS, "state", "cause")):
        raise UserError(
            f"{name!r} cannot be the name of an axis",
            where=where,
            allowed=f"result rows and selectors have their own {', '.join(taken)}",
            fix=f"another name with named values: my_{name}: {{LABEL: {{{name}: VALUE}}}}",
        )


def _check_functions(axes: Mapping[Any, Any], where: str) -> None:
    """Refuse a function such as ``range(0,3)`` as an item of a list.

    Inside braces or brackets YAML splits at the comma, so ``{seed: range(0,3)}`` sets ``seed`` to
    ``range(0``. That remainder is refused too.
    """
    for name, value in axes.items():
        torn = isinstance(value, str) and value.count("(") > value.count(")")
        items = value if isinstance(value, list) else [value] if torn else []
        for item in items:
            if isinstance(item, str) and re.match(r"(range|choice|glob|interval|sort|shuffle)\(", item):
                raise UserError(
                    f"axis {name!r} has the text {_short(item)!r} for a value",
                    where=where,
                    allowed="a function stands alone, and in quotes where braces or brackets are around it",
                    fix=f'{name}: "range(0,3)"',
                )


def is_name(name: str) -> bool:
    """Return whether a stored sweep may have this name. Earlier versions allowed more than `check_name`."""
    return len(name) < 256 and _NAME.fullmatch(name) is not None


def check_name(name: str, *, what: str, where: str = "") -> str:
    """Return a name unchanged if it may become part of a path.

    Args:
        name: of a sweep or a stage.
        what: what the name belongs to, for messages.
        where: the file, for messages.

    Raises:
        UserError: it contains other characters, or is too long.
    """
    if not is_name(name) or name.endswith(".") or len(name) > MAX_NAME:
        raise UserError(
            f"{_short(name)!r} cannot be the name of a {what}",
            where=where,
            allowed=f"letters, digits and . _ + -, beginning with a letter or digit, not ending with a dot, "
            f"at most {MAX_NAME}",
        )
    return name


def _short(name: str) -> str:
    return name if len(name) <= 40 else f"{name[:40]}..."


def stage_specs(
    file: SweepFile,
    registered: Callable[[str], StageSpec | None],
    *,
    known: Callable[[], list[str]],
    where: str,
) -> dict[str, StageSpec]:
    """Return the spec of each stage of a sweep, in the order of the file.

    Args:
        file: the sweep file.
        registered: returns the spec of a stage that is built in or a plugin's, None for other names.
        known: returns these names, for an error.
        where: the file, for messages.

    Raises:
        UserError: a stage or an `after` is unknown, or a spec contradicts itself.
    """
    stages = file.stages if isinstance(file.stages, dict) else dict.fromkeys(file.stages)
    if len(stages) < len(file.stages):
        raise UserError("a stage is named twice", where=where)
    specs: dict[str, StageSpec] = {}
    for name, fields in stages.items():
        check_name(name, what="stage", where=where)
        if other := next((known for known in specs if known.lower() == name.lower()), None):
            raise UserError(
                f"the stages {other!r} and {name!r} differ only in case",
                where=where,
                allowed="their folders would be one where a file system ignores case",
            )
        specs[name] = spec = _spec(name, fields or {}, registered, known, where)
        if spec.limit_s is not None and not spec.limit_s > 0:  # also catches NaN
            raise UserError(f"stages.{name}.limit_s is {spec.limit_s!r}", where=where, allowed="more than 0")
        if spec.version < 0:
            raise UserError(f"stages.{name}.version is {spec.version}", where=where, allowed="0, 1, 2, ...")
    for name, spec in specs.items():
        for other in spec.after:
            if other not in specs:
                raise UserError(
                    f"stage {name!r} comes after the unknown stage {other!r}",
                    where=where,
                    allowed=nearest(other, specs),
                )
        # A gate of a stage that ships here counts in the sweeps that name it.
        if "gated_by" not in (stages[name] or {}):
            gates = tuple(gate for gate in spec.gated_by if gate in specs)
            specs[name] = msgspec.structs.replace(spec, gated_by=gates)
    for name in specs:
        _check_gates(name, specs, where)
    return specs


def gates_among(specs: Mapping[str, StageSpec]) -> tuple[str, ...]:
    """Return the names of the stages that gate others, in the order of the file."""
    named = {gate for spec in specs.values() for gate in spec.gated_by}
    return tuple(name for name in specs if name in named)


def _check_gates(name: str, specs: Mapping[str, StageSpec], where: str) -> None:
    """Refuse a gate that does not exist, and one that would wait for the stage that waits for it."""
    for gate in specs[name].gated_by:
        if gate not in specs:
            raise UserError(
                f"stage {name!r} is gated by the unknown stage {gate!r}",
                where=where,
                allowed=nearest(gate, specs),
            )
        spec = specs[gate]
        if spec.each or spec.skip or spec.gated_by:
            raise UserError(
                f"{gate!r} gates {name!r}, so it has neither each, skip nor gated_by", where=where
            )
        if "launch" in spec.reads:
            raise UserError(f"{gate!r} is a gate: its own `launch` says what it is for", where=where)
        if taker := next((other for other in specs if gate in specs[other].after), None):
            raise UserError(
                f"{gate!r} gates {name!r}, and {taker!r} comes after it",
                where=where,
                allowed="a gate makes no product that other stages take",
            )
        taken, todo = set[str](), list(spec.after)
        while todo:
            taken.add(other := todo.pop())
            todo += set(specs[other].after) - taken if other in specs else ()
        if waiting := next((other for other in taken if specs[other].gated_by), None):
            raise UserError(f"{gate!r} would wait for {waiting!r}, which is gated itself", where=where)


def _spec(
    name: str,
    fields: Mapping[str, Any],
    registered: Callable[[str], StageSpec | None],
    known: Callable[[], list[str]],
    where: str,
) -> StageSpec:
    key = f"stages.{name}"
    is_whole = "run" in fields or "command" in fields
    shipped = None if is_whole else registered(name)
    if not is_whole and shipped is None:
        raise UserError(
            f"unknown stage {name!r}",
            where=where,
            allowed=nearest(name, known()),
            fix="a stage of one's own has either `run: module:function` or `command: ...`",
        )
    # A built-in stage with some fields changed, such as its limit.
    if shipped is not None:
        changes = convert(dict(fields), StageSpec, where=where, key=key)
        spec = msgspec.structs.replace(shipped, **{field: getattr(changes, field) for field in fields})
        check_remedies(name, spec, where)
        return spec
    if "name" in fields:
        raise UserError(f"{key}.name is for stages that ship here", where=where)
    spec = convert(dict(fields), StageSpec, where=where, key=key)
    if (spec.run is None) == (spec.command is None):
        raise UserError(f"stage {name!r} needs exactly one of `run` and `command`", where=where)
    if spec.run is not None and not re.fullmatch(r"[\w.]+:\w+", spec.run):
        raise UserError(f"{key}.run is {spec.run!r}", where=where, allowed="module:function")
    check_command(name, spec, where)
    check_remedies(name, spec, where)
    for inner in spec.neutral:
        # A neutral key must be read: in keys that are not read it would have no effect.
        if not any(f"{inner}.".startswith(f"{read}.") for read in spec.reads):
            raise UserError(
                f"{key}.neutral names {inner!r}, which the stage does not read",
                where=where,
                allowed=nearest(inner, spec.reads),
            )
    return spec


def preload(sweep: ComposedSweep) -> list[str]:
    """Return the modules of a sweep's stages to import once, before children are forked."""
    return sorted({module for spec in sweep.specs.values() for module in spec.preload})


class SweepReference(NamedTuple):
    """What the argument SWEEP means.

    Attributes:
        name: of the sweep in the store.
        source: the name or path to compose.
        revision: the number after ``@``; None without one.
    """

    name: str
    source: str
    revision: int | None


def parse_reference(word: str) -> SweepReference:
    """Parse ``smoke``, ``smoke@2`` or ``path/to/x.yaml``.

    Raises:
        UserError: the revision is not a number.
    """
    source, at, number = word.rpartition("@")
    if not at:
        source, number = word, ""
    elif not (number.isascii() and number.isdigit() and len(number) < 10) or int(number) < 1:
        raise UserError(f"{word!r} names no revision", allowed="SWEEP@1, SWEEP@2, ...")
    name = source
    if source.endswith((".yaml", ".yml")) or "/" in source:
        file = source.rstrip("/").rpartition("/")[2]
        name = file.rpartition(".")[0] or file
    return SweepReference(name, source, int(number) if number else None)


def common_axes(axes: Mapping[str, str] | None, more: Mapping[str, str]) -> dict[str, str]:
    """Return the axes that have the same value in both; all of `more` if there is nothing to compare."""
    return {k: v for k, v in more.items() if axes is None or axes.get(k) == v}


def varying_axes(cells: Sequence[Cell]) -> set[str]:
    """Return the axes on which cells differ."""
    return {name for cell in cells for name, value in cell.axes.items() if value != cells[0].axes.get(name)}
