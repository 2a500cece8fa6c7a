"""What mirrors lack of a sweep, sent later: after outages, and for sweeps that were launched without one."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.compose.overrides import run_settings, run_settings_with
from orchestrator.core.records import Request
from orchestrator.core.settings import TrackerSettings
from orchestrator.errors import UserError, nearest
from orchestrator.registry import MIRRORS, is_known, known
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.trackers.mirror import MirrorOutcome, MirrorPasses
from orchestrator.trackers.protocol import log_to

RETRIES = 3
"""How often a server that takes nothing is tried again."""


def sync(view: SweepState, to: Sequence[str], overrides: Sequence[str] = ()) -> list[MirrorOutcome]:
    """Send to some mirrors what they lack of a revision. A second call finds nothing to send.

    Args:
        view: the revision.
        to: names of mirrors.
        overrides: of tracker settings, such as ``tracker.mlflow.experiment=other``. By default they are those
            of the last launch that had the mirror, else those of ``conf/tracker``.

    Returns:
        What was done, and what was not, of each mirror.

    Raises:
        UserError: there is no such mirror, it lacks something here, or the sweep was never launched.
    """
    for name in to:
        if not is_known(MIRRORS, name):
            raise UserError(f"unknown mirror {name!r}", allowed=nearest(name, known(MIRRORS)))
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {view.sweep.name}")
    ledger = open_ledger(view.ledger.objects.url)
    revision = ledger.revision(view.sweep.name, view.number)
    found = [
        MirrorPasses(name, options, ledger=ledger, revision=revision, retries=RETRIES)
        for name, options in _options(view, list(dict.fromkeys(to)), overrides).items()
    ]
    for passes in found:
        passes.mirror.check()
    over = threading.Event()
    over.set()
    with log_to(ledger.objects.workspace(layout.logs(view.sweep.name)) / "sync.log"):
        return [passes.run(over) for passes in found]


def _options(view: SweepState, to: list[str], overrides: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return the options of each mirror."""
    settings = run_settings([f"tracker=[{','.join(to)}]"])
    tracker = settings.tracker
    for request in view.requests:
        if request.settings is not None:
            tracker = _with_options(tracker, request)
    settings = msgspec.structs.replace(settings, tracker=tracker)
    for text in overrides:
        if not text.lstrip("+~").startswith("tracker."):
            raise UserError(
                f"unexpected {text!r}", allowed="settings of the mirrors, such as tracker.mlflow.experiment="
            )
    if overrides:
        settings = run_settings_with(settings, overrides)
    return settings.tracker.mirrors


def _with_options(tracker: TrackerSettings, request: Request) -> TrackerSettings:
    """Return the settings with those of a launch for the mirrors that it had too."""
    assert request.settings is not None
    launched = {
        # A relative folder was meant from where the launch was.
        name: {
            **options,
            **({"dir": str(Path(request.folder, options["dir"]))} if options.get("dir") else {}),
        }
        for name, options in request.settings.tracker.mirrors.items()
        if name in tracker.mirrors
    }
    changes: dict[str, Any] = {
        {"wandb": "options"}.get(name, name): each for name, each in launched.items() if name in MIRRORS
    }
    others = {name: each for name, each in launched.items() if name not in MIRRORS}
    return msgspec.structs.replace(tracker, plugins=tracker.plugins | others, **changes)
