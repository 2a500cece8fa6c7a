"""What failed in a sweep: failures that look alike form one group, with an example and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

import msgspec

from orchestrator.api.state import SweepState
from orchestrator.core.evidence import Attempt, is_answered
from orchestrator.core.failure import DETERMINISTIC, Cause, Fingerprint
from orchestrator.core.remedies import described
from orchestrator.core.state import STARTABLE, State
from orchestrator.core.sweep import Cell, StageInstance
from orchestrator.errors import InfrastructureError, SweepError, counted, means_full_disk


class FailureExample(msgspec.Struct, frozen=True, kw_only=True):
    """One failed attempt of a group.

    Attributes:
        cell: id of a cell of which the stage is a part.
        stage: name of the stage instance, such as ``prepare[en]``.
        attempt: its number.
        host: where it ran.
        message: as it was recorded.
        log: the command that prints its log.
    """

    cell: str
    stage: str
    attempt: int
    host: str
    message: str
    log: str


class FailureGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Failures with one fingerprint.

    Attributes:
        failure: the fingerprint, a value of the selector key `failure`.
        stage: that failed.
        cause: of the failures.
        exception: class name; "" if no exception was raised.
        pattern: the message without numbers, ids and paths.
        frames: innermost frames of the user's own code, as ``file:function``, the innermost last.
        num_stages: number of distinct stage instances that failed.
        cells: ids of the cells that they hold up, in the order of the sweep.
        held: ids of the cells that do not start because these failed alike.
        why_held: the reason, with the commands that let them go on; "" if none is held.
        example: one of the attempts.
        next: the command that runs these cells again.
        remedy: what the example's attempt started with instead of the configured values, and whether the
            next attempt starts with another remedy by itself; "" if the stage has no remedy for the cause.
    """

    failure: str
    stage: str
    cause: str
    exception: str
    pattern: str
    frames: tuple[str, ...]
    num_stages: int
    cells: tuple[str, ...]
    example: FailureExample
    next: str
    remedy: str = ""
    held: tuple[str, ...] = ()
    why_held: str = ""


def failures_of(view: SweepState, cells: Sequence[Cell]) -> list[FailureGroup]:
    """Return the failures of some cells in groups that look alike, the group with the most cells first.

    Args:
        view: the sweep state.
        cells: to look at.
    """
    found: dict[Fingerprint, dict[str, StageInstance]] = {}
    held: dict[Fingerprint, list[Cell]] = {}
    for cell in cells:
        for instance, print_ in view.failures(cell):
            found.setdefault(print_, {})[instance.digest] = instance
            held.setdefault(print_, []).append(cell)
    groups = [
        _group(view, print_, list(instances.values()), held[print_]) for print_, instances in found.items()
    ]
    return sorted(groups, key=lambda group: -len(group.cells))


def failure_lines(group: FailureGroup) -> list[str]:
    """Return a group as lines of text."""
    named = f"{group.exception}: " if group.exception else ""
    example = group.example
    cells = counted(len(group.cells), "cell")
    lines = [
        f"{group.failure}  {cells}  {group.stage}  {group.cause}  {named}{group.pattern}",
        f"  for example {example.cell} {example.stage}, attempt {example.attempt} on {example.host}: "
        f"{example.message}",
    ]
    if group.frames:
        lines.append(f"  at {' > '.join(group.frames)}")
    if group.remedy:
        lines.append(f"  remedy: {group.remedy}")
    advice = "mend it, then: " if group.cause in DETERMINISTIC else ""
    lines += [f"  {example.log}", f"  {advice}{group.next}"]
    if group.held:
        lines.append(f"  held back: {counted(len(group.held), 'cell')}. {group.why_held}")
    return lines


def _group(
    view: SweepState, print_: Fingerprint, instances: Sequence[StageInstance], cells: Sequence[Cell]
) -> FailureGroup:
    """Return the group of a fingerprint; its example is the first stage that failed in the first cell."""
    instance, cell = instances[0], cells[0]
    attempt = view.reader.evidence(instance.digest).attempts[-1]
    assert attempt.end is not None
    held = {
        id_: hold
        for id_, hold in view.holds.cells.items()
        if hold.failure == print_.digest and view.cells[id_].state is State.BLOCKED
    }
    name = view.sweep.name
    log = f"sweep logs {name} {cell.id} --stage {shlex.quote(instance.name)}{view.hint}"
    return FailureGroup(
        failure=print_.digest,
        stage=print_.stage,
        cause=Cause(print_.cause),
        exception=print_.exception,
        pattern=print_.message,
        frames=print_.frames,
        num_stages=len(instances),
        cells=tuple(each.id for each in cells),
        example=FailureExample(
            cell=cell.id,
            stage=instance.name,
            attempt=attempt.number,
            host=attempt.claim.owner.host if attempt.claim else "",
            message=attempt.end.message,
            log=log,
        ),
        remedy=_remedy(attempt, Cause(print_.cause)),
        held=tuple(held),
        why_held=next((hold.reason for hold in held.values()), ""),
        next=f"sweep rerun {name} --only failure={print_.digest}{view.hint}",
    )


def _remedy(attempt: Attempt, cause: Cause) -> str:
    """Return the remedies of a failed attempt, and whether another one is left."""
    left = "another one is left, and is tried by itself" if is_answered(attempt, cause) else ""
    return "; ".join(filter(None, (described(attempt.start), left)))


def exit_code(view: SweepState, cells: Sequence[Cell]) -> int:
    """Return 1 for cells that nothing works on any more, and that did not end well.

    Raises:
        InfrastructureError: they did not because the store has no space.
    """
    if why := _lack_of_space(view, cells):
        go_on = f"make room, then: sweep launch {view.sweep.name}{view.hint}"
        raise InfrastructureError(why, where=view.ledger.objects.url, fix=go_on)
    return 1


def _lack_of_space(view: SweepState, cells: Sequence[Cell]) -> str:
    """Return why no worker starts a stage that could run, if a full disk is the reason, else "".

    The workers have ended.
    """
    for cell in cells:
        for digest, status in view.cells[cell.id].stages.items():
            hold = view.holds.of(cell.id, digest)
            if hold is not None and hold.cause is Cause.STORAGE and status.state is State.PENDING:
                return hold.reason
    if any(view.cells[cell.id].state in STARTABLE for cell in cells):
        try:
            view.ledger.prove_writable()
        except SweepError as error:  # no end of an attempt, from which holds follow, could be recorded
            return error.what if means_full_disk(error.what) else ""
    return ""
