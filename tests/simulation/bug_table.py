"""Writes docs/simulation-bugs.md, the seeds that find mistakes: ``python -m tests.simulation.bug_table``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from tests.simulation.bugs import ROOT, Bug
from tests.simulation.bugs.every import BUGS

FILE = ROOT / "docs" / "simulation-bugs.md"
MOST = 10_000

HEAD = """# Seeded mistakes

Each of these {number} mistakes is put into the source alone, and [the simulation](simulation.md) plays
seeds from 0 on until a run breaks a rule. {num_peers} of them are ones that peers of this project have or
had. `seeds` is how many runs that took. Rules are those of [the design](design.md). Written by
`python -m tests.simulation.bug_table`; `make test-long` repeats each finding.

| mistake | rule | what it is | seeds | found as |
|---|---|---|---:|---|
"""


def seeds_of() -> dict[str, int]:
    """The seed that finds each mistake, as the table has it."""
    rows = re.findall(r"^\| (\S+)(?: \(peer\))? \| .* \| (\d+) \| ", FILE.read_text(encoding="utf-8"), re.M)
    return {name: int(number) - 1 for name, number in rows}


def find(bug: Bug) -> dict[str, object]:
    """The first finding of a mistake."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.simulation.hunt", f"0..{MOST}", "--bug", bug.name],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{bug.name}: {done.stderr}")
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


def row(bug: Bug) -> str:
    """A line of the table."""
    found = find(bug)
    findings = found["findings"]
    assert isinstance(findings, list)
    if not findings:
        raise SystemExit(f"{bug.name}: not found in {MOST} seeds")
    said = re.sub(r"[0-9a-f]{64}", "*", findings[0]["problem"]).replace("|", "/")[:120]
    peer = " (peer)" if bug.peer else ""
    print(bug.name, findings[0]["seed"], found["cpu_seconds"], said, flush=True)
    return f"| {bug.name}{peer} | {bug.rule} | {bug.what} | {findings[0]['seed'] + 1} | {said} |\n"


def main() -> int:
    """Hunt for all, and write the table."""
    with ThreadPoolExecutor(2) as pool:
        rows = list(pool.map(row, BUGS))
    peers = sum(bug.peer for bug in BUGS)
    FILE.write_text(HEAD.format(number=len(BUGS), num_peers=peers) + "".join(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
