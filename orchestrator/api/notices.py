"""Send a sweep's notices, and list those that were not delivered.

``python -m orchestrator.api.notices STORE SWEEP SECONDS now|last`` is the process that a launch, a driver or
a job starts (`orchestrator.trackers.notifier`). It reads the store, sends what is due, and ends. Readers such
as `sweep status` send nothing.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from orchestrator import provenance
from orchestrator.api.state import SweepState, current_revision, sealed_view
from orchestrator.core.evidence import Attempt
from orchestrator.core.failure import Cause
from orchestrator.core.notices import (
    AlikeFailures,
    NextTry,
    Notice,
    NoticeFacts,
    NoticeOutcome,
    NoticeTry,
    SentTry,
    due_events,
    next_try,
    pause_after_refusal,
    within_limit,
)
from orchestrator.core.settings import NotifySettings
from orchestrator.core.state import State
from orchestrator.core.sweep import Cell
from orchestrator.entry import prepare
from orchestrator.errors import SweepError
from orchestrator.formats import decode
from orchestrator.store import layout
from orchestrator.store.access import error_line, new_nonce
from orchestrator.store.ledger import Ledger, open_ledger
from orchestrator.trackers.notifier import can_send, send

MAX_LOOK_S, SPARE_S = 45.0, 10.0
"""Seconds: longest pause before a second look at what seems to stand still, and the time left after it."""


def settings_now(view: SweepState) -> NotifySettings:
    """Return the settings of the newest launch or rerun."""
    for request in reversed(view.requests):
        if request.settings:
            return request.settings.notify
    return NotifySettings()


# What is due


def due_now(view: SweepState, settings: NotifySettings) -> list[Notice]:
    """Return the events that are true of the launched cells of a revision, as they were read."""
    return due_events(facts_of(view), kinds=settings.events, stalled_s=60 * settings.stalled_minutes)


def facts_of(view: SweepState) -> NoticeFacts:
    """Return what events are derived from."""
    asked = view.request_summary.asked
    cells = [cell for cell in view.sweep.cells if cell.id in asked]
    return NoticeFacts(
        sweep=view.sweep.name,
        revision=view.number,
        cells={cell.id: view.cells[cell.id] for cell in cells},
        marks={digest: _mark(view, digest) for cell in cells for digest in cell.stage_digests},
        failures=_failures(view, cells),
        holds=view.holds,
        codes=view.codes,
        budget=view.policy.budget,
        quiet_s=_quiet_s(view, cells),
        is_undecided=view.open_decision is not None and view.open_decision.is_passing,
    )


def _mark(view: SweepState, digest: str) -> str:
    """Return what changes when a stage is made or tried again."""
    evidence = view.reader.evidence(digest)
    # The generation of a product, for the number of attempts may still grow: a late one finds it made.
    if evidence.done is not None:
        return f"product {evidence.generation}"
    return str(view.stages[digest].attempts)


def _failures(view: SweepState, cells: Sequence[Cell]) -> list[AlikeFailures]:
    """Return the failed stages, and the cells whose jobs failed, in groups that look alike."""
    groups: dict[str, AlikeFailures] = {}
    seen: set[str] = set()
    for cell in cells:
        status = view.cells[cell.id]
        alike = {instance.digest: failure.digest for instance, failure in view.failures(cell)}
        # No retry is left of these.
        failed = {d: view.stages[d] for d in view.chain(cell) if view.stages[d].state is State.FAILED}
        found = []
        for digest, stage in failed.items():
            where, cause = f"{view.instances[digest].name} of {cell.id}", stage.cause or Cause.UNKNOWN
            if digest not in seen:
                found.append(AlikeFailures(alike.get(digest, "lost"), str(cause), where, stage.reason, 1))
        seen |= failed.keys()
        if status.state is State.FAILED and not failed:
            cause = status.cause or Cause.UNKNOWN
            found.append(AlikeFailures("job", str(cause), cell.id, status.reason, 1))
        for each in found:
            first = groups.get(each.event)
            groups[each.event] = first._replace(number=first.number + 1) if first else each
    return list(groups.values())


def _quiet_s(view: SweepState, cells: Sequence[Cell]) -> float:
    """Return the seconds since the newest record of some cells, by the clocks of their writers.

    Clocks differ by seconds, and no cell depends on this number. `send_due` looks twice at what seems alive.
    """
    times = [request.at for request in view.requests]
    for digest in {digest for cell in cells for digest in view.chain(cell)}:
        evidence = view.reader.evidence(digest)
        times += [evidence.done.at] if evidence.done is not None else []
        times += _times(evidence.attempts)
    return max(0.0, min((provenance.age_s(at) for at in times if at), default=0.0))


def _times(attempts: Iterable[Attempt]) -> list[str]:
    records = [record for each in attempts for record in (each.claim, each.heartbeat, each.end)]
    return [record.at for record in records if record is not None]


# What was sent


class NoticeBook:
    """The records about the notices of a sweep, as they were last read.

    Args:
        ledger: the store.
        sweep: name of the sweep.

    Attributes:
        tries: (event, channel) to its tries, in order.
    """

    def __init__(self, ledger: Ledger, sweep: str) -> None:
        self._ledger, self._sweep = ledger, sweep
        self.tries: dict[tuple[str, str], list[SentTry]] = {}

    @property
    def events(self) -> set[str]:
        """Ids of the events of which a notice was tried."""
        return {event for event, _ in self.tries}

    def read(self) -> None:
        """Read all records, with one listing."""
        prefix = layout.notices(self._sweep)
        paths = [path for path in self._ledger.objects.trees([prefix])[prefix] if path.endswith(".json")]
        records = self._ledger.objects.get_many(f"{prefix}/{path}" for path in paths)
        self.tries = {}
        for path in sorted(paths, key=_place):
            event, _, name = path.rpartition("/")
            parts = name.split(".")
            if len(parts) != 3 or not event or not parts[1].isdigit():  # an outcome, or no record of ours
                continue
            key = f"{prefix}/{path}"
            # A damaged record still shows that somebody may have sent the notice.
            sent = _decoded(records.get(key), NoticeTry) or NoticeTry(
                nonce="", event=event, channel=parts[0], number=int(parts[1]), by="(its record is damaged)"
            )
            outcome = _decoded(records.get(f"{key.removesuffix('.json')}.outcome.json"), NoticeOutcome)
            self.tries.setdefault((event, parts[0]), []).append(SentTry(sent, outcome))

    def next(self, event: str, channel: str, *, is_due: bool = True) -> NextTry:
        """Return whether a notice may be sent; see `next_try`."""
        tries = self.tries.get((event, channel), [])
        ages = {
            sent.number: provenance.age_s(outcome.at if outcome else sent.at) if sent.at else 1e9
            for sent, outcome in tries
        }
        return next_try(tries, ages, is_due=is_due)

    def begin(self, notice: Notice, channel: str, number: int) -> NoticeTry | None:
        """Create the record of a try; return None if another sender was first.

        Raises:
            InfrastructureError: the store did not answer, so nothing may be sent.
        """
        mine = NoticeTry(
            nonce=new_nonce(),
            event=notice.id,
            channel=channel,
            number=number,
            text=provenance.without_secrets(notice.text),
            by=provenance.user(),
            at=provenance.now(),
        )
        key = layout.notice_try(self._sweep, notice.id, channel, number)
        return mine if self._ledger.create(key, mine, mine.nonce) else None

    def end(self, mine: NoticeTry, outcome: NoticeOutcome) -> None:
        """Record what became of a try."""
        key = layout.notice_outcome(self._sweep, mine.event, mine.channel, mine.number)
        self._ledger.objects.put(key, self._ledger.encode(outcome))
        self.tries.setdefault((mine.event, mine.channel), []).append(SentTry(mine, outcome))


def _place(path: str) -> tuple[str, int]:
    """Return by what the paths of records are sorted."""
    parts = path.split(".")
    return parts[0], int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else 0


def _decoded(data: bytes | None, kind: type[Any]) -> Any:
    """Return a record; None if it is absent or unreadable."""
    try:
        return decode(data, kind) if data is not None else None
    except ValueError:  # a DecodeError of msgspec is one
        return None


# Sending


def send_due(view: SweepState, *, limit_s: float, is_last: bool) -> list[str]:
    """Send the notices that are due, each through every channel that is set.

    Args:
        view: the state of the newest revision, as it was read just now.
        limit_s: seconds after which nothing more is sent.
        is_last: whether to stay for a notice that was refused, as far as the limit allows.

    Returns:
        Lines for people, on what was sent and what was not.

    Raises:
        OSError, InfrastructureError: the store did not answer.
    """
    start_s, lines = time.monotonic(), list[str]()
    settings = settings_now(view)
    due = due_now(view, settings)
    if any(notice.kind == "stalled" for notice in due) and not _stands_still(view, limit_s):
        due = [notice for notice in due if notice.kind != "stalled"]
    book = NoticeBook(view.ledger, view.sweep.name)
    book.read() if due else None
    due = within_limit(due, book.events)
    todo = {(notice.id, channel): notice for notice in due for channel in settings.channels}
    while todo and time.monotonic() - start_s < limit_s:
        waits = []
        for (event, channel), notice in list(todo.items()):
            following = book.next(event, channel)
            if following.number and following.wait_s > 0:
                waits.append(following.wait_s)
                continue
            if not following.number or time.monotonic() - start_s >= limit_s:
                del todo[event, channel]
                continue
            line = _send(view, book, notice, channel, following.number, settings.channels[channel])
            if not line:  # another sender was first, or it cannot be sent from here
                del todo[event, channel]
            lines += [line] if line else []
        left_s = limit_s - (time.monotonic() - start_s)
        if not is_last or (waits and min(waits) > left_s):
            break
        time.sleep(min(waits, default=0.0))
    return lines


def _stands_still(view: SweepState, limit_s: float) -> bool:
    """Return whether the heartbeats of running stages stand still on this machine's clock too."""
    beats = _beats(view)
    if not beats:
        return True
    # A running stage has a new heartbeat at each third of the lease.
    pause_s = min(MAX_LOOK_S, 1.0 + view.policy.lease_s / 3)
    if pause_s > limit_s - SPARE_S:
        return False  # another sender has more time
    time.sleep(pause_s)
    return _beats(view.fresh()) == beats


