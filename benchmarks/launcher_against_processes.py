"""Cells a minute of the local launcher against one fresh process a cell running the same stage.

Both run the same cells on the same number of workers in this one run: the peer is what a shell loop
does, a Python process for every cell. Prints one line with the ratio.

    python benchmarks/launcher_against_processes.py [--cells 24] [--workers 2]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
SWEEP = """
description: benchmark
config: {{seed: 0, num_tokens: 16}}
axes: {{seed: "range(0,{cells})"}}
stages:
  forward:
    run: tiny_forward:main
    reads: [seed, num_tokens]
    preload: [torch, transformers.models.qwen3.modeling_qwen3]
"""
FRESH = """
import sys; sys.path.insert(0, {here!r})
from pathlib import Path
from orchestrator.stage import Config, Context, Inputs
from tiny_forward import main
print(main(Config({{"seed": {seed}, "num_tokens": 16}}), Inputs({{}}), Context(Path({folder!r}))))
"""


def by_launcher(folder: Path, cells: int, workers: int) -> tuple[float, dict[int, int]]:
    """Runs the cells as a sweep; returns seconds and the last token of each seed."""
    (folder / "tiny_forward.py").write_text((HERE / "tiny_forward.py").read_text())
    (folder / "bench.yaml").write_text(SWEEP.format(cells=cells))
    command = [sys.executable, "-m", "orchestrator"]
    store = f"store.url={folder / 'runs'}"
    start_s = time.perf_counter()
    subprocess.run(
        [*command, "launch", "bench.yaml", store, f"launcher.workers={workers}"],
        cwd=folder,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    seconds = time.perf_counter() - start_s
    collected = subprocess.run(
        [*command, "collect", "bench.yaml", store, "--format", "json"],
        cwd=folder,
        check=True,
        capture_output=True,
    )
    return seconds, {int(row["seed"]): row["last_token"] for row in json.loads(collected.stdout)}


def by_processes(folder: Path, cells: int, workers: int) -> tuple[float, dict[int, int]]:
    """Runs each cell in a Python process of its own; returns seconds and the last token of each seed."""

    def one(seed: int) -> tuple[int, int]:
        code = FRESH.format(here=str(HERE), seed=seed, folder=str(folder / f"fresh-{seed}"))
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        return seed, int(done.stdout.rpartition(":")[2].strip(" }]\n"))

    start_s = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        tokens = dict(pool.map(one, range(cells)))
    return time.perf_counter() - start_s, tokens


def main() -> int:
    """Runs both sides and prints the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--cells", type=int, default=24)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours_s, ours = by_launcher(Path(folder), args.cells, args.workers)
        theirs_s, theirs = by_processes(Path(folder), args.cells, args.workers)
    if ours != theirs:
        print("error: the two sides computed different results", file=sys.stderr)
        return 1
    rates = [args.cells / seconds * 60 for seconds in (ours_s, theirs_s)]
    print(
        f"{args.cells} cells on {args.workers} workers: local launcher {rates[0]:.0f} cells/min, "
        f"fresh processes {rates[1]:.0f} cells/min, ratio {rates[0] / rates[1]:.1f}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
