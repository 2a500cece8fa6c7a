"""The verbs of the command, each with a one-line description, and the parser of a verb.

The module of a verb is imported on demand, so that `sweep --help` stays fast.
"""

from __future__ import annotations

import argparse
import importlib
from typing import Any, Final, NoReturn

from orchestrator.errors import UserError, nearest

VERBS: Final = {
    "list": "the sweeps that exist, with their number of cells",
    "plan": "what would run, why, and at what cost; changes nothing",
    "prefetch": "fetch the models and data that its cells need",
    "launch": "run everything that is not done",
    "status": "where each cell stands, also while it runs",
    "failures": "what failed, failures that look alike as one",
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
    "completion": "a script for the shell: completes verbs, options and names of sweeps",
    "clean": "list what no current revision names; --yes deletes it",
    "doctor": "check this machine and the store",
    "upgrade": "let a store of an earlier format hold what this version records",
}


class Parser(argparse.ArgumentParser):
    """A parser that reports a usage error as a `UserError`, in the form of all other errors."""

    def error(self, message: str) -> NoReturn:
        """Raise a `UserError` instead of exiting.

        Args:
            message: what argparse found wrong.

        Raises:
            UserError: always.
        """
        raise UserError(message, fix=f"{self.prog} --help")


def verb_of(verb: str) -> tuple[Any, argparse.ArgumentParser]:
    """Import the module of a verb, and return it with its parser.

    Raises:
        UserError: there is no such verb.
    """
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}", allowed=nearest(verb, VERBS, limit=30), fix="sweep --help")
    module = importlib.import_module(f"orchestrator.cli.{verb}")
    # Without abbreviations, an option added later cannot make a user's shortened option ambiguous.
    parser = Parser(prog=f"sweep {verb}", description=VERBS[verb], allow_abbrev=False)
    module.configure(parser)
    if verb not in ("data", "completion"):
        parser.add_argument(
            "--store", metavar="URL", help="a folder, s3://... or gs://...; short for store.url=URL"
        )
    return module, parser
