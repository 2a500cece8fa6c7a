"""`sweep plan`: cells, stages, what a launch would do and why. Touches nothing."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from orchestrator.api import estimates
from orchestrator.api.drift import cell_drift, code_drift, needing_retired_lines
from orchestrator.api.estimates import distinct, missing_of, needs_of, told
from orchestrator.api.planning import engine_of, planned, steps_of
from orchestrator.api.state import (
    SweepState,
    split_store,
)
from orchestrator.cli.arguments import add_composing, again
from orchestrator.cli.costs_table import print_costs
from orchestrator.cli.output import (
    ComposeProgress,
    print_json,
    print_lines,
    print_table,
    print_warnings,
    shorten,
)
from orchestrator.core.plan import Action, Step
from orchestrator.core.settings import HardwareSettings, RunSettings, check_hardware
from orchestrator.core.state import NOT_STARTED, State
from orchestrator.core.sweep import Cell
from orchestrator.costs import Estimate, Need
from orchestrator.text import counted

MAX_GROUP_SHOWN = 8
"""Missing needs that are named; `--json` names all."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the verb's arguments."""
    add_composing(parser)
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.add_argument("--device", help="what cells are assumed to run on: a100, h200, ...")
    parser.add_argument(
        "--mfu", type=float, help="model FLOPs utilisation, in place of the guess by model size"
    )
    parser.add_argument("--max-gpus", type=int, metavar="N", help="that one cell may have")


def run(args: argparse.Namespace) -> int:
    """Prints the plan."""
    view, composition = planned(args.sweep, args.overrides, args.name, progress=ComposeProgress())
    settings, import_paths = engine_of(view, composition, split_store(args.overrides)[1])
    cells = view.select(args.only)
    hardware = hardware_of(settings.hardware, args)
    plan = _Plan(view, cells, settings, hardware, import_paths, prefetch=again("prefetch", args))
    if args.json:
        print_json(plan.as_json())
        return 0
    print(f"{view.title}: {view.sweep.description}")
    for note in composition.notes if composition else ():
        print(f"  note: {note}")
    print_warnings(view)
    print_lines(cell_drift(view), indent=2)
    print_lines(code_drift(view, cells, composition.import_paths if composition else ()), indent=2)
    plan.print()
    return 0


def hardware_of(settings: HardwareSettings, args: argparse.Namespace) -> HardwareSettings:
    """Returns what the plan assumes: the engine's settings, with what the verb's own options change.

    Raises:
        UserError: an unknown device, or a number that makes no sense.
    """
    changed = {
        key: value for key in ("device", "mfu", "max_gpus") if (value := getattr(args, key)) is not None
    }
    hardware = msgspec.structs.replace(settings, **changed)
    check_hardware(hardware, where=" ".join(f"--{key.replace('_', '-')} {changed[key]}" for key in changed))
    return hardware


