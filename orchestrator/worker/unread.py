"""Commands that were through, but whose results could not be read: the next attempt reads them again.

The user mends the name of the file in the sweep, say, and the training is not lost. Where reading alone does
not help, because the program wrote what is no row, the attempt after that runs the command again.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from orchestrator import formats
from orchestrator.core.state import Attempt
from orchestrator.core.sweep import Node
from orchestrator.manifest import damage
from orchestrator.store import layout
from orchestrator.store.ledger import Ledger
from orchestrator.worker.order import Outcome
from orchestrator.worker.resume import is_discarded, link


def adopt_unread(
    ledger: Ledger,
    node: Node,
    attempts: Sequence[Attempt],
    folder: Path,
    *,
    pulse: Callable[[], object] = lambda: None,
    taking: Callable[[int], object] = lambda number: None,
) -> int | None:
    """Brings the output of an earlier attempt whose command was through into this attempt's folder.

    Args:
        ledger: the store.
        node: the stage.
        attempts: all earlier attempts.
        folder: this attempt's own payload folder.
        pulse: called before each file.
        taking: called with the number of the attempt before anything of it lies in the folder.

    Returns:
        The number of that attempt; None when there is none, when its output was read again since and in vain,
        or is no longer whole.
    """
    sound = [attempt for attempt in attempts if not is_discarded(ledger, node, attempt)]
    found = find_unread(ledger, node, sound)
    if found is None:
        return None
    attempt, outcome = found
    key, target = layout.payload(node.stage, node.digest, attempt.number), folder / layout.OUTPUT
    source = ledger.objects.fetch(f"{key}/{layout.OUTPUT}", outcome.files, pulse=pulse)
    taking(attempt.number)
    try:
        for file in outcome.files:
            pulse()
            link(source / file.path, target / file.path)
    except OSError:
        pass  # it went away: seen below
    if damage(target, outcome.files) is None:
        return attempt.number
    shutil.rmtree(target, ignore_errors=True)
    return None


def find_unread(ledger: Ledger, node: Node, attempts: Sequence[Attempt]) -> tuple[Attempt, Outcome] | None:
    """Finds the attempt whose output the next one should read, and what it left.

    Args:
        ledger: the store.
        node: the stage.
        attempts: the earlier ones, without those that must not be used.
    """
    for attempt in reversed(attempts):
        outcome = _outcome(ledger, layout.payload(node.stage, node.digest, attempt.number))
        if outcome is not None:  # else it read again what an earlier one left, or ran and failed
            return (attempt, outcome) if outcome.unread == attempt.number else None
    return None


def _outcome(ledger: Ledger, key: str) -> Outcome | None:
    data = ledger.objects.get(f"{key}/{layout.OUTCOME}")
    try:
        outcome = None if data is None else formats.decode(data, Outcome)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return outcome if outcome is not None and outcome.outcome == "failed" else None
