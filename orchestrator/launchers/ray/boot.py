"""How a node gets the code of a launch: the commands that start the driver and the workers.

In a folder that all nodes mount, the snapshot is imported where it lies. From a bucket it takes two steps,
because a node need not have this package:

1. A few lines, passed on the command line, fetch the package. They need only Python and `obstore`.
2. The fetched package completes the node's copy of the snapshot, and runs the module from that copy: ``python
   -m orchestrator.launchers.ray.boot STORE DIGEST MODULE ...``.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

from orchestrator.errors import InfrastructureError, SweepError
from orchestrator.store import archive, layout
from orchestrator.store import code as snapshots
from orchestrator.store.ledger import open_ledger
from orchestrator.store.objects import ObjectStore

_FETCH = f"""
import io, os, shutil, sys, tarfile, tempfile
from pathlib import Path
import obstore.store
url, digest = sys.argv[1:3]
home = Path(os.environ.get("SWEEP_CACHE") or "~/.cache/polysweep").expanduser() / "boot"
place = home / digest
if not place.is_dir():
    key = "{layout.code_archive("DIGEST")}/{archive.NAME}".replace("DIGEST", digest)
    data = bytes(obstore.get(obstore.store.from_url(url), key).bytes())
    home.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(dir=home))
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as files:
            ours = [file for file in files if file.name.startswith("{layout.CODE_PACKAGE}/")]
            files.extractall(fresh, ours, filter="data")
        try: fresh.rename(place)
        except OSError:
            if not place.is_dir(): raise  # else another was first
    finally: shutil.rmtree(fresh, ignore_errors=True)
os.environ["PYTHONPATH"] = str(place / "{layout.CODE_PACKAGE}")
os.execv(sys.executable, [sys.executable, "-P", "-m", "orchestrator.launchers.ray.boot", *sys.argv[1:]])
"""
"""The first step. A node's processes may run it at the same time: the folder appears by one atomic rename."""


class StartCommand(NamedTuple):
    """A command without its interpreter, and the environment that it needs."""

    argv: tuple[str, ...]
    environment: dict[str, str]


def start_of(objects: ObjectStore, digest: str, module: str, *args: str) -> StartCommand:
    """Return the command that runs a module of a snapshot, on any node that reaches the store.

    Args:
        objects: the store.
        digest: of the snapshot.
        module: what to run.
        args: its arguments.
    """
    if not objects.in_place:
        return StartCommand(("-c", _FETCH, objects.url, digest, module, *args), {"PYTHONUTF8": "1"})
    package = snapshots.package_path(objects, digest)
    return StartCommand(("-P", "-m", module, *args), {"PYTHONPATH": str(package), "PYTHONUTF8": "1"})


def main(argv: Sequence[str] | None = None) -> int:
    """Complete the node's copy of a snapshot, and replace this process by a module of it.

    Returns:
        An exit code, only if that fails.
    """
    url, digest, module, *args = sys.argv[1:] if argv is None else argv
    try:
        objects = open_ledger(url).objects
        # verifies the node's copy, and repairs it from the archive
        if problem := snapshots.damage(objects, digest):
            raise InfrastructureError(f"the code in the store is damaged: {problem}", where=url)
        os.environ["PYTHONPATH"] = str(snapshots.package_path(objects, digest))
    except SweepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: the store does not answer: {error}", file=sys.stderr)
        return InfrastructureError.exit_code
    # -P: otherwise a file in the working folder could take the place of a module
    os.execv(sys.executable, [sys.executable, "-P", "-m", module, *args])


if __name__ == "__main__":
    sys.exit(main())