class _Plan:
    """All that is said of a sweep before it is launched."""

    def __init__(
        self,
        view: SweepState,
        cells: Sequence[Cell],
        settings: RunSettings,
        hardware: HardwareSettings,
        import_paths: Sequence[str],
        *,
        prefetch: str,
    ) -> None:
        self._view, self._cells, self._hardware, self._prefetch = view, cells, hardware, prefetch
        self._retention = settings.policy.retention
        self._steps = steps_of(view, cells)
        self._missing: dict[str, list[Need]] = missing_of(needs_of(view, cells, import_paths))
        self._estimates: dict[str, Estimate] = estimates.estimates_of(
            view,
            cells,
            hardware=hardware.assumed,
            retention=settings.policy.retention,
            import_paths=import_paths,
        )

    def print(self) -> None:
        """Prints it for people."""
        view, cells = self._view, self._cells
        print_stages(view, cells, self._steps)
        print_costs(cells, self._estimates, self._hardware)
        columns = [*view.sweep.cells[0].axes, "cell", "what would run"]
        print()
        print_table(columns, [[*cell.axes.values(), cell.cell, self._summary(cell)] for cell in cells])
        print_lines(needing_retired_lines(view, cells))
        if self._missing:
            missing = distinct(self._missing)
            print(f"\n{counted(len(self._missing), 'cell')} blocked:")
            for need in missing[:MAX_GROUP_SHOWN]:
                print(f"  {told(need)}")
            if len(missing) > MAX_GROUP_SHOWN:
                print(f"  and {len(missing) - MAX_GROUP_SHOWN} more")
            if any(need.fetch for need in missing):
                print(f"fetch it once, where there is a network: {self._prefetch}")

    def as_json(self) -> dict[str, Any]:
        """Returns the stable machine-readable form; nulls where no stage says what it costs."""
        view, cells = self._view, self._cells
        totals = estimates.in_total(cells, self._estimates, self._hardware) if self._estimates else None
        return {
            "sweep": view.sweep.name,
            "revision": view.number,
            "num_cells": len(cells),
            "hardware": self._hardware,
            "retention": self._retention,
            "totals": totals,
            "prefetch": self._prefetch if self._missing else None,
            "cells": [self._cell_json(cell) for cell in cells],
        }

    def _cell_json(self, cell: Cell) -> dict[str, Any]:
        view = self._view
        return {
            "cell": cell.cell,
            "axes": cell.axes,
            "columns": cell.columns,
            "state": self._state(cell),
            "blocked": [told(need) for need in self._missing.get(cell.cell, ())],
            "estimate": estimates.as_json(estimates.of_cell(cell, self._estimates)),
            "stages": [
                {
                    "stage": view.sweep.nodes[digest].name,
                    "digest": digest,
                    "state": view.cells[cell.cell].stages[digest].state,
                    "action": step.action,
                    "reason": step.reason,
                }
                for digest, step in self._steps[cell.cell].items()
            ],
        }

    def _state(self, cell: Cell) -> State:
        state = self._view.cells[cell.cell].state
        at_work = state in (State.DONE, State.RUNNING, State.QUEUED)
        return State.BLOCKED if cell.cell in self._missing and not at_work else state

    def _summary(self, cell: Cell) -> str:
        status = self._view.cells[cell.cell]
        if status.state in (State.QUEUED, State.UNKNOWN):
            return shorten(f"wait ({status.reason})", 100)
        if self._state(cell) is State.BLOCKED and cell.cell in self._missing:
            return shorten(f"blocked by {', '.join(need.what for need in self._missing[cell.cell])}", 100)
        return _summary(self._view, cell, self._steps[cell.cell])


def print_stages(view: SweepState, cells: Sequence[Cell], steps: dict[str, dict[str, Step]]) -> None:
    """Prints, for each stage of the sweep, how many distinct ones a launch would run, reuse or leave."""
    actions: dict[str, Action] = {}
    for cell in cells:
        for digest, step in steps[cell.cell].items():
            actions[digest] = step.action
    counts: dict[str, Counter[Action]] = {stage: Counter() for stage in view.sweep.specs}
    for digest, action in actions.items():
        counts[view.sweep.nodes[digest].stage][action] += 1
    print(
        f"{counted(len(cells), 'cell')}, {counted(len(actions), 'stage')}; a stage that cells share runs once"
    )
    rows = [(stage, *(count[action] or "-" for action in Action)) for stage, count in counts.items()]
    print_table(("stage", *Action), rows)


def _summary(view: SweepState, cell: Cell, steps: dict[str, Step]) -> str:
    if all(step.action is Action.REUSE for step in steps.values()):
        return "nothing: done"
    parts = []
    for action in Action:
        names = [view.sweep.nodes[digest].name for digest, step in steps.items() if step.action is action]
        if names and action is not Action.REUSE:
            parts.append(f"{action} {' '.join(names)}")
    told = [s.reason for s in steps.values() if s.action is not Action.REUSE and s.reason != NOT_STARTED]
    return "; ".join(parts) + (f" ({shorten(told[0], 90)})" if told else "")
