"""500 cells that do nothing by `launcher=ray`, beside 500 trivial trials of Ray Tune and 500 bare Ray tasks.

All three are jobs of one real Ray cluster (a head and nodes on loopback), in this one run. Wall time is from
the submission to the last result; driver CPU is that of the driver alone, imports included. A cell of ours
is more than a trial: a claim, a heartbeat and a product with provenance, each durable before it counts.

    python benchmarks/ray_against_tune.py [--cells 500]
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.ray.testbed import RayCluster, environment  # noqa: E402

NODES: tuple[dict[str, float], ...] = ({"CPU": 4}, {"CPU": 4})
PATIENCE_S = 1800.0
SWEEP = """
description: cells that do nothing
config: {{seed: 0}}
axes: {{seed: "range(0,{cells})"}}
stages: {{nothing: {{run: "nothing:main", reads: [seed]}}}}
"""
TUNE = """
import sys
from ray import tune

seeds = tune.grid_search(list(range({cells})))
trial = lambda config: {{"value": config["seed"]}}
tune.run(trial, config={{"seed": seeds}}, verbose=0, storage_path=sys.argv[1])
"""
TASKS = """
import ray

ray.init()
print(len(ray.get([ray.remote(lambda: None).remote() for _ in range({cells})])))
"""
TICKS = os.sysconf("SC_CLK_TCK")


class Taken(NamedTuple):
    """Wall seconds from the submission on, and CPU seconds of the driver's process."""

    wall_s: float
    driver_cpu_s: float


def cpu_s(pid: int) -> float | None:
    """Returns the CPU seconds that a process has used so far, None when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS


def drivers(words: str) -> list[int]:
    """Returns the Python processes that run a driver, by a word of their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            told = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"python" in told[0] and words.encode() in told:
            found.append(int(path.parent.name))
    return found


def watched(word: str, is_over: Callable[[], bool]) -> float:
    """Waits for an end; returns the CPU seconds that the processes with a word in their command line took.

    Raises:
        SystemExit: it takes too long.
    """
    used: dict[int, float] = {}
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_over():
        used |= {pid: taken for pid in drivers(word) if (taken := cpu_s(pid)) is not None}
        if time.monotonic() > deadline_s:
            raise SystemExit("it takes too long")
        time.sleep(0.05)
    return sum(used.values())


def by_job(cluster: RayCluster, env: dict[str, str], script: Path, *words: str) -> Taken:
    """Runs a script as a job, as its users do, until it ends.

    Raises:
        SystemExit: it fails.
    """
    command = [str(Path(sys.executable).parent / "ray"), "job", "submit", "--address", cluster.address]
    start_s = time.monotonic()
    job = subprocess.Popen(
        [*command, "--", "python", str(script), *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    used = watched(str(script), lambda: job.poll() is not None)
    if job.returncode:
        raise SystemExit(job.communicate()[0].decode()[-2000:])
    return Taken(time.monotonic() - start_s, used)


def by_sweep(cluster: RayCluster, env: dict[str, str], folder: Path, cells: int) -> Taken:
    """Runs the cells.

    Raises:
        SystemExit: not all of them are done in the end.
    """
    folder.mkdir()
    (folder / "nothing.py").write_text("def main(config, inputs, context):\n    return []\n")
    (folder / "bench.yaml").write_text(SWEEP.format(cells=cells))
    env = {**env, "PYTHONPATH": str(ROOT), "SWEEP_STORE": str(folder / "store")}
    words = ["launcher=ray", f"launcher.address={cluster.address}"]
    command = [sys.executable, "-m", "orchestrator"]
    start_s = time.monotonic()
    subprocess.run(
        [*command, "launch", "bench.yaml", *words], cwd=folder, env=env, check=True, capture_output=True
    )
    done = folder / "store/done/nothing"
    used = watched("orchestrator.launchers.ray.driver", lambda: len(list(done.glob("*.json"))) >= cells)
    wall_s = time.monotonic() - start_s
    said = subprocess.run(
        [*command, "status", "bench", "--json"], cwd=folder, env=env, check=True, capture_output=True
    ).stdout
    if json.loads(said)["counts"] != {"done": cells}:
        raise SystemExit(f"not all cells are done: {json.loads(said)['counts']}")
    return Taken(wall_s, used)


def main() -> None:
    """Runs all three and prints what they took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cells", type=int, default=500)
    cells = parser.parse_args().cells
    folder = Path(tempfile.mkdtemp(prefix="sweep-ray.", dir="/tmp"))
    cluster = RayCluster(folder / "c", NODES)
    try:
        cluster.up()
        env = environment(cluster.folder)
        (folder / "tasks.py").write_text(TASKS.format(cells=cells))
        (folder / "tune.py").write_text(TUNE.format(cells=cells))
        tasks = by_job(cluster, env, folder / "tasks.py")
        ours = by_sweep(cluster, env, folder / "ours", cells)
        tune = by_job(cluster, env, folder / "tune.py", str(folder / "results"))
    finally:
        cluster.down()
        shutil.rmtree(folder, ignore_errors=True)
    for name, taken in (("bare tasks", tasks), ("sweep", ours), ("Ray Tune", tune)):
        print(f"{name:10}  {taken.wall_s:6.1f} s  driver CPU {taken.driver_cpu_s:5.1f} s")
    print(
        f"{cells} cells: Ray Tune takes {tune.wall_s / ours.wall_s:.1f} times the wall time"
        f" and {tune.driver_cpu_s / max(ours.driver_cpu_s, 0.01):.1f} times the driver CPU of sweep"
    )


if __name__ == "__main__":
    main()
