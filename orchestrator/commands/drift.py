"""What changed since: cells that are new, and products that other code made. Shown, never hashed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from orchestrator import provenance
from orchestrator.commands.diff import changed_reads
from orchestrator.commands.output import counted
from orchestrator.commands.view import View, current_revision
from orchestrator.core.sweep import Cell
from orchestrator.store.checkout import checkout_of


def print_cell_drift(view: View) -> None:
    """Says which cells are new, and why, against the revision that was launched last."""
    if view.sealed:
        return
    number = current_revision(view.ledger, view.sweep.name)
    if number is None:
        return
    before = view.ledger.revision(view.sweep.name, number).sweep
    old = {cell.cell for cell in before.cells}
    new = [cell for cell in view.sweep.cells if cell.cell not in old]
    if not new:
        return
    by_axes = {tuple(cell.axes.items()): cell for cell in before.cells}
    changed: Counter[str] = Counter()
    for cell in new:
        former = by_axes.get(tuple(cell.axes.items()))
        changed.update(
            changed_reads(before, view.sweep, former, cell) if former else ["another place in the grid"]
        )
    why = ", ".join(f"{key} ({counted(n, 'cell')})" for key, n in changed.most_common(5))
    print(f"  {counted(len(new), 'cell')} not in {view.sweep.name}@{number}: {why}")


def code_versions(view: View, cells: Sequence[Cell]) -> Counter[str]:
    """Counts the products that count by the version of the code that made them."""
    evidence = (view.snapshot.evidence(digest) for digest in {d for cell in cells for d in cell.chain})
    return Counter(e.done.code for e in evidence if e.done is not None)


def print_code_drift(view: View, cells: Sequence[Cell], import_paths: Sequence[str] = ()) -> None:
    """Says when products were made by different code, or by other code than would run now.

    Args:
        view: the revision.
        cells: whose products.
        import_paths: where the user's stages are importable now; without them only the products are compared.
    """
    codes = code_versions(view, cells)
    if import_paths and codes:
        digest = checkout_of(view.ledger.objects, view.sweep, import_paths).digest()
        now = provenance.code_version(digest, provenance.git_state(import_paths[0]))
        other = {code: n for code, n in codes.items() if code.rpartition(".")[2] != now.rpartition(".")[2]}
        if other:
            made = ", ".join(f"{counted(n, 'product')} by {code}" for code, n in other.items())
            print(f"  note: made by other code than now ({now}): {made}; after a bug fix: sweep discard")
    elif len(codes) > 1:
        made = ", ".join(f"{counted(n, 'product')} by {code}" for code, n in codes.most_common())
        print(f"  note: made by different code: {made}")
