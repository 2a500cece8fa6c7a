"""The remedies with which a worker's attempts start: which records decide, and how they are read once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from functools import cached_property

from orchestrator.core.evidence import Evidence
from orchestrator.core.identity import uses_of
from orchestrator.core.remedies import Remedied, class_of, has_rungs, remedied, rungs_of, with_shipped
from orchestrator.core.state import Gates
from orchestrator.core.sweep import Cell, ComposedSweep, StageInstance
from orchestrator.store.evidence import EvidenceReader
from orchestrator.store.ledger import Ledger


class Remedies:
    """The choice of the remedies for the stages of a sweep.

    Args:
        ledger: the store.
        sweep: the sealed sweep, with its gates among its stages.
        gates: by which a stage and its rehearsal can be of one class.
    """

    def __init__(self, ledger: Ledger, sweep: ComposedSweep, gates: Gates) -> None:
        self._ledger = ledger
        self._sweep = sweep
        self._gates = gates
        self._done: dict[tuple[str, int], Evidence] = {}
        self.specs = {name: with_shipped(spec) for name, spec in sweep.specs.items()}

    @cached_property
    def _classes(self) -> dict[str, dict[str, None]]:
        """The digests of each class of stage instances, in the order of the grid."""
        found: defaultdict[str, dict[str, None]] = defaultdict(dict)
        for cell in self._sweep.cells:
            for digest in self._gates.chain(cell):
                instance = self._sweep.stages[digest]
                if has_rungs(spec := self.specs[instance.stage]):
                    found[class_of(spec, instance, cell.config)][digest] = None
        return found

    def start(
        self, cell: Cell, instance: StageInstance, reader: EvidenceReader, after: Mapping[str, int]
    ) -> Remedied:
        """Return what the next attempt of a stage starts with.

        Args:
            cell: on whose behalf it runs.
            instance: the stage instance.
            reader: of new evidence.
            after: digest to the attempt up to which none counts, as after a rerun.

        Raises:
            OSError: the store did not answer.
        """
        spec = self.specs[instance.stage]
        uses = uses_of(spec, cell.config)
        if not has_rungs(spec):
            return Remedied(uses)
        digests = self._classes.get(class_of(spec, instance, cell.config), {instance.digest: None})
        members = [(self._evidence(digest, reader), after.get(digest, 0)) for digest in digests]
        return remedied(spec, uses, rungs_of(spec, uses, members))

    def _evidence(self, digest: str, reader: EvidenceReader) -> Evidence:
        """Return the evidence of a stage with all its attempts; those of a product never change."""
        found = reader.evidence(digest)
        if found.done is None:
            return found
        key = (digest, found.generation)
        if key not in self._done:
            attempts = self._ledger.attempts(self._sweep.stages[digest])
            self._done[key] = found._replace(attempts=attempts)
        return self._done[key]
