"""The product of a finished stage as a folder outside the store."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from orchestrator.api.state import SweepState
from orchestrator.core.state import State
from orchestrator.errors import InfrastructureError, UserError
from orchestrator.manifest import copy_file, damage, fsync_path, fsync_tree
from orchestrator.store import layout


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
