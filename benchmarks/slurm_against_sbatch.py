"""From `sweep launch` to the last cell done, beside a bare ``sbatch --array`` of `true`, on the test bed.

Both submit the same number of tasks to the same four nodes in this one run; the cells do nothing. Ours adds
what makes a cell a cell: claims, heartbeats, a snapshot of the code, provenance. Prints a line for each way.

    python benchmarks/slurm_against_sbatch.py [--cells 220]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TESTBED = Path(__file__).parents[1] / "slurm/testbed"
MAX_ARRAY = 101
MEMORY_GIB = 30
"""Of a task: 32 of them run at once."""
PATIENCE_S = 570.0
SWEEP = """
description: cells that do nothing
config: {{seed: 0}}
axes: {{seed: "range(0,{cells})"}}
stages: {{nothing: {{run: "nothing:main", reads: [seed]}}}}
"""


def sweep(*words: str, folder: Path, environment: dict[str, str]) -> str:
    """Runs a verb of ours."""
    command = [sys.executable, "-m", "orchestrator", *words]
    return subprocess.run(
        command, cwd=folder, env=environment, check=True, capture_output=True, text=True
    ).stdout


def by_sweep(
    folder: Path, environment: dict[str, str], cells: int, per_job: int
) -> tuple[float, float, float]:
    """Runs the cells as jobs.

    Returns:
        Seconds until the launch returned, seconds until all cells were done, CPU seconds of the launch.

    Raises:
        SystemExit: not all cells were done in the end.
    """
    folder.mkdir()
    (folder / "nothing.py").write_text("def main(config, inputs, context):\n    return []\n")
    (folder / "bench.yaml").write_text(SWEEP.format(cells=cells))
    words = [
        "launcher=slurm",
        "cluster=testbed",
        f"cluster.memory_gib={MEMORY_GIB}",
        f"launcher.cells_per_job={per_job}",
    ]
    before = os.times()
    start_s = time.perf_counter()
    sweep("launch", "bench.yaml", *words, folder=folder, environment=environment)
    launched_s = time.perf_counter() - start_s
    after = os.times()
    done = folder / "runs/done"
    while sum(1 for _ in done.rglob("*.json")) < cells and time.perf_counter() - start_s < PATIENCE_S:
        time.sleep(0.1)
    seconds = time.perf_counter() - start_s
    status = json.loads(sweep("status", "bench", "--json", folder=folder, environment=environment))
    if status["counts"] != {"done": cells}:
        raise SystemExit(f"error: not all cells are done: {status['counts']}")
    cpu_s = after.children_user + after.children_system - before.children_user - before.children_system
    return launched_s, seconds, cpu_s


def by_sbatch(environment: dict[str, str], cells: int) -> float:
    """Runs as many tasks of `true`; returns seconds until the last has left the queue."""
    start_s = time.perf_counter()
    for first in range(0, cells, MAX_ARRAY):
        array = f"--array=0-{min(MAX_ARRAY, cells - first) - 1}"
        command = ["sbatch", array, f"--mem={MEMORY_GIB}G", "--output=/dev/null", "--wrap=true"]
        subprocess.run(command, env=environment, check=True, capture_output=True)
    waiting = ["squeue", "--noheader", "--states=PENDING,RUNNING,COMPLETING"]
    while subprocess.run(waiting, env=environment, check=True, capture_output=True).stdout.strip():
        time.sleep(0.1)
    return time.perf_counter() - start_s


def main() -> int:
    """Brings up the test bed, runs both and prints the ratios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=220)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="sweep-bench.", dir="/tmp") as name:
        bed = Path(name) / "slurm"
        up = subprocess.run([TESTBED / "up.sh", bed], capture_output=True, text=True, check=False)
        if up.returncode != 0:
            print(f"no Slurm to measure on: {up.stderr.strip()}", file=sys.stderr)
            return 3
        try:
            environment = {**os.environ, "SLURM_CONF": str(bed / "etc/slurm.conf")}
            theirs_s = by_sbatch(environment, args.cells)
            print(f"{args.cells} tasks of `true` by sbatch --array: {theirs_s:.1f} s")
            for per_job in (1, 20):
                folder = Path(name) / f"per-job-{per_job}"
                launched_s, seconds, cpu_s = by_sweep(folder, environment, args.cells, per_job)
                print(
                    f"{args.cells} cells that do nothing, {per_job} a job: launch returned after "
                    f"{launched_s:.1f} s ({cpu_s:.1f} s of CPU), last cell done after {seconds:.1f} s, "
                    f"ratio {seconds / theirs_s:.1f}"
                )
        finally:
            subprocess.run([TESTBED / "down.sh", bed, "--purge"], capture_output=True, check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
