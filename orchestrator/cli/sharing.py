"""`sweep bundle`, `sweep verify` and `sweep sync`: what others receive of a sweep."""

from __future__ import annotations

import argparse
from pathlib import Path

from orchestrator.api.exporting import sync
from orchestrator.api.state import open_view
from orchestrator.bundles.making import BundleOptions, check_bundle, make_bundle
from orchestrator.bundles.verifying import VerifyOptions, verify_bundle
from orchestrator.cli.output import LongStep, add_store, add_sweep, no_overrides, print_json, to_stderr
from orchestrator.core.settings import split_store
from orchestrator.errors import UserError, counted, printable
from orchestrator.registry import MIRRORS, require
from orchestrator.trackers.mirror import MirrorOutcome

MAX_LINES = 5
"""Most remarks of a kind that are printed; ``--json`` has all."""


def configure_bundle(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.zip", help="a new file")
    parser.add_argument("--weights", action="store_true", help="also all files of products that are left")
    parser.add_argument(
        "--replayable", action="store_true", help="also what policy.audit_segments kept of trainings"
    )
    parser.add_argument("--partial", action="store_true", help="also of a sweep that is not finished")
    parser.add_argument("--sign", type=Path, metavar="KEY.pem", help="sign it with this private key")
    parser.add_argument(
        "--certificate", type=Path, metavar="CHAIN.pem", help="the key's certificate, then its issuers'"
    )
    add_store(parser)


def run_bundle(args: argparse.Namespace) -> int:
    """Write a bundle, and print what is in it."""
    require("report", what="sweep bundle")
    view = open_view(args.sweep, no_overrides(args.words))
    if args.certificate is not None and args.sign is None:
        raise UserError("--certificate without --sign", fix="--sign KEY.pem")
    options = BundleOptions(args.weights, args.replayable, args.partial, args.sign, args.certificate)
    check_bundle(view, args.out, options)
    with LongStep("bundling"):
        made = make_bundle(view, args.out, options)
    if args.json:
        print_json(made)
        return 0
    print(f"{made.file}: {view.title}, {counted(made.num_files, 'file')}, {made.num_bytes / 1e6:,.1f} MB")
    print(f"  {_rows(made.num_rows, made.num_predicted)}, {counted(made.num_claims, 'claim')}")
    if args.replayable:
        print(f"  {counted(made.num_segments, 'segment')} of trainings can be computed again")
    print(f"  root {made.root}")
    _remarks("left out", made.left_out)
    _remarks("no reader can check", made.unchecked)
    return 0


def configure_verify(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    parser.add_argument("file", type=Path, metavar="FILE.zip", help="what `sweep bundle` wrote")
    parser.add_argument("--key", type=Path, metavar="PUBLIC.pem", help="it must be signed by this key")
    parser.add_argument(
        "--certificate", type=Path, metavar="CA.pem", help="one of these must have issued the signer's"
    )
    parser.add_argument(
        "--replay", type=int, default=0, metavar="K", help="compute K segments of trainings again"
    )
    parser.add_argument("--run-code", action="store_true", help="run the code in the file, for --replay")
    parser.add_argument("--json", action="store_true", help="print JSON alone")
    parser.epilog = (
        "exit codes: 0 all holds; 1 it does not: each fault is a line; 2 wrong use. It needs no GPU and no"
        " network, executes nothing of the file unless --run-code, and writes nothing beside it."
    )


def run_verify(args: argparse.Namespace) -> int:
    """Verify a bundle, and print each fault as a line."""
    require("report", what="sweep verify")
    if not args.file.is_file():
        raise UserError(f"no file {args.file}", fix="sweep bundle SWEEP --out FILE.zip makes one")
    if args.run_code and not args.replay:
        raise UserError("--run-code goes with --replay", fix="--replay 1 --run-code")
    if args.key is not None and args.certificate is not None:
        raise UserError("there are both --key and --certificate", allowed="one of them")
    if args.replay < 0 or (args.replay and not args.run_code):
        raise UserError(
            f"--replay {args.replay} runs the code in {args.file}",
            allowed="only what you trust",
            fix=f"--replay {max(1, args.replay)} --run-code",
        )
    if args.key is not None or args.certificate is not None:
        require("sign", what="--key" if args.key is not None else "--certificate")
    with LongStep("verifying"):
        found = verify_bundle(args.file, VerifyOptions(args.key, args.certificate, args.replay))
    if args.json:
        print_json(found)
        return 0 if found.ok else 1
    for fault in found.faults:
        print(printable(f"fault: {fault}"))
    if not found.ok:
        to_stderr(f"{args.file}: {counted(len(found.faults), 'fault')}")
        return 1
    print(
        printable(
            f"{args.file}: {found.sweep}@{found.revision}, {counted(found.num_files, 'file')}: all holds"
        )
    )
    print(f"  {_rows(found.num_rows, found.num_predicted)}, {counted(found.num_claims, 'claim')}")
    print(f"  root {found.root}, signature {found.signature}")
    _remarks("replayed", found.replayed)
    _remarks("not checked", found.unchecked)
    return 0


def _rows(number: int, num_predicted: int) -> str:
    return f"{counted(number, 'row')}, {num_predicted} of them from kept predictions"


def _remarks(title: str, lines: list[str] | tuple[str, ...]) -> None:
    for line in lines[:MAX_LINES]:
        print(printable(f"  {title}: {line}"))
    if len(lines) > MAX_LINES:
        print(f"  {title}: {len(lines) - MAX_LINES} more, with --json")


def configure_sync(parser: argparse.ArgumentParser) -> None:
    """Add the verb's arguments."""
    add_sweep(parser)
    parser.add_argument(
        "--to",
        action="append",
        required=True,
        metavar="MIRROR",
        help=f"{', '.join(MIRRORS)}; repeats",
    )
    parser.add_argument(
        "words",
        nargs="*",
        default=[],
        metavar="KEY=VALUE",
        help="such as tracker.mlflow.experiment=NAME; default: as it was launched",
    )
    parser.epilog = (
        "exit codes: 0 the mirrors have all that the store has; 3 one does not, and the next sync goes on"
    )


def run_sync(args: argparse.Namespace) -> int:
    """Send what is missing, and print how much that was."""
    url, overrides = split_store(args.words)
    view = open_view(args.sweep, url)
    outcomes = sync(view, args.to, overrides)
    if args.json:
        print_json([_as_json(each) for each in outcomes])
    else:
        for each in outcomes:
            print(f"{each.summary}\n  {_amount(each)}")
            if each.problem:
                print(f"  {each.problem}" + (f"; {each.fix}" if each.fix else ""))
    return 3 if any(each.problem or each.num_lost for each in outcomes) else 0


def _amount(outcome: MirrorOutcome) -> str:
    sent = outcome.sent
    if not sent.cells:
        return "nothing was sent" if outcome.problem or outcome.num_lost else "nothing was missing"
    counts = f"{counted(sent.points, 'point')} and {counted(sent.results, 'result')}"
    return f"sent {counts} of {counted(len(sent.cells), 'cell')}"


def _as_json(outcome: MirrorOutcome) -> dict[str, object]:
    return {
        "to": outcome.name,
        "cells": len(outcome.sent.cells),
        "points": outcome.sent.points,
        "results": outcome.sent.results,
        "cells_lost": outcome.num_lost,
        "problem": outcome.problem,
    }
