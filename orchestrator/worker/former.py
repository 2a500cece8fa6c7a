"""What an earlier version of a stage made of the same inputs, for a version that can go on from it.

Raising a stage's version changes its digest, and so makes all of it again. A shipped stage may be able to
make its product from the one of an earlier version, as `evaluate` scores again what was generated before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.core.cell import former_node
from orchestrator.core.retention import without
from orchestrator.core.sweep import Node
from orchestrator.manifest import damage
from orchestrator.registry import FORMER, STAGES, load
from orchestrator.stage import StageSpec
from orchestrator.store import layout
from orchestrator.store.evidence import Snapshot
from orchestrator.store.ledger import Ledger
from orchestrator.worker.resume import link

FOLDER = "former"
"""Beneath the attempt's scratch folder."""


class Basis(NamedTuple):
    """What the product of an attempt will be made of.

    Attributes:
        config: of the cell.
        generation: that the attempt makes.
        inputs: digest of each input to the generation of its product.
    """

    config: Mapping[str, Any]
    generation: int
    inputs: Mapping[str, int]


def formers(spec: StageSpec, node: Node, config: Mapping[str, Any]) -> list[Node]:
    """Return what a stage instance was under earlier versions, the latest first.

    A spec that a sweep gave another version has none: its user wants all of it made again.
    """
    if spec.name is None or spec.name not in FORMER or spec.version != load(STAGES[spec.name]).version:
        return []
    found = (former_node(former, node, config) for former in load(FORMER[spec.name]))
    return [former for former in found if former is not None]


def adopt_former(
    ledger: Ledger,
    node: Node,
    spec: StageSpec,
    folder: Path,
    *,
    basis: Basis,
    pulse: Callable[[], object],
) -> Path | None:
    """Bring the newest whole product of an earlier version into an attempt's folder.

    None is taken where this stage's own product was discarded (a user wants it made again from nothing), or
    where the earlier product was discarded or made from other generations of the inputs.

    Args:
        ledger: the store.
        node: the stage.
        spec: of the stage.
        folder: the attempt's own payload folder.
        basis: what the attempt's product will be made of.
        pulse: called before each file.

    Raises:
        OSError: the store did not answer.
    """
    if any(ledger.is_discarded(node, earlier) for earlier in range(1, basis.generation)):
        return None
    for former in formers(spec, node, basis.config):
        evidence = Snapshot(ledger, [former], count_attempts=False).evidence(former.digest)
        done = evidence.done
        if done is None or evidence.damaged or dict(done.inputs) != dict(basis.inputs):
            continue
        files = without(done.files, evidence.retired)
        source = ledger.objects.fetch(
            layout.output(former.stage, former.digest, done.attempt), files, pulse=pulse
        )
        target = folder / layout.SCRATCH / FOLDER
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        try:
            for file in files:
                pulse()
                link(source / file.path, target / file.path)
        except OSError:
            continue  # it went away
        if damage(target, files) is None:
            return target
    return None
