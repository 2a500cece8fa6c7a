"""Taking over the product of an earlier version of a stage, for a version that can go on from it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from orchestrator.core.state import Former
from orchestrator.manifest import damage
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from orchestrator.worker.resume import link

FOLDER = "former"
"""Beneath the attempt's scratch folder."""


def adopt_former(
    ledger: Ledger, former: Former | None, folder: Path, *, pulse: Callable[[], object]
) -> Path | None:
    """Bring the product of an earlier version into an attempt's folder; None where it is not whole.

    Args:
        ledger: the store.
        former: the product; None for none.
        folder: the attempt's own payload folder.
        pulse: called before each file.

    Raises:
        OSError: the store did not answer.
    """
    if former is None or former.done is None:
        return None
    files = former.done.files
    prefix = layout.output(former.node.stage, former.node.digest, former.done.attempt)
    source = ledger.objects.fetch(prefix, files, pulse=pulse)
    target = folder / layout.SCRATCH / FOLDER
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    try:
        for file in files:
            pulse()
            link(source / file.path, target / file.path)
    except OSError:
        return None  # it went away
    return target if damage(target, files) is None else None
