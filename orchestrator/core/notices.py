"""The events of a sweep about which people get notices, and whether a notice may be sent. Pure.

All senders derive the same events, with the same ids, from the store's records. A try to send one is created
in the store before it is made, so of several senders one makes it. What happened is recorded afterwards::

    try created   outcome recorded     then
    no            -                    any sender may make the first try
    yes           delivered            never again
    yes           refused              any sender makes the next try after a pause, at most `MAX_TRIES` in all
    yes           unclear, or absent   never again: the notice may have arrived

So no notice is sent twice, and one whose fate is unclear may be lost (decision 42).
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from orchestrator.core.evidence import Holds
from orchestrator.core.records import Record
from orchestrator.core.settings import NoticeKind, SpendingLimit
from orchestrator.core.state import FINAL, GOOD, CellStatus, Goal, Outlook, State, outlook
from orchestrator.errors import counted, one_line

MAX_TRIES = 4
"""Tries for each notice and channel. Only refused ones are repeated."""

PAUSES_S = (2.0, 60.0, 600.0)
"""Seconds between a refused try and the next one, for each repetition."""

MAX_PAUSE_S = 3600.0
"""Longest pause that a receiver may request, in seconds."""

MAX_FAILURES = 20
"""Kinds of failures of one sweep about which notices are sent."""

IN_FLIGHT_S = 120.0
"""Seconds after which `status` shows the sender of a try without an outcome as lost."""

MAX_TEXT = 300
"""Characters of what failed, in the text of a notice."""


class NoticeTry(Record, frozen=True, kw_only=True):
    """`notices/<event>/<channel>.<n>.json`: a try to send a notice. It is created before the sending.

    Attributes:
        nonce: identifies the sender.
        event: id of the event.
        channel: through which it is sent: ``command``, ``webhook`` or ``apprise``.
        number: of the try, from 1.
        text: of the notice.
        by, at: user and host of the sender, and the time.
    """

    nonce: str
    event: str
    channel: str
    number: int
    text: str = ""
    by: str = ""
    at: str = ""


class NoticeOutcome(Record, frozen=True, kw_only=True):
    """`notices/<event>/<channel>.<n>.outcome.json`: how a try ended. Only its sender writes it.

    Attributes:
        outcome: with ``unclear`` it may have arrived; ``unknown`` is of a later version.
        detail: what was answered, without credentials.
        pause_s: seconds from `at` before the next try.
        at: when the try ended.
    """

    outcome: Literal["delivered", "refused", "unclear", "unknown"]
    detail: str = ""
    pause_s: float = 0.0
    at: str = ""


class SentTry(NamedTuple):
    """A recorded try with its outcome; None while it has none."""

    sent: NoticeTry
    outcome: NoticeOutcome | None


class Notice(NamedTuple):
    """A notice about an event that is true of a sweep.

    Attributes:
        id: equal for equal events, whoever derives them. It is part of a key in the store.
        kind: of event.
        text: for people.
        facts: the content of the text, as JSON values.
    """

    id: str
    kind: NoticeKind
    text: str
    facts: Mapping[str, Any]


class AlikeFailures(NamedTuple):
    """Failures that look alike.

    Attributes:
        name: digest of their fingerprint; ``lost`` for attempts that left no end, and ``job`` for jobs that
            failed before they could start a stage.
        cause: of the failures.
        where: cell and stage of one of them.
        message: of this one.
        number: of stages, or of cells for jobs.
    """

    name: str
    cause: str
    where: str
    message: str
    number: int

    @property
    def event(self) -> str:
        """The id of the event that a failure like these was seen for the first time."""
        return f"failure-{self.cause}-{self.name}"


class NoticeFacts(NamedTuple):
    """What events are derived from.

    Attributes:
        sweep: name of the sweep.
        revision: the one launched last.
        cells: id to state of the cells that were launched.
        marks: digest of a stage of these cells to what changes when it is made or tried again.
        failures: the failures for which no retry is left, in groups.
        holds: what is held back in the sweep.
        codes: id of a cell to the digest of the code that would run it.
        budget: of the newest launch.
        quiet_s: seconds since the last change of a record of these cells.
        is_undecided: whether a decision is still to be made, from which more cells may follow.
    """

    sweep: str
    revision: int
    cells: Mapping[str, CellStatus]
    marks: Mapping[str, str]
    failures: Sequence[AlikeFailures]
    holds: Holds
    codes: Mapping[str, str]
    budget: SpendingLimit
    quiet_s: float
    is_undecided: bool = False


def due_events(facts: NoticeFacts, *, kinds: Collection[NoticeKind], stalled_s: float) -> list[Notice]:
    """Return the events that are true of a sweep now, in the order in which to send them.

    Args:
        facts: what is known about the sweep.
        kinds: the kinds that are wanted.
        stalled_s: seconds without a change after which the sweep counts as stalled; 0 for never.
    """
    if not facts.cells:
        return []
    found = [*_failures(facts), *_breakers(facts), *_budget(facts)]
    found += [*_stalled(facts, stalled_s), *_done(facts)]
    return [notice for notice in found if notice.kind in kinds]


def _notice(facts: NoticeFacts, kind: NoticeKind, name: str, text: str, **more: Any) -> Notice:
    about = {"sweep": facts.sweep, "revision": facts.revision, "counts": _counts(facts), **more}
    return Notice(name, kind, f"{facts.sweep}@{facts.revision}{text}", about)


def _counts(facts: NoticeFacts) -> dict[str, int]:
    counts = Counter(status.state for status in facts.cells.values())
    return {str(state): counts[state] for state in State if counts[state]}


def _summary(facts: NoticeFacts) -> str:
    states = ", ".join(f"{number} {state}" for state, number in _counts(facts).items())
    return f"{counted(len(facts.cells), 'cell')}: {states}"


def _situation(facts: NoticeFacts) -> str:
    """Return a digest of which cells were launched, and of what was made and tried of them.

    It stays as long as nothing happens, whoever looks, and changes with each further product or attempt.
    """
    value = [sorted(facts.cells), sorted(facts.marks.items())]
    return _digest(value)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:12]


def _failures(facts: NoticeFacts) -> Iterable[Notice]:
    for group in facts.failures:
        more = "" if group.number == 1 else f" (and {group.number - 1} more alike)"
        kind = "job failure" if group.name == "job" else "failure"
        text = f": first {kind} by {group.cause}: {group.where}{more}: {one_line(group.message, MAX_TEXT)}"
        yield _notice(
            facts,
            "failure",
            group.event,
            f"{text} (sweep failures {facts.sweep})",
            cause=group.cause,
            where=group.where,
            message=one_line(group.message, MAX_TEXT),
            number=group.number,
        )


def _breakers(facts: NoticeFacts) -> Iterable[Notice]:
    held: dict[tuple[str, str], list[str]] = {}
    for cell, status in facts.cells.items():
        hold = facts.holds.cells.get(cell)
        # The cells that failed are held as well.
        if hold is not None and hold.failure and status.state is State.BLOCKED:
            held.setdefault((hold.failure, facts.codes.get(cell, "")), []).append(cell)
    for (failure, code), cells in held.items():
        hold = facts.holds.cells[cells[0]]
        # Other code lets the cells go on. If these then fail alike, that is another event.
        name = f"breaker-{failure}" + (f"-{code[:8]}" if code else "")
        text = f": {counted(len(cells), 'cell')} held back: {hold.reason}"
        yield _notice(facts, "breaker", name, text, cells=len(cells), reason=hold.reason)


def _budget(facts: NoticeFacts) -> Iterable[Notice]:
    left = _num_left(facts)
    # Only the budget holds stages for good; gates are not among these holds.
    hold = next((hold for hold in facts.holds.stages.values() if hold.is_final), None)
    if hold is None or not left or not facts.budget.is_set:
        return
    # A larger budget that is reached too is another event.
    name = f"budget-{_digest([facts.budget.gpu_hours, facts.budget.until])}"
    text = f": the budget is reached, {counted(left, 'cell')} left: {hold.reason}"
    yield _notice(facts, "budget", name, text, reason=hold.reason, left=left)


def _num_left(facts: NoticeFacts) -> int:
    """Return the number of cells that would go on, if nothing held them back."""
    return sum(s.state not in (*GOOD, State.FAILED, State.CANCELLED) for s in facts.cells.values())


def _stalled(facts: NoticeFacts, stalled_s: float) -> Iterable[Notice]:
    states = [status.state for status in facts.cells.values()]
    found = outlook(Goal.STALLED, states, quiet_s=facts.quiet_s, stall_s=stalled_s)
    if stalled_s > 0 and found is Outlook.REACHED:
        text = f" has stood still for {facts.quiet_s / 60:.0f} minutes: {_summary(facts)}"
        name = f"stalled-{_situation(facts)}"
        yield _notice(facts, "stalled", name, f"{text} (sweep status {facts.sweep})", quiet_s=facts.quiet_s)


def _done(facts: NoticeFacts) -> Iterable[Notice]:
    if not facts.is_undecided and all(status.state in FINAL for status in facts.cells.values()):
        is_done = all(status.state in GOOD for status in facts.cells.values())
        text = f" {'is done' if is_done else 'has ended'}: {_summary(facts)}"
        # Another attempt or another product is another end. A launch that finds nothing to do is none.
        yield _notice(facts, "done", f"done@{facts.revision}-{_situation(facts)}", text, is_done=is_done)


class NextTry(NamedTuple):
    """Whether a notice may be sent through a channel.

    Attributes:
        number: of the try that may be made; 0 for none.
        wait_s: seconds until then.
        why: the notice is not delivered, for people; "" if it is, or if there was no try.
    """

    number: int
    wait_s: float = 0.0
    why: str = ""


def next_try(tries: Sequence[SentTry], age_s: Mapping[int, float], *, is_due: bool = True) -> NextTry:
    """Return whether another try may be made, given all tries of one notice through one channel.

    Args:
        tries: in the order of their numbers.
        age_s: number of a try to the seconds since it ended; without an outcome, since it began.
        is_due: whether the event is still true of the sweep; of another one no notice is tried again.
    """
    if not tries:
        return NextTry(1)
    sent, outcome = tries[-1]
    age = age_s.get(sent.number, 0.0)
    if outcome is None:
        if age < IN_FLIGHT_S:
            return NextTry(0, why=f"{sent.by} is sending it")
        return NextTry(0, why=f"unclear, its sender {sent.by} was lost: not tried again")
    if outcome.outcome == "delivered":
        return NextTry(0)
    if outcome.outcome != "refused":
        return NextTry(0, why=f"unclear, {outcome.detail}: not tried again")
    if sent.number >= MAX_TRIES:
        return NextTry(0, why=f"refused {sent.number} times: {outcome.detail}")
    if not is_due:
        return NextTry(0, why=f"refused, and no longer true of the sweep: {outcome.detail}")
    wait_s = max(0.0, outcome.pause_s - age)
    return NextTry(sent.number + 1, wait_s, f"refused, to be tried again: {outcome.detail}")


def pause_after_refusal(number: int, requested_s: float | None) -> float:
    """Return the seconds before the next try.

    Args:
        number: of the refused try, from 1.
        requested_s: what the receiver requested, such as by ``Retry-After``; None for nothing.
    """
    own = PAUSES_S[min(number, len(PAUSES_S)) - 1]
    return max(own, min(requested_s or 0.0, MAX_PAUSE_S))


def within_limit(due: Sequence[Notice], known: Collection[str]) -> list[Notice]:
    """Return the notices that may be sent: of failures at most `MAX_FAILURES` kinds in a sweep.

    Args:
        due: the events that are true now.
        known: ids of the events that were sent before.
    """
    left = MAX_FAILURES - sum(name.startswith("failure-") for name in known)
    found = []
    for notice in due:
        if notice.kind == "failure" and notice.id not in known:
            left -= 1
            if left < 0:
                continue
        found.append(notice)
    return found
