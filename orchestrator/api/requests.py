"""What a launch needs, records and warns of: requests, code snapshots, differing code and retired files."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

import msgspec

from orchestrator import provenance
from orchestrator.api.estimates import call, order_estimates
from orchestrator.api.state import Notify, SweepState
from orchestrator.core.gates import gates_of, stands_for, too_dear
from orchestrator.core.records import Code, Request, Retired
from orchestrator.core.secrets import lines_with
from orchestrator.core.settings import Policy, RunSettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell, ComposedSweep, GateFacts, gates_among
from orchestrator.costs import Hardware, Need, checked_needs
from orchestrator.errors import InfrastructureError, UserError, counted, one_line
from orchestrator.registry import importable, load
from orchestrator.spec import Config
from orchestrator.store import code as snapshots
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.checkout import checkout_of
from orchestrator.store.objects import ObjectStore
from orchestrator.store.retention import retain


def build_request(
    view: SweepState,
    verb: Literal["launch", "rerun", "cancel", "discard"],
    cells: Sequence[Cell] | None,
    *,
    after: Mapping[str, int] | None = None,
    reason: str = "",
    settings: RunSettings | None = None,
    import_paths: tuple[str, ...] = (),
    code: Code | None = None,
) -> Request:
    """Return a request that is not recorded yet.

    Args:
        view: the revision that it belongs to.
        verb: the kind of request.
        cells: the cells that it is for; None for all.
        after: digest of a stage to the number of an attempt; only later attempts count against retry budgets.
        reason: the user's own words.
        settings: of a launch or rerun; packages and the code's diff are recorded with them.
        import_paths: folders from which the user's stages are imported.
        code: the code snapshot, for workers that start later.
    """
    folder = import_paths[0] if import_paths else "."
    if settings:  # earlier versions refuse these keys, so they are left out at their defaults
        defaults = {"snapshot": False, "max_gpus": None}
        given = settings.launcher.items()
        kept = {key: value for key, value in given if key not in defaults or value is not defaults[key]}
        settings = msgspec.structs.replace(settings, launcher=kept)
    # Workers record the same digest with their attempts, so it shows which failures are of this code.
    version = code.version if code else ""
    if settings is not None and not version:
        version = checkout_digest(view, import_paths)
    # Jobs of cancelled cells may be about to end by that cancel, which this request revokes.
    named = {cell.id for cell in cells or view.sweep.cells} - view.request_summary.cancelled
    jobs = view.jobs if settings else None
    return Request(
        nonce=new_nonce(),
        number=0,
        verb=verb,
        revision=view.number,
        cells=None if cells is None else tuple(cell.id for cell in cells),
        after=dict(after or {}),
        reason=provenance.without_secrets(reason),
        settings=settings,
        import_paths=import_paths,
        code=code,
        folder=str(Path.cwd()),
        provenance=provenance.of_launch(sys.argv, folder, version) if settings else {},
        by=provenance.user(),
        at=provenance.now(),
        last_submission=max((each.submission.number for each in jobs.filed), default=0) if jobs else None,
        held={cell: number for cell, number in jobs.held().items() if cell in named} if jobs else {},
    )


def gate_facts(
    view: SweepState, request: Request, hardware: Hardware | None, import_paths: Sequence[str]
) -> GateFacts | None:
    """Return what the gates of a launch are for, and which of them it leaves out.

    Args:
        view: the revision.
        request: the launch or rerun, not recorded yet.
        hardware: what one cell may have; None if that is not known.
        import_paths: folders from which the user's hooks are imported.

    Returns:
        The facts to record; None for a launch without gates.
    """
    settings = request.settings
    if settings is None or settings.policy.rehearse is False or not gates_among(view.sweep.specs):
        return None
    facts = GateFacts(
        code=str(request.provenance["code"]),
        packages=str(request.provenance["packages_digest"]),
        device=hardware.device if hardware else "",
        num_gpus=hardware.max_gpus if hardware and hardware.device != "cpu" else 0,
    )
    gates = gates_of(view.sweep, facts, request.cells)
    before = [
        gates_of(view.sweep, facts, other.cells).instances
        for other in view.requests
        if other.gates is not None and other.revision == view.number
        if msgspec.structs.replace(other.gates, left_out={}) == facts
    ]
    known = gates._replace(instances={d: i for found in (*before, gates.instances) for d, i in found.items()})
    view = view.with_gates(known)
    left_out = {
        digest: f"{other.name} was rehearsed for more cells"
        for digest, instance in gates.instances.items()
        for other in known.instances.values()
        if stands_for(other, instance) and view.stages[other.digest].state is State.DONE
    }
    if settings.policy.rehearse == "auto":
        cells = [cell for cell in view.sweep.cells if cell.id in gates.cells]
        found = order_estimates(view, cells, request, hardware, import_paths)
        hours = {digest: one.wall_hours * max(1, one.num_gpus) for digest, one in found.items()}
        left_out |= too_dear(gates, hours, lambda digest: view.stages[digest].state is State.DONE)
    return msgspec.structs.replace(facts, left_out=left_out)


MAX_BYTES, MAX_SETTINGS_BYTES, MAX_TOTAL_BYTES = 1_000_000, 200_000, 10_000_000
"""Limits of the search for credentials, in bytes. Larger files are data and are not searched."""

MAX_SHOWN = 5
"""Lines with credentials that are named in warnings."""
_SETTINGS = frozenset({".cfg", ".conf", ".env", ".ini", ".json", ".sh", ".toml", ".yaml", ".yml"})
"""Endings of settings files, where a key's name alone can mark a credential."""