def _beats(view: SweepState) -> dict[str, int]:
    """Return the counters of the newest heartbeats of running stages, by digest."""
    running = (digest for digest, status in view.stages.items() if status.state is State.RUNNING)
    last = {digest: view.reader.evidence(digest).attempts[-1].heartbeat for digest in running}
    return {digest: beat.counter if beat else 0 for digest, beat in last.items()}


def _send(view: SweepState, book: NoticeBook, notice: Notice, channel: str, number: int, value: str) -> str:
    """Send one notice through one channel; return a line on it, "" if it was not sent."""
    if not can_send(channel, value) or (mine := book.begin(notice, channel, number)) is None:
        return ""
    sent = send(channel, value, message_of(view, notice, mine))
    pause_s = pause_after_refusal(number, sent.wait_s) if sent.outcome == "refused" else 0.0
    book.end(
        mine, NoticeOutcome(outcome=sent.outcome, detail=sent.detail, pause_s=pause_s, at=provenance.now())
    )
    return f"notice {notice.id} by {channel}: {sent.outcome}" + (f" ({sent.detail})" if sent.detail else "")


def message_of(view: SweepState, notice: Notice, mine: NoticeTry) -> dict[str, Any]:
    """Return what is sent: ``text`` for people, and fields for programs."""
    facts = {
        key: provenance.without_secrets(value) if isinstance(value, str) else value
        for key, value in notice.facts.items()
    }
    return {
        "text": mine.text,
        "event": notice.kind,
        "id": notice.id,
        **facts,
        "store": view.ledger.objects.url,
        "by": mine.by,
        "at": mine.at,
    }


