"""The chaos campaign: real sweeps, struck by real faults at random, each judged by the table of a calm run.

Each round launches a sweep in an empty store: on this machine, twice at once, over a bucket, on a real Slurm
or a real Ray. Processes are killed or stopped, nodes and controllers lost, the disk filled, the file system
made to fail, the clock set wrong. The round must end with the very rows of the calm run. Rounds are added to
a file, so that the campaign goes on where it was. The kind of round that is furthest from its number of
faults comes next.

    python benchmarks/chaos_campaign.py --minutes 60
    python benchmarks/chaos_campaign.py --report docs/chaos.md

It needs root, gcc, and Debian's packages of Slurm; kinds of rounds that cannot run here are named.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

sys.path.insert(0, str(Path(__file__).parents[1]))

from chaos.places import Places
from chaos.report import page
from chaos.rounds import KINDS, LIMIT_S, Kind, Result, calm_rows, play

RESULTS = Path(__file__).parent / "chaos/results.jsonl"


def read(path: Path) -> list[Result]:
    """Return the rounds that were played, the oldest first."""
    if not path.exists():
        return []
    return [msgspec.json.decode(line, type=Result) for line in path.read_bytes().splitlines()]


def next_kind(kinds: Sequence[Kind], results: Sequence[Result]) -> Kind | None:
    """Return the kind of round that has had the smallest share of its faults; None if all have theirs."""

    def share(kind: Kind) -> float:
        return sum(len(each.strikes) for each in results if each.kind == kind.name) / kind.num_wanted

    least = min(kinds, key=share)
    return least if share(least) < 1 else None


def campaign(kinds: Sequence[Kind], path: Path, minutes: float, keep: Path | None, seeds: list[int]) -> bool:
    """Play rounds until each kind has its faults, or time is over; return whether all were right.

    Args:
        kinds: of rounds.
        path: file of results.
        minutes: that it may take; no round starts that could take longer.
        keep: folder for the stores and logs of rounds that need an explanation.
        seeds: of the first rounds, which are of the first kind; the others get new ones.
    """
    end_s = time.monotonic() + minutes * 60
    kinds, results, places = list(kinds), read(path), Places()
    calm: dict[tuple[str, ...], Any] = {}
    is_right = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # clusters and servers are ended then too
    try:
        while kinds and time.monotonic() + LIMIT_S / 2 < end_s:
            kind = kinds[0] if seeds else next_kind(kinds, results)
            if kind is None:
                break
            try:
                if kind.sweep not in calm:
                    calm[kind.sweep] = calm_rows(kind, places)
                seed = seeds.pop(0) if seeds else random.randrange(10**9)
                result = play(kind, places, seed, calm[kind.sweep], keep)
            except Exception as error:  # the place cannot be made here, or broke: the other kinds go on
                print(f"{kind.name}: left out: {type(error).__name__}: {error}", flush=True)
                kinds.remove(kind)
                continue
            results.append(result)
            with path.open("ab") as stream:
                stream.write(msgspec.json.encode(result) + b"\n")
            is_right &= result.is_right
            verdict = "right" if result.is_right else f"WRONG: {result.lost=} {result.twice=} {result.stuck=}"
            print(
                f"{kind.name}: {len(result.strikes)} faults, {result.num_commands} commands, "
                f"{result.seconds:.0f} s: {verdict} {seed} {' | '.join([*result.again, *result.tracebacks])}",
                flush=True,
            )
    finally:
        places.close()
    return is_right


def main() -> int:
    """Play the campaign, or write its page."""
    parser = argparse.ArgumentParser(description="A campaign of real faults.")
    parser.add_argument("--minutes", type=float, default=60.0, help="that it may take")
    parser.add_argument("--only", default="", help="kinds of rounds whose name contains this")
    parser.add_argument("--results", type=Path, default=RESULTS, help="the file of results")
    parser.add_argument("--keep", type=Path, help="a folder for rounds that need an explanation")
    parser.add_argument(
        "--seeds", type=int, nargs="*", default=[], help="of the first rounds, of the first kind"
    )
    parser.add_argument("--report", type=Path, help="write the page of figures instead")
    args = parser.parse_args()
    if args.report:
        args.report.write_text(page(read(args.results), KINDS), encoding="utf-8")
        return 0
    kinds = [kind for kind in KINDS if args.only in kind.name]
    if not kinds:
        parser.error(f"--only: none of {', '.join(kind.name for kind in KINDS)}")
    return 0 if campaign(kinds, args.results, args.minutes, args.keep, args.seeds) else 1


if __name__ == "__main__":
    sys.exit(main())