def take_code(
    objects: ObjectStore, sweep: ComposedSweep, import_paths: Sequence[str], notify: Notify
) -> Code:
    """Store a snapshot of the code, and warn about credentials in it.

    Credentials are not removed, because the snapshot must be exactly what runs.

    Args:
        objects, sweep: the store, and the sweep whose stages will run.
        import_paths: folders from which the user's stages are imported.
        notify: called with each warning.

    Raises:
        UserError: the code cannot be read, or is larger than code should be.
        InfrastructureError: the store did not keep it.
    """
    planned = plan_code(objects, sweep, import_paths)
    found = [*_credentials(planned.items)]
    for place, reason in found[:MAX_SHOWN]:
        notify(f"warning: {place} looks like a secret ({reason}); the code is kept in the store as it is")
    if len(found) > MAX_SHOWN:
        notify(f"warning: {len(found) - MAX_SHOWN} more lines of the code look like secrets")
    snapshots.store(objects, planned)
    return planned.code


def plan_code(
    objects: ObjectStore, sweep: ComposedSweep, import_paths: Sequence[str]
) -> snapshots.SnapshotPlan:
    """Return what `take_code` would store.

    Args:
        objects, sweep: the store, and the sweep whose stages will run.
        import_paths: folders from which the user's stages are imported.
    """
    return snapshots.plan(
        objects,
        import_paths,
        targets=[spec.run for spec in sweep.specs.values() if spec.run],
        version=checkout_of(objects, sweep, import_paths).digest(),
    )


def _credentials(items: Iterable[snapshots.PlannedFile]) -> Iterator[tuple[str, str]]:
    """Yield lines of the user's files that hold a credential, as ``FILE:LINE``, each with the reason."""
    left = MAX_TOTAL_BYTES
    for item in items:
        path, size = PurePosixPath(item.file.path), len(item.data)
        is_text = (
            item.file.kind in ("file", "exec") and size <= min(left, MAX_BYTES) and b"\0" not in item.data
        )
        if not is_text or path.is_relative_to(layout.CODE_PACKAGE):
            continue
        # Only files that were searched count against the total.
        left -= size
        by_name = bool({path.suffix, path.name} & _SETTINGS) and size <= MAX_SETTINGS_BYTES
        for number, reason in lines_with(item.data.decode(errors="replace"), by_name=by_name):
            yield f"{PurePosixPath(*path.parts[1:])}:{number}", reason


