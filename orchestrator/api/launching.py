"""A launch or a rerun, from its checks to its recorded request: one path for both."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator import provenance
from orchestrator.api.estimates import estimates_of
from orchestrator.api.requests import build_request, plan_code
from orchestrator.api.state import SweepState, sealed_view
from orchestrator.compose import Composition
from orchestrator.core.records import Request, Revision
from orchestrator.core.settings import RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.launchers.base import Launcher, Submitter
from orchestrator.registry import LAUNCHERS, lookup
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, content_digest
from orchestrator.trackers.mirror import make_mirror


def planned_request(
    view: SweepState,
    cells: Sequence[Cell],
    args: argparse.Namespace,
    settings: RunSettings,
    import_paths: tuple[str, ...],
) -> Request:
    """Returns the request that a launch would record; its code is not stored yet."""
    return build_request(
        view,
        "launch",
        cells if args.only else None,
        settings=settings,
        import_paths=import_paths,
        code=plan_code(view.ledger.objects, view.sweep, import_paths).code,
    )


def check_fit(
    view: SweepState,
    cells: Sequence[Cell],
    settings: RunSettings,
    launcher: Launcher | Submitter,
    import_paths: Sequence[str],
) -> None:
    """Refuses, before anything is recorded, cells that cannot fit what one worker of the launcher has.

    Raises:
        UserError: there is such a cell.
    """
    hardware = launcher.hardware()
    if hardware is not None:
        estimates_of(
            view,
            cells,
            hardware=hardware,
            retention=settings.policy.retention,
            import_paths=import_paths,
            unfinished_only=True,
        )


def seal(ledger: Ledger, composition: Composition, overrides: Sequence[str]) -> SweepState:
    """Seals what was composed, or finds the revision with the same content."""
    content = content_digest(composition.sweep)

    def revision(number: int) -> Revision:
        return Revision(
            nonce=new_nonce(),
            number=number,
            content=content,
            sweep=composition.sweep,
            source=provenance.without_secrets(composition.source.read_text(encoding="utf-8")),
            overrides=tuple(map(provenance.without_secrets, overrides)),
            notes=composition.notes,
            at=provenance.now(),
        )

    sealed = ledger.seal(revision, composition.sweep.name, content)
    return sealed_view(ledger, composition.sweep.name, sealed.number)


def attempts_so_far(view: SweepState, cells: Sequence[Cell]) -> dict[str, int]:
    """Returns, for each stage that is not done, the number of its last attempt: budgets count from there."""
    return {
        digest: status.attempts
        for cell in cells
        for digest, status in view.cells[cell.cell].stages.items()
        if status.state is not State.DONE and status.attempts
    }


def make_launcher(settings: RunSettings, num_cells: int) -> Any:
    """Makes the launcher that the settings name; a wrong option of their tracker is found here too.

    Raises:
        UserError: there is no such launcher or tracker, or it cannot meet the settings.
    """
    make_mirror(settings, Path())
    made = lookup(LAUNCHERS, settings.launcher["name"], kind="launcher")
    return made(settings.launcher, num_cells, settings.cluster)


def detach(view: SweepState, request: Request) -> int:
    """Starts a process of its own session that attends to the request, and returns at once."""
    folder = view.ledger.objects.workspace(layout.logs(view.sweep.name))
    log = folder / f"request-{request.number}-launcher.log"
    command = [sys.executable, "-m", "orchestrator.cli.attached", view.ledger.objects.url, view.sweep.name]
    with log.open("ab") as stream:
        process = subprocess.Popen(
            [*command, str(request.number)],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    print(f"{view.title}: launched in the background as process {process.pid}, log in {log}")
    print(f"  sweep status {view.sweep.name}{view.hint}")
    print(f"  sweep cancel {view.sweep.name}{view.hint}")
    return 0
