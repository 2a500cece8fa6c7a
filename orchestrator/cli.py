"""The command `sweep`: finds the verb, turns errors into exit codes. Each verb is one file in `commands/`.

Exit codes: 0 asked and answered; 1 cells failed; 2 the user's mistake; 3 infrastructure.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

from orchestrator.errors import SweepError, UserError, nearest

VERBS = {
    "list": "the sweeps that exist, with their number of cells",
    "plan": "cells, stages, what would run and why; touches nothing",
    "prefetch": "fetch the models and data that its cells need",
    "launch": "run everything that is not done",
    "status": "where each cell stands, also while it runs",
    "why": "the evidence behind a cell's state",
    "show": "a cell's resolved config, digests and files",
    "diff": "which field made it another cell or stage",
    "logs": "the log of a stage",
    "rerun": "run the failed cells again",
    "reconcile": "settle jobs that ended, and submit what no job holds",
    "discard": "void products after a bug fix",
    "cancel": "stop cells and keep them from being claimed",
    "collect": "the result rows as one table",
    "report": "tables, figures and a page from the rows that there are",
    "best": "the cells with the lowest or highest value of a metric",
    "data": "describe, import and check parallel task data",
    "doctor": "check this machine and the store",
    "upgrade": "let a store of an earlier format hold what this version records",
}

HELP = """usage: sweep VERB ...

{verbs}

SWEEP is a name or a path to a YAML file, with @k for an older revision.
`sweep help VERB` tells more. The store is ./runs, or SWEEP_STORE, or store.url=FOLDER.
"""


class Parser(argparse.ArgumentParser):
    """Says a wrong call the way all errors are said."""

    def error(self, message: str) -> NoReturn:
        """Raises instead of exiting."""
        raise UserError(message, fix=f"{self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except SweepError as error:
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except OSError as error:
        where = f"\n  {error.filename}" if error.filename else ""
        print(f"error: {error.strerror or error}{where}", file=sys.stderr)
        return 3
    except Exception as error:  # noqa: BLE001 - a bug of ours: said as one, never taken for failed cells
        traceback.print_exc()
        print(f"error: Polysweep itself failed: {type(error).__name__}: {error}", file=sys.stderr)
        return 3


def _run(words: list[str]) -> int:
    if words[:1] == ["help"] and words[1:]:
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS))
        lines = (f"  {verb:<{width}}  {does}" for verb, does in VERBS.items())
        print(HELP.format(verbs="\n".join(lines)), end="")
        return 0
    if words[0] == "--version":
        from orchestrator import __version__

        print(f"polysweep {__version__}")
        return 0
    module, parser = verb_of(words[0])
    code: int = module.run(parser.parse_intermixed_args(words[1:]))
    return code


def verb_of(verb: str) -> tuple[Any, argparse.ArgumentParser]:
    """Return the module of a verb, and its parser.

    Raises:
        UserError: there is no such verb.
    """
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}", allowed=nearest(verb, VERBS, limit=30), fix="sweep --help")
    module = importlib.import_module(f"orchestrator.commands.{verb}")
    parser = Parser(prog=f"sweep {verb}", description=VERBS[verb], allow_abbrev=False)
    module.configure(parser)
    return module, parser


if __name__ == "__main__":
    sys.exit(main())
