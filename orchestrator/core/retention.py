"""Decide which files of a product may be deleted, from what the stages that consumed it still need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from orchestrator.core.records import Done, Retired
from orchestrator.core.settings import Retention
from orchestrator.manifest import File


def removable_files(product: Done, takers: Collection[Done], policy: Retention) -> tuple[File, ...]:
    """Return the files of a product that no stage made from it needs any more.

    Each consumer lists in its `Done` record which of the product's files are worth keeping, per policy. A
    file is removable only if every consumer has listed its choice and none of them keeps the file:

        product of train:   model.safetensors, optimizer.pt, log.txt
        evaluate keeps:     model.*
        report keeps:       log.txt
        removable:          optimizer.pt

    A consumer without a choice for this policy keeps everything. So does one that was made from another
    generation of the product, because it may have to run again. Without consumers nothing is removable.

    Args:
        product: the product whose files are considered.
        takers: the `Done` records of all stages that consume it.
        policy: the retention policy in force.
    """
    if policy == "all" or not takers:
        return ()
    kept: set[str] = set()
    for taker in takers:
        patterns = taker.retire.get(product.stage, {}).get(policy)
        if patterns is None or taker.inputs.get(product.digest) != product.generation:
            return ()
        # In these patterns "*" also matches "/", on every platform.
        kept.update(file.path for file in product.files if any(fnmatchcase(file.path, p) for p in patterns))
    return tuple(file for file in product.files if file.path not in kept)


def remaining_files(files: Iterable[File], retired: Iterable[Retired]) -> tuple[File, ...]:
    """Return the files that must exist: those that no record retired.

    Args:
        files: of a product.
        retired: the records of its retirements.
    """
    gone = {file.path for record in retired for file in record.files}
    return tuple(file for file in files if file.path not in gone)


def describe(retired: Iterable[Retired]) -> str:
    """Return a phrase such as ``5 files under policy best``, "" for no records."""
    parts = []
    for record in retired:
        plural = "" if len(record.files) == 1 else "s"
        parts.append(f"{len(record.files)} file{plural} under policy {record.policy}")
    return ", ".join(parts)
