"""How a node comes to the code of a launch: what the driver and the workers are started with."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from orchestrator.store import code as snapshots
from orchestrator.store.objects import ObjectStore


class Start(NamedTuple):
    """A command but for its interpreter, and the environment that it needs."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def start_of(objects: ObjectStore, digest: str, module: str, *args: str) -> Start:
    """Returns what runs a module of the snapshot with this digest, on any node that reaches the store."""
    package: Path = snapshots.package_path(objects, digest)
    return Start(("-P", "-m", module, *args), {"PYTHONPATH": str(package)})
