"""What only a GPU can tell: one pass over the training path, a line of JSON a result, then a table.

Sections run in order of value; one that fails, or has too few seconds left, is reported and skipped.
`--small` runs the same code with tiny sizes on a CPU, to find mistakes before a GPU is paid for.

    python benchmarks/gpu_check.py [--small] [--budget-s 480] [--only speed,memory] [--out gpu.md]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gpu_pass import SIZES, Check
from transformers.models.qwen3 import modeling_qwen3

from orchestrator.sft.checkpoints import load_state, save_state, save_weights
from orchestrator.sft.memory import Load, decoder, terms_gib
from orchestrator.stage import Context


def environment(check: Check) -> None:
    """Versions, and what the device does of matrix products, copies and hashing at best."""
    device = torch.cuda.get_device_name() if check.cuda else platform.processor()
    check.record("environment", device=device, python=platform.python_version(), torch=torch.__version__)
    size = 8192 if check.cuda else 512
    left, right = (torch.randn(size, size, device=check.device, dtype=torch.bfloat16) for _ in range(2))
    _ = left @ right
    took_s = check.seconds(lambda: [left @ right for _ in range(10)])
    check.record("matrix product, bf16", tflops=round(2 * size**3 * 10 / took_s / 1e12, 1))
    data = os.urandom(1 << 27)
    took_s = check.seconds(lambda: hashlib.sha256(data).digest())
    check.record("sha256, one thread", gib_per_s=round(0.125 / took_s, 2))


def smoke(check: Check) -> None:
    """The whole path: fork server, CUDA in a forked child, torchrun, generation on the device."""
    words = ["launch", "smoke", "model=tiny-qwen3", "task=math", "mixture=en", "trainer.precision=bf16"]
    with tempfile.TemporaryDirectory() as store:
        started_s = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-m", "orchestrator.cli.main", *words, "--name", "gpu"],
            env={**os.environ, "SWEEP_STORE": store},
            capture_output=True,
            text=True,
            timeout=150,
            check=False,
        )
    check.record(
        "smoke, one cell", exit_code=done.returncode, seconds=round(time.perf_counter() - started_s, 1)
    )


def numerics(check: Check) -> None:
    """Loss and gradient under autocast against float32, and whether they repeat bit for bit."""
    rows = check.rows(16)
    batch, found = rows.batch(list(np.argsort(-rows.lengths))), {}
    for name, bf16 in (("float32", False), ("autocast", True)):
        placed, repeats = check.placed("0.6b", bf16=bf16, layers=4), []
        for _ in range(2):
            placed.model.zero_grad()
            loss = placed.losses(batch) / len(batch.targets)
            loss.backward()  # type: ignore[no-untyped-call]
            repeats.append([value.grad.float().cpu() for value in placed.model.parameters()])
        same = all(torch.equal(first, second) for first, second in zip(*repeats, strict=True))
        found[name] = (float(loss.detach()), repeats[0], same)
        del placed
        check.clean()
    exact, rounded = found["float32"][1], found["autocast"][1]
    error = sum(float(((a - b) ** 2).sum()) for a, b in zip(exact, rounded, strict=True))
    relative = (error / sum(float((a**2).sum()) for a in exact)) ** 0.5
    check.record(
        "numerics, 0.6B with 4 layers",
        loss_float32=round(found["float32"][0], 6),
        loss_autocast=round(found["autocast"][0], 6),
        gradient_error=round(relative, 4),
        repeats_bit_for_bit=found["autocast"][2],
    )


def widths(check: Check) -> None:
    """What each padded width costs the first time: cuDNN builds a plan of attention for each."""
    placed = check.placed("0.6b", layers=4)
    for allowed in (True, False):
        if check.cuda:
            torch.backends.cuda.enable_cudnn_sdp(allowed)
        seen: dict[bool, list[float]] = {True: [], False: []}
        for first in (True, False):
            for width in range(300, 320) if check.cuda else range(20, 24):
                batch = check.rows(16, width=width).batch(range(16))
                start_s = time.perf_counter()
                placed.losses(batch).backward()  # type: ignore[no-untyped-call]
                check.wait()
                seen[first].append(time.perf_counter() - start_s)
        first_ms, again_ms = (round(1e3 * float(np.median(seen[key][1:])), 1) for key in (True, False))
        check.record("new widths", cudnn_attention=allowed, first_ms=first_ms, again_ms=again_ms)


@contextlib.contextmanager
def fused_norm() -> Iterator[None]:
    """Let Qwen3 normalise by torch's one kernel instead of transformers' five to seven passes."""
    before = modeling_qwen3.Qwen3RMSNorm.forward

    def forward(self: Any, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.variance_epsilon)

    modeling_qwen3.Qwen3RMSNorm.forward = forward
    try:
        yield
    finally:
        modeling_qwen3.Qwen3RMSNorm.forward = before


def speed(check: Check) -> None:
    """A step of 512 rows of the 1.7B: as it is, fused norm, compiled layers, without recomputing."""
    rows = check.rows(512)
    placed = check.placed("1.7b")
    check.step("1.7B as it is", placed, rows, 64)
    check.step("1.7B as it is", placed, rows, 16)
    with fused_norm():
        check.step("1.7B, F.rms_norm", placed, rows, 16)
    if check.left_s > 200:
        for layer in placed.model.model.layers:
            layer.compile(dynamic=True)
        start_s = time.perf_counter()
        check.step("1.7B, compiled layers", placed, rows, 16)
        check.record("compile, with its steps", seconds=round(time.perf_counter() - start_s, 1))
    del placed
    check.clean()
    check.step("1.7B without recomputing", check.placed("1.7b", recompute=False), rows, 8)


def memory(check: Check) -> None:
    """The peak of a step of long rows, against the plan's formula."""
    placed, width = check.placed("1.7b"), 2048 if check.cuda else 64
    num, hidden, mlp, heads, kv_heads, vocabulary, tied = SIZES["tiny" if check.small else "1.7b"]
    shape = {
        "num_layers": num,
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_heads": heads,
        "num_kv_heads": kv_heads,
        "head_dim": 128,
        "vocab_size": vocabulary,
        "tied": tied,
    }
    for size in (8, 32, 64) if check.cuda else (2,):
        training = check.training(placed, check.rows(size, width=width), size)
        check.clean()
        for step in (1, 2):
            training._step(step, np.arange(size))
        check.wait()
        load = Load(row_tokens=width, loss_chunk_tokens=1024)
        terms = terms_gib(decoder(shape, "qwen3"), load, num_gpus=1, micro_batch=size, memory_gib=79.1)
        formula = round(sum(terms.values()) - terms["reserve"], 1)
        check.record("1.7B, memory", rows=size, width=width, peak_gib=check.peak_gib(), formula_gib=formula)
        del training


