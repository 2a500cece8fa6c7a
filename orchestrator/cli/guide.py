"""`sweep guide`: what an operator must know, and the schemas of what verbs print with ``--json``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final, NamedTuple

from orchestrator.cli.main import VERBS, verb_of
from orchestrator.compose.files import shipped
from orchestrator.core.state import State
from orchestrator.errors import UserError, nearest

READS: Final = "reads"
RUNS: Final = "runs"
CHANGES: Final = "changes"
WRITES: Final = "writes files"
NOT_DONE: Final = "a cell is not done; of jobs that run on: one failed or is blocked"


class Effect(NamedTuple):
    """What a verb does to the store, and its exit codes beside 0, 2 and 3.

    Attributes:
        kind: whether it reads, runs stages, or changes the store in another way.
        one: what exit code 1 means; "" if it does not occur, except for an interrupted command.
        more: further exit codes; "" without any.
    """

    kind: str
    one: str = ""
    more: str = ""


EFFECTS: Final = {
    "list": Effect(READS),
    "import": Effect(CHANGES),
    "new": Effect(WRITES),
    "plan": Effect(READS),
    "simulate": Effect(READS),
    "prefetch": Effect("fetches models and data"),
    "launch": Effect(RUNS, NOT_DONE),
    "status": Effect(READS),
    "watch": Effect(READS),
    "failures": Effect(READS),
    "why": Effect(READS),
    "show": Effect(READS),
    "diff": Effect(READS),
    "logs": Effect(READS),
    "wait": Effect(READS, "it can no longer be reached", "4: the time ran out"),
    "events": Effect(READS),
    "decisions": Effect(READS, "a decision does not hold"),
    "rerun": Effect(RUNS, NOT_DONE),
    "work": Effect(RUNS, "", "4, 75, 76, 77: see its help"),
    "reconcile": Effect(RUNS, NOT_DONE),
    "discard": Effect(CHANGES),
    "cancel": Effect(CHANGES),
    "collect": Effect(READS),
    "report": Effect(WRITES),
    "serve": Effect(READS),
    "query": Effect(READS),
    "bundle": Effect(WRITES),
    "verify": Effect(READS, "a claim does not hold"),
    "sync": Effect("sends to trackers"),
    "best": Effect(READS),
    "data": Effect(WRITES, "`data check` found problems"),
    "completion": Effect(READS),
    "clean": Effect("deletes with `--yes`"),
    "nodes": Effect("reads; changes with `--clear`"),
    "doctor": Effect(READS, "a check failed"),
    "upgrade": Effect(CHANGES),
    "guide": Effect(READS),
}
"""Verb to its effect."""


def configure_guide(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument(
        "--schema", metavar="VERB", help="print the JSON schema of what VERB prints with --json; or: error"
    )


def run_guide(args: argparse.Namespace) -> int:
    """Print the guide or a schema.

    Raises:
        UserError: there is no such schema.
    """
    if args.schema is None:
        print(guide_text(), end="")
        return 0
    folder = shipped("schema") / "json"
    known = sorted(path.stem for path in folder.glob("*.json"))
    if args.schema not in known:
        raise UserError(f"no schema of {args.schema!r}", allowed=nearest(args.schema, known, limit=40))
    print((folder / f"{args.schema}.json").read_text(encoding="utf-8"), end="")
    return 0


def guide_text() -> str:
    """Return the guide, with the verbs of this version."""
    text = Path(__file__).with_name("guide.md").read_text(encoding="utf-8")
    return text.replace("{states}", ", ".join(f"`{state}`" for state in State)).replace(
        "{verbs}", verbs_table()
    )


def verbs_table() -> str:
    """Return the verbs with their effects and exit codes, as a table in Markdown."""
    lines = ["| verb | | effect | `--json` | 1 means | more codes |", "|---|---|---|---|---|---|"]
    for name, verb in VERBS.items():
        _, parser = verb_of(name)
        has_json = any("--json" in action.option_strings for action in parser._actions)
        effect = EFFECTS.get(name, Effect("see its help"))
        fields = (f"`{name}`", verb.does, effect.kind, "yes" if has_json else "", effect.one, effect.more)
        lines.append(f"| {' | '.join(fields)} |")
    return "\n".join(lines)
