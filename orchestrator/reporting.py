"""What a report is told beside its rows: what was asked for, how it went, and with which code.

A report is a plain function that writes files and returns their paths::

    def write(rows: Sequence[Row], folder: Path) -> list[Path]
    def write(rows: Sequence[Row], folder: Path, *, about: About | None) -> list[Path]

The second kind gets the facts that no row holds, such as the cells that have none; they are None for a
table from elsewhere. A parameter `curves` brings the logged metrics as a tuple of `Curve`, and `over` the
axes that the user wants mean and spread over. This module knows neither the store nor what the rows mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec


class CellFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A cell that a report may expect, whether it has rows or not.

    Attributes:
        cell: its id.
        axes: axis name to label.
        columns: the sweep's `columns`: name to value.
        config: the fully resolved tree.
        state: such as ``done`` or ``failed``.
        cause: of a failure, "" without one.
        reason: of the state, for people.
        num_attempts: of all its stages.
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
    """How one attempt ended.

    Attributes:
        number: from 1.
        outcome: ``succeeded``, ``failed``, ``released``, ``lost`` or ``open``.
        why: the cause of a failure or the reason of a release.
        message: one line.
        changed: settings that differ from those of the attempt before: key to (before, now); the remedies.
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
        cells: that share it.
        attempts: all of them, in order.
    """

    stage: str
    cells: tuple[str, ...]
    attempts: tuple[AttemptFacts, ...]


class LaunchFacts(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A request that started cells.

    Attributes:
        number: of the request.
        verb: ``launch`` or ``rerun``.
        command: as it was typed.
        by: who, as ``name@host``.
        at: when, UTC.
        code: the commit, with ``+`` for uncommitted changes, and the version of the package.
        packages: name to version of some that matter, as installed at that time.
        python: its version.
    """

    number: int
    verb: str
    command: str = ""
    by: str = ""
    at: str = ""
    code: str = ""
    packages: dict[str, str] = {}
    python: str = ""


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Everything a report is told beside the rows.

    Attributes:
        sweep: its name.
        revision: of the sealed content.
        sealed: whether that was launched; a sweep that was only composed has no evidence.
        description: one line.
        stages: names, in the order of the sweep file.
        cells: all of them, in the order of the grid.
        retries: stages with more than one attempt.
        launches: oldest first.
        hosts: where attempts that count were made.
        made_at: when these facts were read, UTC; "" keeps it out of a report.
        notes: what the reader should know, such as records that cannot be read.
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
    made_at: str = ""
    notes: tuple[str, ...] = ()


class Curve(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The metrics that one stage logged, of the attempt that made its product, or else of its last.

    Attributes:
        stage: its name and label, such as ``train`` or ``prepare[en]``.
        cells: that share it.
        points: metric to (step, value), by rising step, thinned out to at most some hundreds.
    """

    stage: str
    cells: tuple[str, ...]
    points: dict[str, tuple[tuple[int, float], ...]] = {}


Offers = Mapping[str, Callable[[], Any]]
"""What a report may take by a parameter of that name (`about`, `curves`, `over`); read only where it does."""


def call(
    report: Callable[..., list[Path]], rows: Sequence[Mapping[str, Any]], folder: Path, offers: Offers
) -> list[Path]:
    """Call a report with its rows, its folder, and those of the offers that it has a parameter for."""
    return report(rows, folder, **{name: offers[name]() for name in offers if name in _parameters(report)})


def wants_facts(report: Callable[..., Any]) -> bool:
    """Return whether a report takes the facts, and so has something to say without any row."""
    return "about" in _parameters(report)


def _parameters(report: Callable[..., Any]) -> frozenset[str]:
    try:
        return frozenset(inspect.signature(report).parameters)
    except (TypeError, ValueError):  # a callable without a signature
        return frozenset()
