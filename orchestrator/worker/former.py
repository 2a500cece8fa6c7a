"""What an earlier version of a stage made of the same inputs, for a version that can go on from it.

Raising a stage's version changes its digest, and so makes all of it again. A shipped stage may be able to
make its product from the one of an earlier version, as `evaluate` scores again what was generated before.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from orchestrator.core.cell import former_node
from orchestrator.core.records import Done
from orchestrator.core.retention import without
from orchestrator.core.sweep import Node
from orchestrator.manifest import File, damage
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
        generation: that the attempt makes.
        inputs: digest of each input to the generation of its product.
    """

    generation: int
    inputs: Mapping[str, int]


def formers(spec: StageSpec, node: Node) -> list[Node]:
    """Return what a stage instance was under earlier versions, the latest first.

    A spec that a sweep gave another version has none: its user wants all of it made again.
    """
    if spec.name is None or spec.name not in FORMER or spec.version != load(STAGES[spec.name]).version:
        return []
    found = (former_node(former, node) for former in load(FORMER[spec.name]))
    return [former for former in found if former is not None]


def find_former(
    ledger: Ledger, node: Node, spec: StageSpec, basis: Basis | None = None
) -> tuple[Node, Done, tuple[File, ...]] | None:
    """Return the newest whole product of an earlier version, and its files. Changes nothing.

    None counts where this stage's own product was discarded (a user wants it made again from nothing), or
    where the earlier product was discarded or made from other generations of the inputs.

    Args:
        ledger: the store.
        node: the stage.
        spec: of the stage.
        basis: what the product will be made of; None not to compare the inputs.
    """
    earlier = formers(spec, node)
    if not earlier:
        return None
    generation = basis.generation if basis else Snapshot(ledger, [node]).evidence(node.digest).generation
    if any(ledger.is_discarded(node, number) for number in range(1, generation)):
        return None
    for former in earlier:
        evidence = Snapshot(ledger, [former], count_attempts=False).evidence(former.digest)
        done = evidence.done
        if done is None or evidence.damaged or (basis and dict(done.inputs) != dict(basis.inputs)):
            continue
        return former, done, without(done.files, evidence.retired)
    return None


def adopt_former(
    ledger: Ledger,
    node: Node,
    spec: StageSpec,
    folder: Path,
    *,
    basis: Basis,
    pulse: Callable[[], object],
) -> Path | None:
    """Bring what `find_former` finds into an attempt's folder.

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
    found = find_former(ledger, node, spec, basis)
    if found is None:
        return None
    former, done, files = found
    prefix = layout.output(former.stage, former.digest, done.attempt)
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
