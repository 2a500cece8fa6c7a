"""Differences between the store and a launch now: changed cells, changed code, and retired files."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from orchestrator import provenance
from orchestrator.api.state import SweepState, current_revision
from orchestrator.core.records import Retired
from orchestrator.core.settings import Policy
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, Sweep
from orchestrator.core.tree import MISSING, dotted_keys, pick
from orchestrator.errors import InfrastructureError
from orchestrator.store.checkout import checkout_of
from orchestrator.store.retention import retain
from orchestrator.text import counted


def cell_drift(view: SweepState) -> list[str]:
    """Return a line on cells that the last launched revision lacks, and on what changed in them."""
    if view.sealed:
        return []
    number = current_revision(view.ledger, view.sweep.name)
    if number is None:
        return []
    before = view.ledger.revision(view.sweep.name, number).sweep
    old = {cell.id for cell in before.cells}
    new = [cell for cell in view.sweep.cells if cell.id not in old]
    if not new:
        return []
    # A changed config gives a cell another id. Its axes show which old cell it replaces.
    by_axes = {tuple(cell.axes.items()): cell for cell in before.cells}
    changed: Counter[str] = Counter()
    for cell in new:
        former = by_axes.get(tuple(cell.axes.items()))
        changed.update(
            changed_reads(before, view.sweep, former, cell) if former else ["another place in the grid"]
        )
    why = ", ".join(f"{key} ({counted(n, 'cell')})" for key, n in changed.most_common(5))
    return [f"{counted(len(new), 'cell')} not in {view.sweep.name}@{number}: {why}"]


def code_versions(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Count the products of some cells by the version of the code that made them."""
    evidence = (
        view.snapshot.evidence(digest) for digest in {d for cell in cells for d in cell.stage_digests}
    )
    return Counter(e.done.code for e in evidence if e.done is not None)


def code_drift(view: SweepState, cells: Sequence[Cell], import_paths: Sequence[str] = ()) -> list[str]:
    """Return a line if products were made by different code, or by other code than would run now.

    Args:
        view: the revision.
        cells: whose products are compared.
        import_paths: folders from which the user's stages are imported; if empty, the products are compared
            only with each other.
    """
    codes = code_versions(view, cells)
    if import_paths and codes:
        digest = checkout_of(view.ledger.objects, view.sweep, import_paths).digest()
        now = provenance.code_version(digest, provenance.git_state(import_paths[0]))
        # The part after the last dot is the digest of the code. The part before it only names the commit.
        other = {code: n for code, n in codes.items() if code.rpartition(".")[2] != now.rpartition(".")[2]}
        if other:
            made = ", ".join(f"{counted(n, 'product')} by {code}" for code, n in other.items())
            return [f"note: made by other code than now ({now}): {made}; after a bug fix: sweep discard"]
    elif len(codes) > 1:
        made = ", ".join(f"{counted(n, 'product')} by {code}" for code, n in codes.most_common())
        return [f"note: made by different code: {made}"]
    return []


MAX_CELLS_NAMED = 3
"""Most cells named in one line."""


def told(retired: Retired) -> str:
    """Return a retirement as one line."""
    return f"{_of(retired)} under policy {retired.policy} at {retired.at} by {retired.by}: {retired.why}"


def _of(*retired: Retired) -> str:
    """Return the number and size of retired files."""
    files = [file for record in retired for file in record.files]
    return f"{counted(len(files), 'file')} ({sum(file.size for file in files) / 2**30:.3g} GiB)"


def needing_retired(view: SweepState, cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the cells that cannot run because files of an input were retired.

    Returns:
        Stage of the input to the ids of the cells that it blocks.
    """
    found: dict[str, list[str]] = {}
    for cell in cells:
        stages = view.cells[cell.id].stages
        for digest, status in stages.items():
            inputs = view.sweep.stages[digest].inputs if status.state is State.BLOCKED else ()
            for stage in dict.fromkeys(i.stage for i in inputs if stages[i.digest].retired):
                if cell.id not in found.setdefault(stage, []):
                    found[stage].append(cell.id)
    return found


def needing_retired_lines(view: SweepState, cells: Sequence[Cell]) -> list[str]:
    """Return lines on cells that retired files block, with the commands that make these files again."""
    lines: list[str] = []
    sweep = f"{view.sweep.name}@{view.number}"
    for stage, ids in needing_retired(view, cells).items():
        few = len(ids) <= MAX_CELLS_NAMED
        named = f": {', '.join(ids)}" if few else ""
        lines.append(f"\n{counted(len(ids), 'cell')} blocked: files of its input {stage} were retired{named}")
        found = [status.former for cell in ids for status in view.cells[cell].stages.values()]
        problems = {former.problem for former in found if former and former.problem}
        for problem in sorted(problems)[:MAX_CELLS_NAMED]:
            lines.append(f"  the product of an earlier version cannot be used: {problem}")
        selector = shlex.quote(",".join(ids) if few else "state=blocked")
        lines.append(f"to make {stage} again, and all that was made from it:")
        if not view.sealed:
            lines.append("  sweep launch, as planned here, which seals these cells; then")
        lines.append(f"  sweep discard {sweep} {selector} --stage {stage} --reason ...{view.hint}")
        lines.append(f"  sweep launch {sweep}{view.hint}")
    return lines


def finish_retention(view: SweepState, policy: Policy) -> list[str]:
    """Retire files under the policy of a launch, and finish deletions that a dead worker began.

    Returns:
        A line on what was retired, or on why that waits for the next launch; none if there was nothing to do.
    """
    if view.wishes.revision != view.number:
        # Another revision was launched meanwhile and may need these files. Its own launch will decide.
        return []
    try:
        news = retain(
            view.ledger, view.sweep, policy, by=f"launch by {provenance.user()}", trusted=view.trusted
        )
    except (OSError, InfrastructureError) as error:
        return [f"retention: {error}; the next launch goes on with it"]
    if news:
        return [f"retired {_of(*news)} of {counted(len(news), 'product')} under policy {policy.retention}"]
    return []


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the dotted keys of values (not sections) that differ, each with both values; None if absent."""
    keys = sorted({*dotted_keys(old), *dotted_keys(new)})
    changed = {}
    for key in keys:
        pair = (pick(old, key), pick(new, key))
        if pair[0] != pair[1] and not any(isinstance(value, Mapping) for value in pair):
            changed[key] = (_plain(pair[0]), _plain(pair[1]))
    return changed


def changed_reads(before: Sweep, after: Sweep, old: Cell, new: Cell) -> list[str]:
    """Return the dotted keys that some stage reads and whose values differ between two cells.

    Args:
        before, after: the sweeps of the two cells.
        old, new: the cells.

    Returns:
        A general remark if no key differs; then the stages themselves do.
    """
    reads = {before.stages[digest].name: before.stages[digest].reads for digest in old.stage_digests}
    nodes = [after.stages[digest] for digest in new.stage_digests]
    keys = [key for node in nodes if node.name in reads for key in changed_keys(reads[node.name], node.reads)]
    return list(dict.fromkeys(keys)) or ["the stages themselves"]


def _plain(value: Any) -> Any:
    """Return a value for a table; None for an absent one."""
    return None if value is MISSING else value
