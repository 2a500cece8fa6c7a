"""Which files of a product nobody needs any more, by the words of the stages that took it. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from orchestrator.core.records import Done, Retired
from orchestrator.core.settings import Retention
from orchestrator.manifest import File


def removable_files(product: Done, takers: Collection[Done], policy: Retention) -> tuple[File, ...]:
    """Returns the files of a product that every stage made from it lets go.

    Nothing goes unless each of them was made from this very generation and names what it keeps under this
    policy.

    Args:
        product: whose files.
        takers: the products of all stages that take it.
        policy: what is to be kept.
    """
    if policy == "all" or not takers:
        return ()
    kept: set[str] = set()
    for taker in takers:
        patterns = taker.retire.get(product.stage, {}).get(policy)
        if patterns is None or taker.inputs.get(product.digest) != product.generation:
            return ()
        kept.update(file.path for file in product.files if any(fnmatchcase(file.path, p) for p in patterns))
    return tuple(file for file in product.files if file.path not in kept)


def remaining_files(files: Iterable[File], retired: Iterable[Retired]) -> tuple[File, ...]:
    """Returns the files that must be there: those that no record retired."""
    gone = {file.path for record in retired for file in record.files}
    return tuple(file for file in files if file.path not in gone)


def describe(retired: Iterable[Retired]) -> str:
    """Returns such as ``5 files under policy best``, "" for none."""
    parts = []
    for record in retired:
        plural = "" if len(record.files) == 1 else "s"
        parts.append(f"{len(record.files)} file{plural} under policy {record.policy}")
    return ", ".join(parts)
