"""The sealed form of a sweep: cells, the stages they share, and nothing that is not decided yet."""

from __future__ import annotations

from typing import Any

from orchestrator.formats import Stored
from orchestrator.stage import StageSpec


class Input(Stored, frozen=True):
    """A product that a stage takes: the stage's name, its instance label ("" without `each`), its digest."""

    stage: str
    label: str
    digest: str


class Node(Stored, frozen=True, kw_only=True):
    """One content-addressed stage instance, shared by all cells whose chain names its digest.

    Attributes:
        stage: name in the sweep file.
        label: the value of its `each` variable, "" without one.
        digest: sha-256 of what it is, hexadecimal (see `orchestrator.core.identity.stage_digest`).
        reads: the resolved slice of config that it is given; holds the `each` variables at top level too.
        inputs: the products that it takes, in order.
    """

    stage: str
    label: str = ""
    digest: str
    reads: dict[str, Any]
    inputs: tuple[Input, ...] = ()

    @property
    def name(self) -> str:
        """``prepare[en]``, or just ``train``."""
        return f"{self.stage}[{self.label}]" if self.label else self.stage


class Cell(Stored, frozen=True, kw_only=True):
    """One point of the grid.

    Attributes:
        cell: readable unique id, such as ``tiny-qwen3-a.math.en+sw-3f9c2a71``.
        axes: axis name to label.
        columns: the sweep's `columns`: name to value.
        config: the fully resolved tree.
        chain: digests of its stages, inputs before those that take them.
    """

    cell: str
    axes: dict[str, str]
    columns: dict[str, Any]
    config: dict[str, Any]
    chain: tuple[str, ...]


class Sweep(Stored, frozen=True, kw_only=True):
    """What a revision seals. Equal content has an equal digest and is one revision.

    Attributes:
        name: the sweep's name in the store.
        description: one line.
        specs: stage name to its spec, in the order of the sweep file.
        nodes: digest to stage instance.
        cells: in the order of the grid.
        report: names of reports written at the end of a launch.
        format: always 1: sweeps that were sealed before stay equal to themselves.
    """

    name: str
    description: str = ""
    specs: dict[str, StageSpec]
    nodes: dict[str, Node]
    cells: tuple[Cell, ...]
    report: tuple[str, ...] = ()
    format: int = 1
