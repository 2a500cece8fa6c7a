"""Requests (launch, rerun, cancel, discard), and the code snapshot that the workers of a launch run."""

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
    """Append a request to those of the sweep, and return it with its number."""
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
    """Return a request that is not recorded yet.

    Args:
        view: the revision that it belongs to.
        verb: the kind of request.
        cells: the cells that it is for; None for all.
        after: digest of a stage to the number of an attempt; only later attempts count against retry budgets.
        reason: the user's own words.
        settings: of a launch or rerun; packages and the code's diff are recorded with them.
        import_paths: folders from which the user's stages are imported.
        code: the code snapshot, for workers that start later.
    """
    folder = import_paths[0] if import_paths else "."
    # False is the default. Earlier versions refuse the key, so it is left out.
    if settings and settings.launcher.get("snapshot") is False:
        launcher = {key: value for key, value in settings.launcher.items() if key != "snapshot"}
        settings = msgspec.structs.replace(settings, launcher=launcher)
    return Request(
        nonce=new_nonce(),
        number=0,
        verb=verb,
        revision=view.number,
        cells=None if cells is None else tuple(cell.id for cell in cells),
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
"""Limits of the search for credentials, in bytes. Larger files are data and are not searched."""

MAX_SHOWN = 5
"""Lines with credentials that are named in warnings."""
_SETTINGS = frozenset({".cfg", ".conf", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml"})
"""Endings of settings files, where a key's name alone can mark a credential."""


def take_code(objects: ObjectStore, sweep: Sweep, import_paths: Sequence[str], notify: Notify) -> Code:
    """Store a snapshot of the code, and warn about credentials in it.

    Credentials are not removed, because the snapshot must be exactly what runs.

    Args:
        objects: the store.
        sweep: whose stages will run.
        import_paths: folders from which the user's stages are imported.
        notify: called with each warning.

    Raises:
        UserError: the code cannot be read, or is larger than code should be.
        InfrastructureError: the store did not keep it.
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
    """Return what `take_code` would store.

    Args:
        objects: the store.
        sweep: whose stages will run.
        import_paths: folders from which the user's stages are imported.
    """
    return snapshots.plan(
        objects,
        import_paths,
        targets=[spec.run for spec in sweep.specs.values() if spec.run],
        version=checkout_of(objects, sweep, import_paths).digest(),
    )


def _credentials(items: Iterable[ArchiveMember]) -> Iterator[tuple[str, str]]:
    """Yield lines of the user's files that hold a credential, as ``FILE:LINE``, each with the reason."""
    left = MAX_TOTAL_BYTES
    for item in items:
        path, size = PurePosixPath(item.file.path), len(item.data)
        is_text = (
            item.file.kind in ("file", "exec") and size <= min(left, MAX_BYTES) and b"\0" not in item.data
        )
        if not is_text or path.is_relative_to(layout.CODE_PACKAGE):
            continue
        # Only files that were searched count against the total.
        left -= size
        by_name = bool({path.suffix, path.name} & _SETTINGS) and size <= MAX_SETTINGS_BYTES
        for number, reason in lines_with(item.data.decode(errors="replace"), by_name=by_name):
            yield f"{PurePosixPath(*path.parts[1:])}:{number}", reason
