"""Hunts for faults with many seeds: ``python -m tests.simulation.hunt A..B [--bug NAME] [--out FILE]``.

With a bug, the seeds go on until it is found; without, all are played. With a file, a line of JSON is added
to it: the commit, the seeds, how long it took and what was found.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.simulation.bugs import ROOT, Bug, apply
from tests.simulation.bugs.every import BUGS


def hunt(seeds: range, *, bug: Bug | None = None, kind: str = "") -> dict[str, Any]:
    """What runs of these seeds came to: of a kind, or of all. With a bug, they go on until it is found."""
    from tests.simulation.runs import KINDS, play

    findings, events, played = [], Counter[str](), 0
    play(seeds.start, kind or KINDS[0])  # what is imported and remembered is no part of a run's time
    gc.collect()
    gc.freeze()
    gc.disable()
    start_s, start_cpu_s = time.perf_counter(), time.process_time()
    traces = hashlib.sha256()
    for seed in seeds:
        run = play(seed, kind or KINDS[seed % len(KINDS)])
        played += 1
        events.update(run.events)
        traces.update(run.trace.encode())
        if played % 50 == 0:
            gc.collect()
        if run.problem:
            findings.append({"seed": seed, "problem": run.problem, "trace": run.trace})
            if bug is not None:
                break
    seconds, cpu_s = time.perf_counter() - start_s, time.process_time() - start_cpu_s
    return {
        "seeds": [seeds.start, seeds.start + played],
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_s, 1),
        "a_cpu_second": round(played / cpu_s, 1),
        "trace": traces.hexdigest()[:32],
        "events": dict(sorted(events.items())),
        "findings": findings,
    }


def commit() -> str:
    """The commit that runs, with a ``+`` if it was changed."""

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False
        ).stdout.strip()

    return (git("rev-parse", "HEAD") or "no commit") + (
        "+" if git("status", "--porcelain", "--", "orchestrator") else ""
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Hunts, prints what was found, and returns 1 if there is a finding where no bug was put."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seeds", help="A..B, without B")
    parser.add_argument("--bug", choices=[bug.name for bug in BUGS])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--kind", help="of the runs, see tests/simulation/runs.py; without it, all in turn")
    words = parser.parse_args(argv)
    first, _, last = words.seeds.partition("..")
    bug = next((bug for bug in BUGS if bug.name == words.bug), None)
    if bug is not None:
        apply(bug)
    kind = words.kind or ("" if bug is None else bug.kind)
    found = hunt(range(int(first), int(last)), bug=bug, kind=kind)
    line = json.dumps({"commit": commit(), "bug": words.bug, "kind": kind, **found})
    if words.out is not None:
        with words.out.open("a", encoding="utf-8") as stream:
            stream.write(f"{line}\n")
    print(line)
    return 1 if found["findings"] and not words.bug else 0


if __name__ == "__main__":
    sys.exit(main())