# What was not delivered


class Undelivered(NamedTuple):
    """A notice that was not delivered through a channel.

    Attributes:
        event: its id.
        channel: of the settings.
        why: for people.
        tries: number of tries so far.
        text: of the notice.
    """

    event: str
    channel: str
    why: str
    tries: int
    text: str


def undelivered(view: SweepState) -> list[Undelivered]:
    """Return the notices that are due or were tried, and not delivered. Nothing is sent.

    Args:
        view: the state of the newest revision; of another one only what was tried is listed.
    """
    settings = settings_now(view)
    if not settings.channels:
        return []
    book = NoticeBook(view.ledger, view.sweep.name)
    book.read()
    launched = next(r.revision for r in reversed(view.requests) if r.settings)
    due = due_now(view, settings) if view.number == launched else []
    is_true = {notice.id for notice in due}
    found = []
    for (event, channel), tries in book.tries.items():
        if why := book.next(event, channel, is_due=event in is_true).why:
            found.append(Undelivered(event, channel, why, len(tries), tries[-1].sent.text))
    is_within = {notice.id for notice in within_limit(due, book.events)}
    for notice in due:
        for channel in settings.channels:
            if (notice.id, channel) not in book.tries:
                why = "no process has sent it yet: a launch or `sweep reconcile` does"
                if notice.id not in is_within:
                    why = "too many kinds of failures: sweep failures lists them"
                found.append(Undelivered(notice.id, channel, why, 0, notice.text))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    """Send what is due, print a line about each notice, and return 0."""
    url, sweep, limit, when = sys.argv[1:] if argv is None else argv
    prepare()
    os.nice(10)  # the cells' processes have priority
    try:
        ledger = open_ledger(url)
        number = current_revision(ledger, sweep)
        if number is not None:
            view = sealed_view(ledger, sweep, number)
            for line in send_due(view, limit_s=float(limit), is_last=when == "last"):
                print(line, flush=True)
    except (SweepError, OSError) as error:  # the next process sends what this one did not
        print(f"notices are left for later: {error_line(error)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
