"""Recording a wish: every verb that changes something appends one request."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator import provenance
from orchestrator.commands.view import View
from orchestrator.core.records import Code, Request
from orchestrator.core.settings import EngineSettings
from orchestrator.core.sweep import Cell
from orchestrator.store.ledger import new_nonce


def ask(view: View, request: Request) -> Request:
    """Appends a request of the sweep and returns it with its number."""
    return view.ledger.add_request(view.sweep.name, request)


def as_request(
    view: View,
    verb: Literal["launch", "rerun", "cancel", "discard"],
    cells: Sequence[Cell] | None,
    *,
    after: Mapping[str, int] | None = None,
    reason: str = "",
    settings: EngineSettings | None = None,
    import_paths: tuple[str, ...] = (),
    code: Code | None = None,
) -> Request:
    """Returns a request that is not recorded yet.

    Args:
        view: the revision that it speaks of.
        verb: what is wished.
        cells: for whom; None for all.
        after: digest of a stage to the attempt after which attempts count again.
        reason: the user's own words.
        settings: what a launch or rerun runs under; packages and the code's diff are recorded with these.
        import_paths: where the user's stages are importable.
        code: the snapshot of it for workers that start later.
    """
    folder = import_paths[0] if import_paths else "."
    if settings and settings.launcher.get("snapshot") is False:  # its default, which earlier versions refuse
        launcher = {key: value for key, value in settings.launcher.items() if key != "snapshot"}
        settings = msgspec.structs.replace(settings, launcher=launcher)
    return Request(
        nonce=new_nonce(),
        number=0,
        verb=verb,
        revision=view.number,
        cells=None if cells is None else tuple(cell.cell for cell in cells),
        after=dict(after or {}),
        reason=provenance.without_secrets(reason),
        settings=settings,
        import_paths=import_paths,
        code=code,
        folder=str(Path.cwd()),
        provenance=provenance.of_launch(sys.argv, folder) if settings else {},
        by=provenance.user(),
        at=provenance.now(),
    )
