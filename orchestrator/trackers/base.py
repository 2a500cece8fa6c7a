"""What a tracker is told of the stage whose metrics it carries, and opening the ones that a sweep names."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from orchestrator.registry import TRACKERS, lookup
from orchestrator.stage import Tracker

logger = logging.getLogger(__name__)


class Tracked(NamedTuple):
    """One attempt of one stage, as a tracker sees it.

    Attributes:
        folder: the attempt's own folder.
        name: ``train`` or ``prepare[en]``.
        settings: the options of the tracker from the config.
    """

    folder: Path
    sweep: str
    cell: str
    name: str
    attempt: int
    config: dict[str, Any]
    settings: dict[str, Any]


def open_trackers(names: Sequence[str], tracked: Tracked) -> list[Tracker]:
    """Opens trackers by name, the store's always first; one that cannot open is left out and logged."""
    trackers: list[Tracker] = []
    for name in dict.fromkeys(("store", *names)):
        try:
            kind = lookup(TRACKERS, name, kind="tracker")
            if not getattr(kind, "follows_store", False):  # a mirror is the launch's
                trackers.append(kind(tracked))
        except Exception:
            logger.exception("tracker %s cannot be used", name)
    return trackers
