"""The code of a launch as its workers will run it, and a word about credentials that lie in it."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from orchestrator import provenance
from orchestrator.api.state import Notify, SweepState
from orchestrator.core.records import Code, Request
from orchestrator.core.secrets import lines_with
from orchestrator.core.settings import RunSettings
from orchestrator.core.sweep import Cell, Sweep
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.archive import ArchiveMember
from orchestrator.store.checkout import checkout_of
from orchestrator.store.objects import ObjectStore


def submit_request(view: SweepState, request: Request) -> Request:
    """Appends a request of the sweep and returns it with its number."""
    return view.ledger.add_request(view.sweep.name, request)


def build_request(
    view: SweepState,
    verb: Literal["launch", "rerun", "cancel", "discard"],
    cells: Sequence[Cell] | None,
    *,
    after: Mapping[str, int] | None = None,
    reason: str = "",
    settings: RunSettings | None = None,
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


MAX_BYTES, MAX_SETTINGS_BYTES, MAX_TOTAL_BYTES = 1_000_000, 200_000, 10_000_000
"""Larger files are data, and not searched; so much is searched in all, within seconds."""

MAX_SHOWN = 5
_SETTINGS = frozenset({".cfg", ".conf", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml"})


def take_code(objects: ObjectStore, sweep: Sweep, import_paths: Sequence[str], notify: Notify) -> Code:
    """Store a snapshot of the code, and warn of credentials in it: its files are kept as they are.

    Args:
        objects: the store.
        sweep: whose stages will run.
        import_paths: folders from which the user's stages are imported.
        notify: takes the warnings.

    Raises:
        UserError: the code cannot be read, or is more than code should be.
        InfrastructureError: the store does not keep it.
    """
    planned = plan_code(objects, sweep, import_paths)
    found = [*_credentials(planned.items)]
    for place, reason in found[:MAX_SHOWN]:
        notify(f"warning: {place} looks like a secret ({reason}); the code is kept in the store as it is")
    if len(found) > MAX_SHOWN:
        notify(f"warning: {len(found) - MAX_SHOWN} more lines of the code look like secrets")
    snapshots.store(objects, planned)
    return planned.code


def plan_code(objects: ObjectStore, sweep: Sweep, import_paths: Sequence[str]) -> snapshots.Plan:
    """Return what `take_code` would store."""
    return snapshots.plan(
        objects,
        import_paths,
        targets=[spec.run for spec in sweep.specs.values() if spec.run],
        version=checkout_of(objects, sweep, import_paths).digest(),
    )


def _credentials(items: Iterable[ArchiveMember]) -> Iterator[tuple[str, str]]:
    """Yield the lines of the user's files that hold a credential, as ``FILE:LINE``, and the reason."""
    left = MAX_TOTAL_BYTES
    for item in items:
        path, size = PurePosixPath(item.file.path), len(item.data)
        is_text = (
            item.file.kind in ("file", "exec") and size <= min(left, MAX_BYTES) and b"\0" not in item.data
        )
        if not is_text or path.is_relative_to(layout.CODE_PACKAGE):
            continue
        left -= size
        by_name = bool({path.suffix, path.name} & _SETTINGS) and size <= MAX_SETTINGS_BYTES
        for number, reason in lines_with(item.data.decode(errors="replace"), by_name=by_name):
            yield f"{PurePosixPath(*path.parts[1:])}:{number}", reason
