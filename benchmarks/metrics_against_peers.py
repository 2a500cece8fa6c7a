"""Cost of `context.log`, and its points a second against `mlflow.log_metric` and `wandb.log`, both to files.

A point is one value of one step. Each measurement is a process of its own, the kinds in turn. It counts from
the first point until all are in the file, without imports and without the start of a run. Prints medians.

    python benchmarks/metrics_against_peers.py [--rounds 5]
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
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

VALUES = ("loss", "grad_norm", "learning_rate")
STEPS = {"ours": 50_000, "mlflow": 300, "wandb": 5_000}
STEP_S = 0.010
"""A step of which the cost is a share, in seconds."""


_OPEN: list[Connection] = []


def clocks() -> tuple[float, float]:
    """Return the time, and the processor time of this process with all its threads, in seconds."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    """Return how much of both has passed."""
    wall_s, cpu_s = clocks()
    return wall_s - start[0], cpu_s - start[1]


def ours(folder: Path, num_steps: int) -> tuple[float, float]:
    """Log as a stage does: to the store's tracker, with progress to the worker."""
    from orchestrator.execution.child import Lifeline
    from orchestrator.stage import Context, StopSignal
    from orchestrator.trackers.base import StoreTracker, Tracked

    tracker = StoreTracker(Tracked(folder, "sweep", "cell", "train", 1, {}, {}))
    theirs, pipe = Pipe()
    _OPEN.append(theirs)  # a lifeline whose other end closes ends this process
    lifeline = Lifeline(pipe, StopSignal())
    context = Context(
        folder,
        trackers=[tracker],
        report_progress=lambda step, num_steps: lifeline.report(step=step, num_steps=num_steps),
    )
    start = clocks()
    for step in range(1, num_steps + 1):
        context.log(step, num_steps=num_steps, loss=1.0 / step, grad_norm=0.5 * step, learning_rate=1e-4)
    context.close()
    spent = since(start)
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == num_steps
    return spent


def mlflow(folder: Path, num_steps: int) -> tuple[float, float]:
    """Log each value by MLflow's usual call."""
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"
    import mlflow as library

    library.set_tracking_uri(f"file://{folder}")
    library.set_experiment("bench")
    start = clocks()
    with library.start_run():
        for step in range(1, num_steps + 1):
            for name in VALUES:
                library.log_metric(name, 1.0 / step, step=step)
    return since(start)


def wandb(folder: Path, num_steps: int) -> tuple[float, float]:
    """Log each step by W&B's usual call."""
    import wandb as library

    run = library.init(
        project="p",
        dir=str(folder),
        mode="offline",
        settings=library.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
    )
    start = clocks()
    for step in range(1, num_steps + 1):
        run.log(dict.fromkeys(VALUES, 1.0 / step))
    run.finish()
    return since(start)


def measured(kind: str, num_steps: int) -> dict[str, float]:
    """Return what a process of its own measured: seconds in all, and CPU seconds a step."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--one", kind, "--folder", folder, "--steps", str(num_steps)]
        done = subprocess.run(command, check=True, capture_output=True, text=True, start_new_session=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Measure in turn, and print the medians."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", choices=list(STEPS), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        does = {"ours": ours, "mlflow": mlflow, "wandb": wandb}[args.one]
        for name in ("warm", "run"):
            (args.folder / name).mkdir()
        does(args.folder / "warm", 1)  # imports are not counted
        wall_s, cpu_s = does(args.folder / "run", args.steps)
        print(json.dumps({"seconds": wall_s, "cpu_s": cpu_s / args.steps}), flush=True)
        os._exit(0)
    rounds = [{kind: measured(kind, steps) for kind, steps in STEPS.items()} for _ in range(args.rounds)]
    rate = {
        kind: statistics.median(len(VALUES) * steps / each[kind]["seconds"] for each in rounds)
        for kind, steps in STEPS.items()
    }
    wall_us = 1e6 * statistics.median(each["ours"]["seconds"] / STEPS["ours"] for each in rounds)
    cpu_us = 1e6 * statistics.median(each["ours"]["cpu_s"] for each in rounds)
    result = {
        "call_us": round(wall_us, 1),
        "cpu_us": round(cpu_us, 1),
        "share_of_10_ms": round(cpu_us / 1e6 / STEP_S, 5),
        "points_per_s": {kind: round(value) for kind, value in rate.items()},
        "times_mlflow": round(rate["ours"] / rate["mlflow"], 1),
        "times_wandb": round(rate["ours"] / rate["wandb"], 1),
    }
    print(json.dumps(result) if args.json else "\n".join(f"{key}: {value}" for key, value in result.items()))


if __name__ == "__main__":
    main()
