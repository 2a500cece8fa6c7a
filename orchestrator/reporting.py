"""What a report receives beside its rows: the cells, how they ended, and the code that made them.

A report is a plain function that writes files and returns their paths::

    def write(rows: Sequence[Row], folder: Path) -> list[Path]
    def write(rows: Sequence[Row], folder: Path, *, about: About | None) -> list[Path]

The second kind receives the facts that no row holds, such as the cells without rows. They are None for a
table from elsewhere. A parameter `curves` receives the logged metrics as a tuple of `Curve`, and `over` the
axes over which the user wants mean and spread. A parameter `grid` receives the grid of cells as a `Fragment`.
A parameter `drawn` is false where only tables and numbers are wanted, as in a bundle.
This module does not depend on the store or on the meaning of the rows.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec


class CellFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A cell of the sweep, whether it has rows or not.

    Attributes:
        cell: its id.
        axes: axis name to label.
        columns: the sweep's `columns`: name to value.
        config: the fully resolved config.
        state: such as ``done`` or ``failed``.
        cause: the failure cause; "" without a failure.
        reason: the reason of the state, for people.
        num_attempts: number of attempts of all its stages.
    """

    cell: str
    axes: dict[str, str] = {}
    columns: dict[str, Any] = {}
    config: dict[str, Any] = {}
    state: str
    cause: str = ""
    reason: str = ""
    num_attempts: int = 0


class AttemptFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The end of one attempt.

    Attributes:
        number: from 1.
        outcome: ``succeeded``, ``failed``, ``released``, ``lost`` or ``open``.
        why: the cause of a failure or the reason of a release.
        message: one line.
        changed: settings that differ from the previous attempt's, as key to (before, now); these are the
            remedies.
    """

    number: int
    outcome: str
    why: str = ""
    message: str = ""
    changed: dict[str, tuple[Any, Any]] = {}


class RetryFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A stage that took more than one attempt.

    Attributes:
        stage: its name and label, such as ``prepare[en]``.
        cells: the cells that share it.
        attempts: all attempts, in order.
    """

    stage: str
    cells: tuple[str, ...]
    attempts: tuple[AttemptFacts, ...]


class LaunchFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request that started cells.

    Attributes:
        number: of the request.
        verb: ``launch`` or ``rerun``.
        command: the command line.
        by: the user, as ``name@host``.
        at: the time, UTC.
        code: the commit, with ``+`` for uncommitted changes, and the version of the package.
        packages: name to version of the packages that matter, as installed at that time.
        python: version of Python.
    """

    number: int
    verb: str
    command: str = ""
    by: str = ""
    at: str = ""
    code: str = ""
    packages: dict[str, str] = {}
    python: str = ""


class HeldFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The time for which the sweep's workers held their GPUs, over all revisions, and where it went.

    Attributes:
        unit: ``GPU-hours``, or ``worker-hours`` of workers without GPUs.
        summary: one line, for people.
        hours: category to amount. The categories are those of `orchestrator.core.goodput`.
        by_stage: name of a stage to its amounts; "" for what belongs to no stage.
        lost_hours: reason to amount, of the category ``lost``.
    """

    unit: str
    summary: str
    hours: dict[str, float]
    by_stage: dict[str, dict[str, float]] = {}
    lost_hours: dict[str, float] = {}


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The facts about a sweep that a report receives beside the rows.

    Attributes:
        sweep: its name.
        revision: number of the sealed revision.
        sealed: whether the revision was launched. A sweep that was only composed has no evidence.
        description: one line.
        stages: names, in the order of the sweep file.
        cells: all cells, in the order of the grid.
        retries: stages with more than one attempt.
        launches: oldest first.
        hosts: the machines on which attempts that count were made.
        held: what the sweep cost, for workers with and without GPUs apart.
        made_at: when these facts were read, UTC; "" keeps the time out of a report.
        notes: notes for the reader, such as records that cannot be read.
    """

    sweep: str
    revision: int
    sealed: bool = True
    description: str = ""
    stages: tuple[str, ...] = ()
    cells: tuple[CellFacts, ...] = ()
    retries: tuple[RetryFacts, ...] = ()
    launches: tuple[LaunchFacts, ...] = ()
    hosts: tuple[str, ...] = ()
    held: tuple[HeldFacts, ...] = ()
    made_at: str = ""
    notes: tuple[str, ...] = ()


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The metrics that one stage logged: of the attempt that made its product, or else of its last attempt.

    Attributes:
        stage: its name and label, such as ``train`` or ``prepare[en]``.
        cells: the cells that share it.
        points: metric to (step, value), by rising step, thinned out to some hundreds at most.
    """

    stage: str
    cells: tuple[str, ...]
    points: dict[str, tuple[tuple[int, float], ...]] = {}


class Fragment(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A part of a page that was rendered elsewhere. All texts in it are escaped.

    Attributes:
        style: a style sheet.
        body: markup without scripts and without inline styles.
    """

    style: str
    body: str


Offers = Mapping[str, Callable[[], Any]]
"""Parameter name, such as `about`, to a function that reads its value, called only if needed."""


def call(
    report: Callable[..., list[Path]], rows: Sequence[Mapping[str, Any]], folder: Path, offers: Offers
) -> list[Path]:
    """Call a report with its rows, its folder, and the offers for which it has a parameter.

    Args:
        report: the report.
        rows: result rows.
        folder: where it writes files.
        offers: the optional arguments.

    Returns:
        The paths of its files.
    """
    # Reading curves takes time, so an offer is read only for a report that has its parameter.
    return report(rows, folder, **{name: offers[name]() for name in offers if name in _parameters(report)})


def wants_facts(report: Callable[..., Any]) -> bool:
    """Return whether a report takes the facts, so that it is useful even without rows."""
    return "about" in _parameters(report)


def _parameters(report: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(report).parameters)
    except (TypeError, ValueError):  # some callables, such as those of C extensions, have no signature
        return frozenset()
