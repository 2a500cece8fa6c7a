"""The state of a sweep's cells as a value, and the evidence behind it: attempts, products, jobs, requests."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from orchestrator.api.requests import code_versions, retired_line
from orchestrator.api.state import SweepState
from orchestrator.api.waiting import decision_line, next_decision
from orchestrator.core.evidence import Attempt
from orchestrator.core.records import StartRecord
from orchestrator.core.remedies import described, has_rungs, suggestions, with_shipped
from orchestrator.core.state import CellStatus, State
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import UserError, counted, one_line
from orchestrator.jobs.cells import LIMIT, scheduler_of
from orchestrator.jobs.judgement import Judgement, Phase, SubmissionState
from orchestrator.launchers.base import scheduler
from orchestrator.registry import UNDELIVERED, load
from orchestrator.store import layout
from orchestrator.store.evidence import examine, progress
from orchestrator.store.table import Rows, collect_rows

if TYPE_CHECKING:
    import pandas


def notes_of(view: SweepState, cells: Sequence[Cell]) -> Counter[str]:
    """Return the remarks that stages returned in the column `notes`, each with the number of its cells."""
    notes: Counter[str] = Counter()
    for cell in cells:
        found = [view.reader.evidence(digest).done for digest in cell.stage_digests]
        rows = [row for done in found if done is not None for row in done.rows]
        notes.update({note for row in rows if isinstance(note := row.get("notes"), str) and note})
    return notes


def remedies_of(view: SweepState, cells: Sequence[Cell]) -> dict[str, str]:
    """Return the remedies with which the last attempts of stages started, by digest.

    Only stages that have remedies are read, all at once.

    Args:
        view: the sweep state.
        cells: to look at.
    """
    ladders = {name for name, spec in view.sweep.specs.items() if has_rungs(with_shipped(spec))}
    keys = {}
    for digest in dict.fromkeys(digest for cell in cells if ladders for digest in view.stages_of(cell)):
        instance, status = view.instances[digest], view.stages[digest]
        if status.attempts and instance.stage in ladders:
            keys[digest] = layout.attempt(instance, status.attempts, layout.START)
    ledger = view.ledger.having_read(keys.values()) if keys else view.ledger
    found = {digest: described(ledger.read(key, StartRecord)[0]) for digest, key in keys.items()}
    return {digest: text for digest, text in found.items() if text}


def retries_of(status: CellStatus) -> int:
    """Return how often stages of a cell were started again. The first start of a stage is no retry."""
    return sum(max(0, stage.attempts - 1) for stage in status.stages.values())


def undelivered_of(view: SweepState) -> list[Any]:
    """Return the notices that were not delivered, see `orchestrator.api.notices.Undelivered`."""
    names_receivers = any(r.settings is not None and r.settings.notify.channels for r in view.requests)
    return list(load(UNDELIVERED)(view)) if names_receivers else []


def status_json(view: SweepState, cells: Sequence[Cell]) -> dict[str, object]:
    """Return the stable machine-readable form of the states.

    `seconds` of a stage is the wall time of its last attempt.
    """
    counts = Counter(view.cells[cell.id].state for cell in cells)
    rows, chosen, remedies = [], view.chosen_gpus, remedies_of(view, cells)
    for cell in cells:
        status = view.cells[cell.id]
        stages = [
            {
                "stage": view.instances[digest].name,
                "digest": digest,
                "state": stage.state,
                "cause": stage.cause,
                "attempts": stage.attempts,
                "seconds": stage.seconds,
                "reason": stage.reason,
                **({"remedy": remedies[digest]} if digest in remedies else {}),
            }
            for digest, stage in view.stages_of(cell).items()
        ]
        rows.append(
            {
                "cell": cell.id,
                "axes": cell.axes,
                "state": status.state,
                "cause": status.cause,
                "reason": status.reason,
                "attempts": status.attempts,
                "retries": retries_of(status),
                **({"chosen_gpus": chosen[cell.id]} if cell.id in chosen else {}),
                "stages": stages,
            }
        )
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "counts": {str(state): n for state, n in counts.items()},
        "as_of": view.as_of,
        "code": dict(code_versions(view, cells)),
        "problems": view.problems,
        "undelivered": [each._asdict() for each in undelivered_of(view)],
        "decision": next_decision(view),
        "cells": rows,
    }


class CellView:
    """One cell and its state at the time of the look-up.

    Attributes:
        id: such as ``tiny-qwen3.math.en-1a2b3c4d``.
        axes: axis to label.
        config: the resolved config.
        state: of the cell.
        cause: of its failure, one of the causes in docs/design.md; "" if it has not failed.
        reason: for the state, in a few words.
        num_retries: how often stages of the cell were started again.
    """

    def __init__(self, view: SweepState, cell: Cell) -> None:
        status = view.cells[cell.id]
        self._view, self._cell = view, cell
        self.id, self.axes, self.config = cell.id, dict(cell.axes), cell.config
        self.state, self.cause, self.reason = status.state, str(status.cause or ""), status.reason
        self.num_retries = retries_of(status)

    def why(self) -> str:
        """Return the evidence for the state as text. Files of products are read and verified."""
        return "\n".join(explanation_lines(explain(self._view, self._cell)))

    def __repr__(self) -> str:
        return f"<{self.id}: {self.state}>"


class Cells(Mapping[str, CellView]):
    """The cells of a sweep by id. The beginning of an id, or a selector, works too if it matches one cell."""

    def __init__(self, view: SweepState, cells: Sequence[Cell]) -> None:
        self._view, self._cells = view, {cell.id: cell for cell in cells}

    def __getitem__(self, word: str) -> CellView:
        """Return a cell.

        Raises:
            UserError: the word matches no cell, or several.
        """
        if not isinstance(word, str):
            raise UserError(
                f"cells[{word!r}]", allowed="an id, or a selector such as cells['model=a seed=0']"
            )
        return CellView(self._view, self._cells.get(word) or self._view.cell(word))

    def __iter__(self) -> Iterator[str]:
        return iter(self._cells)

    def __contains__(self, word: object) -> bool:
        return word in self._cells

    def __len__(self) -> int:
        return len(self._cells)

    def __repr__(self) -> str:
        return f"<{counted(len(self), 'cell')}>"


class Status(NamedTuple):
    """The states of a sweep's cells at one moment.

    Attributes:
        counts: state to number of cells; states without cells are left out.
        cells: the cells themselves.
        problems: records in the store that could not be read.
        as_of: when the store was looked at, in Unix seconds.
    """

    counts: dict[str, int]
    cells: Cells
    problems: list[str]
    as_of: float

    def to_frame(self) -> pandas.DataFrame:
        """Return a table with one row for each cell."""
        import pandas

        return pandas.DataFrame(
            {**c.axes, "cell": c.id, "state": str(c.state), "retries": c.num_retries, "reason": c.reason}
            for c in self.cells.values()
        )


def status_of(view: SweepState, wanted: Sequence[str] | None) -> Status:
    """Return the states of the wanted cells; of all cells for None."""
    cells = view.asked_cells(None if wanted is None else set(wanted))
    counts = Counter(str(view.cells[cell.id].state) for cell in cells)
    return Status(dict(counts), Cells(view, cells), view.warnings(), view.as_of)


def _jobs(view: SweepState, cell: Cell) -> Iterator[dict[str, Any]]:
    """Yield the evidence of each job that ever held the cell, oldest first."""
    for filed in view.jobs.filed:
        submission = filed.submission
        for index, cells in enumerate(submission.tasks):
            if cell.id not in cells or _is_refusal(filed, index, view.jobs.of_cell(cell.id)):
                continue
            job = view.jobs.job(filed, index)
            lines = [
                f"submission {submission.number} for request {submission.request},"
                f" at {submission.at} by {submission.by}"
            ]
            if job.phase is Phase.QUEUED and job.name:
                waits = scheduler(*scheduler_of(submission)).waiting([job.name])
                lines += [f"it waits: {waits[job.name]}"] if job.name in waits else []
            if (report := filed.reports.get(index)) is not None:
                again = ", to be started anew" if report.requeued else ""
                lines.append(
                    f"its last word at {report.at} on {report.node}, after {report.seconds:.0f} s: "
                    f"{report.why or 'none'} (exit code {report.code}{again})"
                )
            if len(cells) > 1:
                lines.append(f"it works on {len(cells)} cells")
            if number := submission.resources.chosen_gpus:
                lines.append(f"{counted(number, 'GPU')} for each cell, as chosen")
            yield {"job": job.name, "phase": job.phase, "reason": job.reason, "evidence": lines}


def _is_refusal(filed: SubmissionState, index: int, last: Judgement | None) -> bool:
    """Return whether a limit kept a task from becoming a job, and a later submission of the cell exists.

    A full scheduler may refuse a cell many times. Only the last refusal is of interest.
    """
    is_last = last is not None and last.filed.submission.number == filed.submission.number
    return not is_last and index in filed.over and filed.over[index].word == LIMIT


def _evidence(view: SweepState, cell: Cell, instance: StageInstance, *, content: bool) -> dict[str, Any]:
    """Return the evidence for the state of one stage of a cell."""
    status = view.stages_of(cell)[instance.digest]
    lines = []
    evidence = view.reader.evidence(instance.digest)
    attempts = view.attempts(instance)
    for attempt in attempts:
        lines.extend(_of_attempt(attempt))
    if evidence.done is not None:
        # `sweep why` reads the content of each file. Other verbs compare sizes only.
        found, retired = examine(view.ledger, instance, evidence.done, evidence.retired, content=content)
        compared = "verified by content" if content else "of the recorded sizes"
        verified = f"DAMAGED: {found}" if found else f"the rest {compared}" if retired else compared
        lines.append(
            f"product: generation {evidence.generation}, attempt {evidence.done.attempt}, "
            f"{len(evidence.done.files)} files, {verified}"
        )
        for record in retired:
            lines.append(f"  retired {retired_line(record)}")
            lines.extend(f"    {file.path}" for file in record.files)
    elif evidence.problem:
        lines.append(evidence.problem)
    if (former := status.former) is not None:
        version = f"the product of an earlier version, {former.instance.digest[:12]}"
        lines.append(f"{version}: {former.problem or former.how}")
    for text in suggestions(with_shipped(view.sweep.specs[instance.stage]), status.cause):
        if status.state is State.FAILED:
            lines.append(f"you could: {text}")
    for taken in instance.inputs:
        state = view.stages_of(cell).get(taken.digest, view.stages[taken.digest]).state
        lines.append(f"input {view.sweep.stages[taken.digest].name}: {state}")
    return {
        "stage": instance.name,
        "digest": instance.digest,
        "state": status.state,
        "reason": status.reason,
        "evidence": lines,
        "retired": evidence.retired,
        "attempts": [msgspec.to_builtins(attempt._asdict()) for attempt in attempts],
    }


def _of_attempt(attempt: Attempt) -> list[str]:
    """Return lines on one attempt: who claimed it, where it started from, its last heartbeat and its end."""
    lines = []
    if attempt.problem:
        lines.append(f"attempt {attempt.number}: {attempt.problem}")
    if attempt.claim is not None:
        claim, owner = attempt.claim, attempt.claim.owner
        lines.append(
            f"attempt {attempt.number}: claimed {claim.at} by process {owner.process.pid} on {owner.host}, "
            f"for {claim.sweep} {claim.cell}, lease {claim.lease_s:.0f} s"
        )
        if claim.chosen_gpus:
            lines.append(f"  on {counted(claim.chosen_gpus, 'GPU')}, as chosen for the cell")
        if claim.supersedes is not None:
            lines.append(f"  after attempt {claim.supersedes.attempt} was lost: {claim.supersedes.evidence}")
    if attempt.start is not None and attempt.start.parent is not None:
        parent = attempt.start.parent
        lines.append(f"  went on from step {parent.step} of attempt {parent.attempt}")
    if remedy := described(attempt.start):
        lines.append(f"  remedy: {remedy}")
    if attempt.start is not None and attempt.start.work is not None:
        lines.append(f"  went on in the work folder of attempt {attempt.start.work}")
    if attempt.start is not None and attempt.start.unread is not None:
        lines.append(f"  read the output of attempt {attempt.start.unread} again")
    if attempt.heartbeat is not None:
        beat = attempt.heartbeat
        lines.append(f"  heartbeat {beat.counter} at {beat.at}: {beat.phase}{progress(beat)}")
    if attempt.end is not None:
        end = attempt.end
        what = one_line(" ".join(filter(None, (end.outcome, end.cause or "", end.why, end.message))))
        lines.append(f"  ended {end.at} after {end.seconds:.1f} s: {what}")
    return lines


def explain(view: SweepState, cell: Cell, *, content: bool = True) -> dict[str, Any]:
    """Return the evidence for a cell's state. Files of its products are read and verified.

    Args:
        view: the sweep state.
        cell: to explain.
        content: whether to read the files; otherwise only their sizes are compared.

    Returns:
        The content of ``sweep why --json``: state, reason, the command that tries again what failed, stages,
        jobs and requests, each with its evidence.
    """
    status = view.cells[cell.id]
    states = {status.state, *(stage.state for stage in view.stages_of(cell).values())}
    # A rerun of one cell would rehearse for this cell alone, so what failed is named instead.
    gates = [
        found.digest for instance, found in view.failures(cell) if instance.digest in view.gates.instances
    ]
    left = view.open_decision
    is_seen = left is not None and cell.id in left.cells
    named = f"failure={gates[0]}" if gates else shlex.quote(cell.id)
    again = f"sweep rerun {view.sweep.name} --only {named}{view.hint}"
    return {
        "sweep": view.sweep.name,
        "revision": view.number,
        "cell": cell.id,
        "state": status.state,
        "reason": status.reason,
        "next": again if State.FAILED in states else "",
        "decision": next_decision(view) if is_seen else None,
        "stages": [_evidence(view, cell, view.instances[d], content=content) for d in view.chain(cell)],
        "jobs": list(_jobs(view, cell)),
        "requests": [
            {"number": r.number, "verb": r.verb, "by": r.by, "at": r.at, "reason": r.reason}
            for r in view.requests
            if r.cells is None or cell.id in r.cells
        ],
    }


def explanation_lines(found: Mapping[str, Any]) -> list[str]:
    """Return the result of `explain` as lines of text."""
    lines = [f"{found['state']}: {found['reason']}"]
    lines += [f"when mended: {found['next']}"] if found["next"] else []
    lines += [decision_line(found["decision"])] if found["decision"] else []
    for stage in found["stages"]:
        lines += ["", f"{stage['stage']}  {stage['digest'][:12]}  {stage['state']}: {stage['reason']}"]
        lines += [f"  {line}" for line in stage["evidence"]]
    if found["jobs"]:
        lines.append("")
    for job in found["jobs"]:
        lines.append(f"job {job['job'] or '-'}  {job['phase']}: {job['reason']}")
        lines += [f"  {line}" for line in job["evidence"]]
    for request in found["requests"]:
        why = f": {request['reason']}" if request["reason"] else ""
        lines += [
            "",
            f"request {request['number']}: {request['verb']} by {request['by']} at {request['at']}{why}",
        ]
    return lines


def rows_of(view: SweepState, only: list[str]) -> Rows:
    """Return the result rows of the selected cells."""
    cells = view.select(only)
    return collect_rows(view.sweep, view.number, cells, view.cells, view.reader)
