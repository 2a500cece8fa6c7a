"""`sweep wait` and `sweep events`: for scripts, until something is reached, and what happened so far."""

from __future__ import annotations

import argparse
import math
import time

import msgspec

from orchestrator.api.events import Event, History, after
from orchestrator.api.state import open_view, parse_reference
from orchestrator.api.waiting import STALL_S, decision_line, wait_until
from orchestrator.cli.output import add_store, add_sweep, no_overrides, print_json, to_stderr
from orchestrator.core.state import Goal, Outlook
from orchestrator.entry import pause
from orchestrator.errors import UserError, counted, printable

FOLLOW_S = 0.5
"""Shortest pause between two looks of ``--follow``, in seconds."""

TIMED_OUT = 4
"""Exit code of a wait that ran out of time."""

_CODES = {Outlook.REACHED: 0, Outlook.IMPOSSIBLE: 1, Outlook.OPEN: TIMED_OUT}


def configure_wait(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser, only=True)
    parser.add_argument(
        "--until",
        choices=[str(goal) for goal in Goal],
        default=str(Goal.DONE),
        help="done (default): every cell is; failed: one cell has; stalled: cells are left, nothing changes",
    )
    parser.add_argument("--timeout", type=float, metavar="S", help="longest wait, in seconds")
    parser.add_argument(
        "--stall",
        type=float,
        default=STALL_S,
        metavar="S",
        help=f"seconds without any change that count as stalled; default {STALL_S:.0f}",
    )
    add_store(parser)
    parser.epilog = (
        "exit codes: 0 reached; 1 it can no longer be reached by itself; 3 the store does not answer; "
        f"{TIMED_OUT} the time ran out. A blocked cell counts as ended when all others have ended."
    )


def run_wait(args: argparse.Namespace) -> int:
    """Wait, print the states of the cells, and return what the wait found as exit code."""
    for name in ("timeout", "stall"):
        value = getattr(args, name)
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise UserError(f"--{name} is {value}", allowed="seconds, 0 or more")
    view = open_view(args.sweep, no_overrides(args.words))
    cells, goal = view.select(args.only) if args.only else None, Goal(args.until)
    found = wait_until(view, cells, goal, timeout_s=args.timeout, stall_s=args.stall, notify=to_stderr)
    if args.json:
        print_json(
            {
                "sweep": view.sweep.name,
                "revision": view.number,
                "until": goal,
                "result": "timeout" if found.outlook is Outlook.OPEN else found.outlook,
                "counts": found.counts,
                "seconds": round(found.seconds, 1),
                "decision": found.decision,
            }
        )
    else:
        states = ", ".join(f"{number} {state}" for state, number in found.counts.items())
        what = {
            Outlook.REACHED: str(goal),
            Outlook.IMPOSSIBLE: f"never {goal} as it is",
            Outlook.OPEN: f"not {goal} after {found.seconds:.0f} s",
        }[found.outlook]
        print(f"{view.title}: {what}: {counted(sum(found.counts.values()), 'cell')}: {states}")
        if found.decision is not None:
            print(f"  {decision_line(found.decision)}")
    return _CODES[found.outlook]


def configure_events(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument("--follow", action="store_true", help="go on with what happens, until interrupted")
    parser.add_argument(
        "--after", metavar="ID", help="only what follows this event, on whatever machine it was read"
    )
    add_store(parser)
    parser.epilog = (
        "events: request, submission, claim, product, end, void, retired, job_end. --json prints one object "
        "a line; its id is the key of the record. Without @k, all revisions of the sweep count."
    )


def run_events(args: argparse.Namespace) -> int:
    """Print the events of a sweep, oldest first."""
    view = open_view(args.sweep, no_overrides(args.words))
    if not view.sealed:
        raise UserError(f"{view.sweep.name} was never launched here", fix=f"sweep launch {args.sweep}")
    history = History(view.ledger, view.sweep.name, parse_reference(args.sweep).revision)
    if not args.follow:
        for event in after(history.snapshot(), args.after):
            _print(event, as_json=args.json)
        for problem in history.left_out.values():
            to_stderr(f"warning: events of its own stages are left out: {problem}")
        return 0
    if args.after is not None:
        after(history.all(), args.after)  # refused at once, not when it is old enough
    printed: set[str] = set()
    while True:
        look_s = time.monotonic()
        events = history.settled()
        if args.after is not None and not printed:
            # What came before was printed by whoever gave us the id.
            ids = [event.id for event in events]
            printed.update(ids[: ids.index(args.after) + 1] if args.after in ids else ())
        for event in events if printed or args.after is None else ():
            if event.id not in printed:
                printed.add(event.id)
                _print(event, as_json=args.json)
        pause(max(FOLLOW_S, view.ledger.objects.poll_s, 5 * (time.monotonic() - look_s)))


def _print(event: Event, *, as_json: bool) -> None:
    """Print one event as a line, at once: the reader may be another program."""
    if as_json:
        print(msgspec.json.encode(event.as_json()).decode(), flush=True)
        return
    given = {name: value for name, value in event.facts.items() if value not in (None, "", ())}
    facts = " ".join(
        f"{name}={','.join(value) if isinstance(value, tuple) else value}" for name, value in given.items()
    )
    print(printable(f"{event.at or '-':<20}  {event.kind:<10}  {facts}  {event.id}"), flush=True)
