"""What failures cost the study at 1, 100 and 1,000 times the rate of Llama 3's training, simulated.

Goodput is the share of the held GPU-hours that ended in products. ETTR is the least time that the study can
take, divided by the time that it took: it also counts GPUs that nothing holds. *Of the GPUs that were there*
leaves out the nodes that were out of use meanwhile: no engine can have these hours.

    python benchmarks/failure_rates.py --seeds 20
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from typing import Any

RATES = ("none", "llama3", "x100", "x1000")


def simulated(rate: str, seed: int, sweep: str, gpus: int) -> dict[str, Any]:
    """Return what `sweep simulate` prints."""
    words = ["simulate", sweep, "--gpus", str(gpus), "--failures", rate, "--seed", str(seed), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator", *words], capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="What failures cost the study.")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--sweep", default="multilingual_220")
    parser.add_argument("--gpus", type=int, default=64)
    args = parser.parse_args()
    print(
        "| rate | faults | cells done | goodput: mean, least | ETTR: mean, least "
        "| ETTR of the GPUs that were there: mean, least | lost GPU-hours by cause |"
    )
    print("|---|---:|---:|---:|---:|---:|---|")
    for rate in RATES:
        runs = [simulated(rate, seed, args.sweep, args.gpus) for seed in range(args.seeds)]
        faults = sum(sum(run["faults"].values()) for run in runs) / len(runs)
        shares = [run["goodput"]["share"] for run in runs]
        ratios = [1 / run["makespan"]["ratio"] for run in runs]
        there = [_of_what_was_there(run) for run in runs]
        done = [run["cells"].get("done", 0) for run in runs]
        lost: Counter[str] = Counter()
        for run in runs:
            lost.update({name: hours / len(runs) for name, hours in run["waste"].items()})
        causes = ", ".join(f"{name} {hours:.1f}" for name, hours in lost.most_common(4) if hours >= 0.05)
        columns = (
            *(rate, f"{faults:.1f}", f"{min(done)} to {max(done)}"),
            *(_pair(shares), _pair(ratios), _pair(there), causes),
        )
        print("| " + " | ".join(columns) + " |", flush=True)


def _of_what_was_there(run: dict[str, Any]) -> float:
    """Return the GPU-hours that the study needs as a share of those in which its nodes were there."""
    makespan = run["makespan"]
    there = makespan["hours"] * makespan["num_gpus"] - run["away_gpu_hours"]
    return float(makespan["lower_bound_hours"] * makespan["num_gpus"] / there)


def _pair(shares: list[float]) -> str:
    return f"{sum(shares) / len(shares):.1%}, {min(shares):.1%}"


if __name__ == "__main__":
    main()
