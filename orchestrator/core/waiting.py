"""Whether a sweep has reached what somebody waits for, can still reach it, or stands still."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from orchestrator.core.state import FINAL, GOOD, State


class Goal(StrEnum):
    """What to wait for.

    Attributes:
        DONE: every cell is done.
        FAILED: at least one cell has failed.
        STALLED: cells are left, and nothing has changed for a while.
    """

    DONE = "done"
    FAILED = "failed"
    STALLED = "stalled"


class Outlook(StrEnum):
    """The answer of `outlook`.

    Attributes:
        REACHED: the goal is reached.
        IMPOSSIBLE: the goal can no longer be reached without a further launch, rerun or discard.
        OPEN: neither is certain yet.
    """

    REACHED = "reached"
    IMPOSSIBLE = "impossible"
    OPEN = "open"


def outlook(goal: Goal, states: Collection[State], *, quiet_s: float, stall_s: float) -> Outlook:
    """Return whether a goal is reached, impossible, or still open.

    A blocked cell counts as ended once every other cell has ended. Until then another cell may still
    unblock it, for example by a success that refutes why it was held.

    Args:
        goal: what is waited for.
        states: of the cells.
        quiet_s: seconds for which no record of the cells has changed.
        stall_s: seconds without a change after which the cells count as stalled.
    """
    is_over = all(state in FINAL for state in states)
    match goal:
        case Goal.DONE:
            if all(state in GOOD for state in states):
                return Outlook.REACHED
            is_impossible = is_over or State.FAILED in states or State.CANCELLED in states
        case Goal.FAILED:
            if State.FAILED in states:
                return Outlook.REACHED
            is_impossible = is_over
        case Goal.STALLED:
            # A job that waits for a scheduler is at work: its queue may be days long.
            if not is_over and State.QUEUED not in states and quiet_s >= stall_s:
                return Outlook.REACHED
            is_impossible = is_over
    return Outlook.IMPOSSIBLE if is_impossible else Outlook.OPEN