def eight_billion(check: Check) -> None:
    """The 8B's width with 6 of its 36 layers: time and memory a layer."""
    rows, placed = check.rows(128), check.placed("8b", layers=6)
    check.step("8B's width, 6 layers", placed, rows, 16)
    with fused_norm():
        check.step("8B's width, 6 layers, F.rms_norm", placed, rows, 16)


def checkpoints(check: Check) -> None:
    """Seconds to save, seal, load and export the training state of the 1.7B."""
    placed, rows = check.placed("1.7b"), check.rows(16)
    training = check.training(placed, rows, 16)
    training._step(1, np.arange(16))
    context, took_s = Context(Path(tempfile.mkdtemp())), {}
    start_s = time.perf_counter()
    with context.checkpoint(1) as folder:
        took_s["save_s"] = check.seconds(lambda: save_state(placed, training._optimizer, folder))
        start_s = time.perf_counter()
    took_s["seal_s"] = time.perf_counter() - start_s
    saved = context.folder / "checkpoints" / "00000001"
    size_gb = sum(path.stat().st_size for path in saved.rglob("*") if path.is_file()) / 1e9
    before = [value.detach().clone() for value in placed.parameters[:3]]
    training._step(2, np.arange(16))
    took_s["load_s"] = check.seconds(lambda: load_state(placed, training._optimizer, saved))
    same = all(torch.equal(a, b) for a, b in zip(before, placed.parameters[:3], strict=False))
    weights = context.output / "weights"
    took_s["export_s"] = check.seconds(lambda: save_weights(placed, weights, dtype=torch.bfloat16))
    rounded = {name: round(value, 1) for name, value in took_s.items()}
    check.record("1.7B, checkpoint", gb=round(size_gb, 1), restored=same, **rounded)
    shutil.rmtree(context.folder, ignore_errors=True)


SECTIONS: Sequence[tuple[Callable[[Check], None], float]] = (
    (environment, 10),
    (smoke, 60),
    (numerics, 30),
    (speed, 150),
    (memory, 40),
    (widths, 40),
    (eight_billion, 20),
    (checkpoints, 90),
)
"""The sections, and the seconds that each needs on a GPU."""


def table(results: Sequence[dict[str, Any]]) -> str:
    """Return the results as a table in Markdown."""
    lines = ["| what | result |", "|---|---|"]
    for result in results:
        facts = ", ".join(f"{key} {value}" for key, value in result.items() if key != "what")
        lines.append(f"| {result['what']} | {facts} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the sections, print their results, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--small", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--budget-s", type=float, default=480, help="seconds for the whole pass")
    parser.add_argument("--only", default="", help="sections, with commas between them")
    parser.add_argument("--out", type=Path, help="also write the table here")
    args = parser.parse_args()
    check, failed = Check(small=args.small, budget_s=args.budget_s), 0
    if not check.cuda and not args.small:
        print("error: no CUDA device is visible\n  --small runs the same code on the CPU", file=sys.stderr)
        return 2
    for section, needs_s in SECTIONS:
        if args.only and section.__name__ not in args.only.split(","):
            continue
        if not args.small and check.left_s < needs_s:
            check.record("skipped", section=section.__name__, left_s=round(check.left_s))
            continue
        try:
            section(check)
        except Exception as error:  # the others are still worth their seconds
            failed += 1
            check.record("FAILED", section=section.__name__, error=f"{type(error).__name__}: {error}"[:400])
        check.clean()
    print(table(check.results))
    if args.out is not None:
        args.out.write_text(table(check.results), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
