"""What leaves the store: a product, as a folder, and to mirrors what they lack of a sweep."""

from __future__ import annotations

import os
import shutil
import threading
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.compose.overrides import run_settings, run_settings_with
from orchestrator.core.records import Request
from orchestrator.core.settings import TrackerSettings
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, UserError, nearest
from orchestrator.manifest import copy_file, damage, fsync_path, fsync_tree
from orchestrator.registry import MIRRORS, is_known, known
from orchestrator.store import layout
from orchestrator.store.ledger import open_ledger
from orchestrator.trackers.mirror import MirrorOutcome, MirrorPasses
from orchestrator.trackers.protocol import log_to


def refuse_existing(out: Path, *, replaces: str | None) -> None:
    """Raise if a destination exists, unless it is an empty folder or one that may be replaced.

    Args:
        out: the destination.
        replaces: the file by which a folder is known that may be replaced; None to replace none.

    Raises:
        UserError: something else is there.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if replaces is None:
        raise UserError(f"{out} exists", fix="--out NEW_FOLDER, or --force to replace a data set")
    if not (out / replaces).is_file():
        raise UserError(f"{out} is there and is no data set", fix="--out NEW_FOLDER")


def export_product(view: SweepState, stage: str, out: Path, *, rename: Callable[[str], str]) -> None:
    """Copy the files of a stage's only product into a folder, which appears as a whole or not at all.

    Args:
        view: the revision.
        stage: name of a stage with one instance, which is done.
        out: the destination; a folder that is there is replaced.
        rename: returns the path in `out` of a file, from its path in the product.

    Raises:
        InfrastructureError: the product is not there or damaged.
    """
    (instance,) = (instance for instance in view.sweep.stages.values() if instance.stage == stage)
    done = view.reader.evidence(instance.digest).done
    if view.stages[instance.digest].state is not State.DONE or done is None:
        raise InfrastructureError(f"the product of {stage} in {view.title} is not there")
    objects = view.ledger.objects
    source = objects.fetch(layout.output(instance, done.attempt), done.files)
    if problem := damage(source, done.files):
        raise InfrastructureError(f"the product of {stage} in {view.title} is damaged: {problem}")
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.parent / f".{out.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        for file in done.files:
            target = temporary / rename(file.path)
            target.parent.mkdir(parents=True, exist_ok=True)
            copy_file(source / file.path, target)
        # The rename must not become durable before the files are.
        fsync_tree(temporary)
        if out.exists():
            # A folder cannot be renamed onto one that has files, so the old one moves away first.
            aside = temporary.with_name(f"{temporary.name}.old")
            out.rename(aside)
            temporary.rename(out)
            shutil.rmtree(aside, ignore_errors=True)
        else:
            temporary.rename(out)
        fsync_path(out.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


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
