"""The stores that simulated runs leave are as recorded, see ../recording.py: a few runs of each kind.

A change to the steps of a worker, a launch or a pass over jobs gives another run of the same seed. What to
look at then is whether each history still makes sense.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.recording import compare_text
from tests.seen import moment, played, shown

RECORDED = Path(__file__).parent / "recorded"
RUNS = {
    "workers": ((11, 4.0), (9, 1e9)),
    "requests": ((17, 3.0), (15, 1e9)),
    "jobs": ((25, 60.0), (37, 1e9)),
    "ray": ((39, 6.0), (21, 1e9)),
    "jobs+requests": ((39, 5.0), (31, 1e9)),
    "ray+requests": ((9, 4.0), (35, 1e9)),
}
"""Kind of run to seeds, each with the second at which its store is looked at."""


@pytest.mark.parametrize("kind", RUNS)
def test_what_is_left_of_simulated_runs_is_as_recorded(kind: str, tmp_path: Path) -> None:
    found = ""
    for seed, until_s in RUNS[kind]:
        root = tmp_path / str(seed)
        at_s = played(root, seed, kind, until_s=until_s)
        with moment(at_s + 30):
            lines = [line.partition("  sweeps/")[0].partition("  records/")[0] for line in
                     shown(root, "events", "simulated").splitlines()]  # fmt: skip
            found += "\n".join(lines) + "\n"
            found += shown(root, "status", "simulated", "--spent") + shown(root, "status", "simulated")
            found += shown(root, "why", "simulated", "seed0")
    words = {r"tests\.simulation\.\w+:\w+": "SIMULATED", r"\b[0-9a-f]{64}\b": "DIGEST"}
    compare_text(RECORDED / f"{kind}.txt", re.sub(r" +\n", "\n", found), words)