def code_versions(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Count the products of some cells by the version of the code that made them."""
    evidence = (view.reader.evidence(digest) for digest in {d for cell in cells for d in cell.stage_digests})
    return Counter(e.done.code for e in evidence if e.done is not None)


def checkout_digest(view: SweepState, import_paths: Sequence[str]) -> str:
    """Return the digest of the code of a sweep's stages, as it is now."""
    return checkout_of(view.ledger.objects, view.sweep, import_paths).digest()


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
        digest = checkout_digest(view, import_paths)
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


def retired_line(retired: Retired) -> str:
    """Return a retirement as one line."""
    return (
        f"{_amount_of(retired)} under policy {retired.policy} at {retired.at} by {retired.by}: {retired.why}"
    )


def _amount_of(*retired: Retired) -> str:
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
    if view.request_summary.revision != view.number:
        # Another revision was launched meanwhile and may need these files. Its own launch will decide.
        return []
    try:
        news = retain(
            view.ledger, view.sweep, policy, by=f"launch by {provenance.user()}", trusted=view.trusted
        )
    except (OSError, InfrastructureError) as error:
        return [f"retention: {error}; the next launch goes on with it"]
    if news:
        return [
            f"retired {_amount_of(*news)} of {counted(len(news), 'product')} under policy {policy.retention}"
        ]
    return []


def needs_of(
    view: SweepState, cells: Sequence[Cell], import_paths: Sequence[str] = ()
) -> dict[str, list[Need]]:
    """Return all needs of each cell that is not done; needs that are not met name the problem.

    Args:
        view: the sweep state.
        cells: to look at.
        import_paths: folders from which the user's hooks are imported.

    Returns:
        Id of a cell to its needs; cells without needs are left out.

    Raises:
        UserError: a hook cannot be loaded, or fails.
    """
    needs: dict[str, list[Need]] = {}
    with importable(import_paths):
        hooks = {
            stage: (spec.needs, load(spec.needs, where=f"the needs of stage {stage!r}"))
            for stage, spec in view.sweep.specs.items()
            if spec.needs
        }
        for cell in cells if hooks else ():
            status = view.cells[cell.id]
            open_stages = {
                view.sweep.stages[digest].stage
                for digest, stage in status.stages.items()
                if stage.state is not State.DONE
            }
            # Several stages may share a hook. It is called once for each cell.
            asked = dict(hooks[stage] for stage in hooks if stage in open_stages)
            returned = {name: call(name, hook, Config(cell.config)) for name, hook in asked.items()}
            found = [need for name, each in returned.items() for need in checked_needs(name, each)]
            if found:
                needs[cell.id] = _distinct(found)
    return needs


def missing_of(needs: Mapping[str, Sequence[Need]]) -> dict[str, list[Need]]:
    """Return, by cell, the needs that are not met."""
    missing = {cell: [need for need in found if need.problem] for cell, found in needs.items()}
    return {cell: found for cell, found in missing.items() if found}


def need_line(need: Need) -> str:
    """Return a missing need as one line."""
    return f"{need.what}: {need.problem}" + ("" if need.fetch or not need.advice else f"; {need.advice}")


def distinct(needs: Mapping[str, Sequence[Need]]) -> list[Need]:
    """Return each need once, whichever cells have it."""
    return _distinct([need for found in needs.values() for need in found])


def refuse_blocked(view: SweepState, missing: Mapping[str, Sequence[Need]], fix: str) -> None:
    """Raise if a need of a cell is missing.

    Args:
        view, missing: the sweep state, and by cell its missing needs.
        fix: the command that fetches them, for the error.

    Raises:
        UserError: a need is missing.
    """
    if not missing:
        return
    needs = distinct(missing)
    lines = [one_line(need_line(n), 160) for n in needs]
    mend = fix if any(need.fetch or need.advice for need in needs) else "mend this"
    more = f" and {len(lines) - 6} more" if len(lines) > 6 else ""
    raise UserError(
        f"{counted(len(missing), 'cell')} of {view.sweep.name} cannot run here yet; nothing was launched",
        where="\n  ".join(lines[:6]) + more,
        fix=f"{mend}, or launch the other cells with --only",
    )


def _distinct(needs: Sequence[Need]) -> list[Need]:
    """Return needs without duplicates. Needs are equal if what they name and how it is fetched are equal."""
    return list(
        {(need.what, need.fetch, str(sorted(need.arguments.items()))): need for need in needs}.values()
    )
