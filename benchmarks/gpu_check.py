"""What only a GPU can tell: one pass over the product on a device, a line of JSON a result, then a table.

Sections run in order of value. One that fails, or for which the budget has too few seconds left, is reported,
and the others run. The last column of the table is what the product's own cost model predicts.
`--small` runs the same code with tiny sizes on a CPU, to find mistakes before a GPU is paid for.

    python benchmarks/gpu_check.py [--small] [--budget-s 480] [--only speed,memory] [--out FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from gpu import device, generation, peers, saving, training
from gpu.one_pass import Pass, table

SECTIONS: Sequence[tuple[Callable[[Pass], None], float]] = (
    (device.environment, 5),
    (device.smoke, 40),
    (training.numerics, 15),
    (device.kernels, 15),
    (training.speed, 60),  # more for ways that compile: they look at what is left
    (training.eight_billion, 15),
    (training.memory, 25),
    (peers.trl, 90),
    (saving.checkpoints, 40),
    (device.processes, 45),
    (generation.generation, 50),
    (device.widths, 15),
    (training.selective, 120),
    (training.deterministic, 60),
    (generation.vllm, 90),
)
"""The sections, and the seconds that each needs on a GPU."""


def run(one: Pass, section: Callable[[Pass], None], needs_s: float) -> bool:
    """Run one section within the budget; return whether it failed."""
    name = section.__name__
    if one.left_s < needs_s and not one.small:
        one.record("skipped", section=name, needs_s=needs_s, left_s=round(one.left_s))
        return False
    try:
        # A section that hangs must not cost the others their seconds.
        with one.limited(600.0 if one.small else max(min(one.left_s, 4 * needs_s), 1.0)):
            section(one)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        one.record("FAILED", section=name, error=reason)
        return True
    finally:
        one.clean()
    return False


def main() -> int:
    """Run the sections, print their results, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for the whole pass")
    names = [section.__name__ for section, _ in SECTIONS]
    parser.add_argument("--only", default="", help=f"sections, with commas between them: {', '.join(names)}")
    parser.add_argument("--out", type=Path, help="folder for gpu.jsonl and gpu.md; default: $OUT, if set")
    args = parser.parse_args()
    only = [name for name in args.only.split(",") if name]
    if unknown := [name for name in only if name not in names]:
        print(f"error: no section {', '.join(unknown)}\n  there are: {', '.join(names)}", file=sys.stderr)
        return 2
    if not args.small and not torch.cuda.is_available():
        print("error: no CUDA device is visible\n  --small runs the same code on the CPU", file=sys.stderr)
        return 2
    out = args.out or (Path(os.environ["OUT"]) if "OUT" in os.environ else None)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    if args.small:
        torch.set_num_threads(1)  # threads of tiny models wait for each other more than they compute
    one = Pass(small=args.small, budget_s=args.budget_s, out=out)
    failed = [
        run(one, section, needs_s) for section, needs_s in SECTIONS if not only or section.__name__ in only
    ]
    print(table(one.results))
    return int(any(failed))


if __name__ == "__main__":
    sys.exit(main())
