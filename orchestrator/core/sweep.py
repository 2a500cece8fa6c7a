"""The data types of a sweep: the file as written, and the sealed form with all decisions made."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import msgspec

from orchestrator.core.commandspec import check_command, check_remedies
from orchestrator.core.tree import convert
from orchestrator.errors import UserError, nearest
from orchestrator.formats import Stored
from orchestrator.stage import StageSpec


class Input(Stored, frozen=True):
    """A product that a stage takes as input.

    Attributes:
        stage: name of the stage that makes it.
        label: of the stage instance, "" for a stage without `each`.
        digest: of the stage instance.
    """

    stage: str
    label: str
    digest: str


class StageInstance(Stored, frozen=True, kw_only=True):
    """One content-addressed stage instance, shared by all cells whose chain names its digest.

    Attributes:
        stage: name in the sweep file.
        label: the values of its `each` variables, "" without any.
        digest: SHA-256 of its identity in hexadecimal, see `orchestrator.core.identity.stage_digest`.
        reads: the slice of config that it reads, resolved, and its `each` variables at top level.
        inputs: the products that it takes, in order.
    """

    stage: str
    label: str = ""
    digest: str
    reads: dict[str, Any]
    inputs: tuple[Input, ...] = ()

    @property
    def name(self) -> str:
        """The readable name: ``prepare[en]``, or just ``train``."""
        return f"{self.stage}[{self.label}]" if self.label else self.stage


class Cell(Stored, frozen=True, kw_only=True):
    """One point of the grid.

    Attributes:
        id: unique readable id, such as ``tiny-qwen3-a.math.en+sw-3f9c2a71``.
        axes: axis name to label, which is empty where the axis does not count.
        columns: the sweep's `columns`: name to value.
        config: the fully resolved tree.
        stage_digests: of its stages, inputs before the stages that take them.
    """

    id: str = msgspec.field(name="cell")
    axes: dict[str, str]
    columns: dict[str, Any]
    config: dict[str, Any]
    stage_digests: tuple[str, ...] = msgspec.field(name="chain")


class ComposedSweep(Stored, frozen=True, kw_only=True):
    """The content that a revision seals. Equal content has an equal digest and is one revision.

    Attributes:
        name: the sweep's name in the store.
        description: as in the sweep file.
        specs: stage name to spec, in the order of the sweep file.
        stages: digest to stage instance.
        cells: in the order of the grid.
        report: names of the reports written at the end of a launch.
        format: always 1, so that sweeps sealed by earlier versions stay equal to themselves.
    """

    name: str
    description: str = ""
    specs: dict[str, StageSpec]
    stages: dict[str, StageInstance] = msgspec.field(name="nodes")
    cells: tuple[Cell, ...]
    report: tuple[str, ...] = ()
    format: int = 1


class GateFacts(Stored, frozen=True, kw_only=True):
    """What a launch found out about itself. It is part of the identity of its gates.

    Attributes:
        code: digest of the checkout.
        packages: digest of the installed packages.
        device: type of the GPUs, ``cpu`` without any, "" if it is not known.
        num_gpus: number of GPUs that a cell may have.
        left_out: digest of a gate that does not count in this launch to the reason.
    """

    code: str
    packages: str = ""
    device: str = ""
    num_gpus: int = 0
    left_out: dict[str, str] = {}


_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
MAX_NAME = 128
"""Maximum length of a name, in characters.

Names become parts of paths, with a suffix. File systems commonly allow 255 bytes.
"""

# Columns of every result row. An axis or column of the same name would hide them.
_ENGINE_COLUMNS = ("cell", "sweep", "revision", "stage", "attempts", "seconds", "code")


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
        raise UserError(f"{_short(name)!r} cannot be the name of an axis", where=where)
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
