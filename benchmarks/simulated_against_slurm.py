"""How long sleeping cells take on the Slurm test bed, beside what `sweep simulate` says before.

The cells last as long as those of the study by its plan, on a scale of seconds. 32 jobs run at once, as many
as GPUs are simulated. How long a job takes to start is measured before, by a few short cells. Prints both
times; exits 1 if they differ by more than a tenth.

    python benchmarks/simulated_against_slurm.py [--cells 230] [--seconds 400]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from orchestrator.jobs.submissions import WorkerRecords
from orchestrator.store.ledger import open_ledger

TESTBED = Path(__file__).parents[1] / "slurm/testbed"
NUM_SLOTS, PER_NODE = 32, 8
MEMORY_GIB = 30
"""Of a task: 32 of them run at once."""
SCORE_SHARE = 0.15
"""Share of a cell's time that its second stage takes."""
TOLERANCE = 0.1
NUM_PROBES, PROBE_S = 8, 5.0
"""Cells by which the start of a job is measured, and for how long each of them sleeps."""
SWEEP = """
description: cells that sleep
config: {rest_s: 0.0, place: 0}
axes: {length: AXIS}
stages:
  train: {run: "sleeping:main", reads: [rest_s, place], estimate: "sleeping:estimate"}
  score: {run: "sleeping:score", reads: [rest_s, place], after: [train], estimate: "sleeping:estimate_score"}
"""
STAGES = f"""
import time
from orchestrator.costs import Estimate

def main(config, inputs, context):
    time.sleep({1 - SCORE_SHARE} * config.rest_s)
    return []

def score(config, inputs, context):
    time.sleep({SCORE_SHARE} * config.rest_s)
    return []

def estimate(config, **_):
    return Estimate(wall_hours={1 - SCORE_SHARE} * config.rest_s / 3600, num_gpus=1)

def estimate_score(config, **_):
    return Estimate(wall_hours={SCORE_SHARE} * config.rest_s / 3600, num_gpus=1)
"""


def sweep(*words: str, folder: Path, environment: dict[str, str]) -> Any:
    """Runs a verb of ours; returns its JSON, or its text."""
    command = [sys.executable, "-m", "orchestrator", *words]
    done = subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True, text=True)
    return json.loads(done.stdout) if "--json" in words else done.stdout


def study_hours(folder: Path, environment: dict[str, str]) -> list[float]:
    """Returns how long each cell of the study takes, by its plan."""
    cells = sweep("plan", "multilingual_220", "--json", folder=folder, environment=environment)["cells"]
    return [cell["estimate"]["wall_hours"] for cell in cells]


def write(folder: Path, hours: list[float], seconds: float) -> None:
    """Writes the sweep; all cells together keep all slots at work for so many seconds."""
    scale = seconds * NUM_SLOTS / sum(hours)
    axis = {
        f"c{place}": {"rest_s": round(scale * each, 3), "place": place} for place, each in enumerate(hours)
    }
    (folder / "sleeping.py").write_text(STAGES)
    (folder / "sleep.yaml").write_text(SWEEP.replace("AXIS", json.dumps(axis)))


def job_start_s(folder: Path, environment: dict[str, str]) -> float:
    """Returns how long jobs hold their slot beyond the time for which their cell sleeps."""
    folder.mkdir()
    write(folder, [1.0] * NUM_PROBES, PROBE_S * NUM_PROBES / NUM_SLOTS)
    on_slurm(folder, environment | {"SWEEP_STORE": str(folder / "runs")}, NUM_PROBES, 120)
    time.sleep(3)  # the last worker records its end
    workers = WorkerRecords(open_ledger(str(folder / "runs")), "sleep").read()
    return statistics.median(worker.seconds for worker in workers) - PROBE_S


def on_slurm(
    folder: Path, environment: dict[str, str], num_cells: int, patience_s: float
) -> tuple[float, float]:
    """Runs the cells.

    Returns:
        Seconds from the launch, and from the first claim, to the last cell done.

    Raises:
        SystemExit: not all cells were done in the end.
    """
    words = ("launcher=slurm", "cluster=testbed", f"cluster.memory_gib={MEMORY_GIB}")
    start_s = time.time()
    sweep("launch", "sleep.yaml", *words, folder=folder, environment=environment)
    done = folder / "runs/done/score"
    while sum(1 for _ in done.rglob("*.json")) < num_cells:
        if time.time() - start_s > patience_s:
            status = sweep("status", "sleep", "--json", folder=folder, environment=environment)
            raise SystemExit(f"error: not all cells are done: {status['counts']}")
        time.sleep(0.5)
    end_s = max(path.stat().st_mtime for path in done.rglob("*.json"))
    claims = [path.stat().st_mtime for path in (folder / "runs").rglob("claim.json")]
    return end_s - start_s, end_s - min(claims)


def main() -> int:
    """Simulates, runs and compares."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=230)
    parser.add_argument("--seconds", type=float, default=400, help="for which all slots are at work")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-bench.", dir="/tmp") as name:
        folder, bed = Path(name) / "work", Path(name) / "slurm"
        folder.mkdir()
        environment = {**os.environ, "SWEEP_STORE": str(folder / "runs")}
        hours = (study_hours(folder, environment) * 100)[: args.cells]
        write(folder, hours, args.seconds)
        up = subprocess.run([TESTBED / "up.sh", bed], capture_output=True, text=True, check=False)
        if up.returncode != 0:
            print(f"no Slurm to measure on: {up.stderr.strip()}", file=sys.stderr)
            return 3
        try:
            environment["SLURM_CONF"] = str(bed / "etc/slurm.conf")
            start_s = job_start_s(Path(name) / "probe", environment)
            words = [
                "--gpus",
                str(NUM_SLOTS),
                "--gpus-per-node",
                str(PER_NODE),
                "--job-start",
                f"{start_s:.3f}s",
            ]
            found = sweep("simulate", "sleep.yaml", *words, "--json", folder=folder, environment=environment)
            simulated_s = 3600 * found["makespan"]["hours"]
            whole_s, seconds = on_slurm(folder, environment, len(hours), 2 * simulated_s + 120)
        finally:
            subprocess.run([TESTBED / "down.sh", bed, "--purge"], capture_output=True, check=False)
    ratio = seconds / simulated_s
    print(
        f"{len(hours)} cells on {NUM_SLOTS} slots, {start_s:.1f} s a job to start: simulated"
        f" {simulated_s:.0f} s, on Slurm {seconds:.0f} s from the first claim ({whole_s:.0f} s from launch),"
        f" ratio {ratio:.3f}"
    )
    return int(abs(ratio - 1) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
