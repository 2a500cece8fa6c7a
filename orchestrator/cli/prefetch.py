"""`sweep prefetch`: fetch, once and on a machine with a network, what the cells of a sweep need."""

from __future__ import annotations

import argparse

from orchestrator.api.estimates import call, distinct, missing_of, needs_of, told
from orchestrator.api.launching import engine_of, planned
from orchestrator.api.state import split_store
from orchestrator.cli.arguments import add_composing, again
from orchestrator.cli.output import ComposeProgress
from orchestrator.compose.declarations import importable
from orchestrator.errors import InfrastructureError, SweepError, UserError
from orchestrator.registry import load
from orchestrator.text import counted


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_composing(parser)


def run(args: argparse.Namespace) -> int:
    """Fetch each missing need once. A failed fetch does not stop the others.

    Raises:
        InfrastructureError: a need is still missing in the end.
    """
    view, composition = planned(args.sweep, args.overrides, args.name, progress=ComposeProgress())
    cells = view.select(args.only)
    import_paths = engine_of(view, composition, split_store(args.overrides)[1])[1]
    needs = needs_of(view, cells, import_paths)
    missing = distinct(missing_of(needs))
    print(f"{view.title}: {counted(len(distinct(needs)), 'need')}, {len(missing)} missing")
    problems: list[str] = []
    fixes: list[str] = []
    with importable(import_paths):
        for number, need in enumerate(missing, start=1):
            print(f"[{number}/{len(missing)}] {told(need)}", flush=True)
            try:
                if not need.fetch:
                    raise UserError(f"{need.what}: {need.advice or 'nothing can fetch it'}")
                call(need.fetch, load(need.fetch, where=need.what), **need.arguments)
                print("  there")
            except SweepError as error:
                problems.append("\n  ".join(filter(None, (error.what, error.where, error.allowed))))
                fixes.append(error.fix)
                print("  failed")
    # Check again: a fetch without an error may still leave a need unmet.
    left = missing_of(needs_of(view, cells, import_paths))
    if problems or left:
        left_names = [told(need) for need in distinct(left)]
        raise InfrastructureError(
            f"{counted(len(left_names), 'need')} of {view.sweep.name} could not be fetched",
            where="\n  ".join(problems or left_names),
            fix="; ".join(filter(None, dict.fromkeys(fixes))),
        )
    print(f"{counted(len(cells), 'cell')} can run here: {again('launch', args)}")
    return 0
