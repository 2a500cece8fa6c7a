"""The store's records by which an attempt sees whether what it makes may still count.

Two workers may both run a stage, because the first was wrongly taken for dead. This is safe: each attempt
writes only into its own folder, and `done` can be created only once per generation::

    attempt 1: claim .... no heartbeat .... create done: refused, so released (superseded)
    attempt 2:                claim ... create done: its product is the result

An attempt therefore looks for a successor at each heartbeat, and again when it fails.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.core.sweep import StageInstance
from orchestrator.store.ledger import Ledger


class Fence:
    """The checks of one attempt.

    Args:
        ledger: the store.
        node: the stage instance.
        number: number of the attempt.
        generation: generation of the product that it makes.
        inputs: digest of each input to the generation of its product.
    """

    def __init__(
        self,
        ledger: Ledger,
        node: StageInstance,
        *,
        number: int,
        generation: int,
        inputs: Mapping[str, int],
    ) -> None:
        self._ledger = ledger
        self._node = node
        self._number = number
        self._generation = generation
        self._inputs = inputs

    def is_pointless(self) -> bool:
        """Return whether a product exists already, or the generation is void."""
        return self._ledger.is_done_or_void(self._node, self._generation)

    def is_recorded(self) -> bool:
        """Return whether the stage's product is the one of this attempt."""
        done, _ = self._ledger.product(self._node, self._generation)
        return done is not None and done.attempt == self._number

    def is_superseded(self) -> bool:
        """Return whether a later attempt or a product exists; False while the store does not answer."""
        try:
            return self._ledger.is_claimed(self._node, self._number + 1) or self.is_pointless()
        except OSError:
            return False

    def retired_input(self) -> str:
        """Return the stage of an input with retired files, "" for none.

        Another sweep may still take a product whose files its own sweep no longer needs.
        """
        return self._ledger.retired_input(self._node, self._inputs)

    def has_discarded_input(self) -> bool:
        """Return whether an input was discarded meanwhile: what was made from it must not count."""
        return any(
            self._ledger.is_discarded(taken, self._inputs[taken.digest]) for taken in self._node.inputs
        )
