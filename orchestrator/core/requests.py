"""What the requests of a sweep, in their order, mean for its cells and budgets. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from orchestrator.core.records import Request
from orchestrator.core.state import Budget


class Wishes(NamedTuple):
    """The requests, folded.

    Attributes:
        cancelled: cells whose last word was a cancel.
        after: digest to the attempt up to which no failure counts (a rerun was asked).
        after_chance: the same for a launch, after which only deterministic failures count.
        revision: of the last launch or rerun; 0 when there was none.
        asked: cell to the number of the last launch or rerun that named it.
    """

    cancelled: frozenset[str]
    after: Mapping[str, int]
    after_chance: Mapping[str, int]
    revision: int = 0
    asked: Mapping[str, int] = {}

    def budget(self, digest: str, retries: Mapping[str, int]) -> Budget:
        """Returns what a stage's failures are counted against."""
        return Budget(retries, self.after.get(digest, 0), self.after_chance.get(digest, 0))


def fold(requests: Iterable[Request], cells: Collection[str]) -> Wishes:
    """Folds requests, oldest first; equal requests change nothing the second time.

    Args:
        requests: of one sweep, in the order of their numbers.
        cells: the ids that a request without a list of cells speaks of.
    """
    cancelled: set[str] = set()
    after: dict[str, int] = {}
    after_chance: dict[str, int] = {}
    asked: dict[str, int] = {}
    revision = 0
    for request in requests:
        named = cells if request.cells is None else request.cells
        if request.verb in ("launch", "rerun"):
            revision = request.revision
            asked.update(dict.fromkeys(named, request.number))
        match request.verb:
            case "cancel":
                cancelled.update(named)
            case "launch":
                cancelled.difference_update(named)
                _raise(after_chance, request.after)
            case "rerun":
                cancelled.difference_update(named)
                _raise(after, request.after)
            case "discard":
                _raise(after, request.after)
    return Wishes(frozenset(cancelled), after, after_chance, revision, asked)


def _raise(boundaries: dict[str, int], to: Mapping[str, int]) -> None:
    for digest, number in to.items():
        boundaries[digest] = max(number, boundaries.get(digest, 0))
