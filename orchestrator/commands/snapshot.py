"""The code of a launch as its workers will run it, and a word about credentials that lie in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from orchestrator.core.records import Code
from orchestrator.core.secrets import lines_with
from orchestrator.core.sweep import Sweep
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.archive import Item
from orchestrator.store.checkout import checkout_of
from orchestrator.store.objects import ObjectStore

MAX_BYTES, MAX_SETTINGS_BYTES, MAX_TOTAL_BYTES = 1_000_000, 200_000, 10_000_000
"""Larger files are data, and not searched; so much is searched in all, within seconds."""

MAX_SHOWN = 5
_SETTINGS = frozenset({".cfg", ".conf", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml"})


def take_code(objects: ObjectStore, sweep: Sweep, import_paths: Sequence[str]) -> Code:
    """Store a snapshot of the code, and warn of credentials in it: its files are kept as they are.

    Args:
        objects: the store.
        sweep: whose stages will run.
        import_paths: folders from which the user's stages are imported.

    Raises:
        UserError: the code cannot be read, or is more than code should be.
        InfrastructureError: the store does not keep it.
    """
    planned = plan_code(objects, sweep, import_paths)
    found = [*_credentials(planned.items)]
    for place, reason in found[:MAX_SHOWN]:
        print(f"  warning: {place} looks like a secret ({reason}); the code is kept in the store as it is")
    if len(found) > MAX_SHOWN:
        print(f"  warning: {len(found) - MAX_SHOWN} more lines of the code look like secrets")
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


def _credentials(items: Iterable[Item]) -> Iterator[tuple[str, str]]:
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
