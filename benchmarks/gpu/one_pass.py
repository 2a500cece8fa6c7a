"""One pass over a device: its budget of seconds, what it measured, and what the cost model predicts."""

from __future__ import annotations

import contextlib
import gc
import json
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from orchestrator.costs import DEVICES, Device

ROOT = Path(__file__).resolve().parents[2]
"""The repository, from which the product and its configs are taken."""


class OverBudget(Exception):
    """Raised in a section that takes longer than it may."""


class Pass:
    """The device, the budget and the results of one pass.

    Args:
        small: take tiny sizes on the CPU, to find mistakes before a GPU is paid for.
        budget_s: seconds for the whole pass.
        out: folder for `gpu.jsonl` and `gpu.md`; None for neither.
    """

    def __init__(self, *, small: bool, budget_s: float, out: Path | None) -> None:
        self.small = small
        self.cuda = torch.cuda.is_available() and not small
        self.device = torch.device("cuda" if self.cuda else "cpu")
        self.results: list[dict[str, Any]] = []
        self._out = out
        self._scratch = tempfile.TemporaryDirectory(prefix="gpu-check-")
        self._end_s = time.monotonic() + budget_s

    @property
    def scratch(self) -> str:
        """A folder that is removed at the end."""
        return self._scratch.name

    @property
    def left_s(self) -> float:
        """Seconds that are left of the budget."""
        return self._end_s - time.monotonic()

    @property
    def spec(self) -> Device | None:
        """What the product's cost model knows of this device; None for a CPU or an unknown device."""
        name = torch.cuda.get_device_name().lower() if self.cuda else ""
        return next((spec for key, spec in DEVICES.items() if key in name), None)

    def record(self, what: str, *, predicted: Mapping[str, Any] | None = None, **facts: Any) -> None:
        """Write a result at once, so that a pass that is cut off loses none.

        Args:
            what: the name of the result.
            predicted: what the product's cost model gives for some of the facts.
            facts: the measurements, with units in their names.
        """
        result = {"what": what, **facts, **({"predicted": dict(predicted)} if predicted else {})}
        self.results.append(result)
        line = json.dumps(result, default=str)
        print(line, flush=True)
        if self._out is not None:
            with (self._out / "gpu.jsonl").open("a", encoding="utf-8") as file:
                file.write(line + "\n")
            (self._out / "gpu.md").write_text(table(self.results), encoding="utf-8")

    @contextlib.contextmanager
    def limited(self, seconds: float) -> Iterator[None]:
        """Raise `OverBudget` in the main thread after some seconds."""

        def over(*_: object) -> None:
            raise OverBudget(f"over {seconds:.0f} s")

        before = signal.signal(signal.SIGALRM, over)
        signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.1))
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    def wait(self) -> None:
        """Wait until the device has finished all queued work."""
        if self.cuda:
            torch.cuda.synchronize()

    def clean(self) -> None:
        """Free what the last measurement held, and reset the peak of memory."""
        gc.collect()
        if self.cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def memory(self) -> dict[str, Any]:
        """Return the peaks of allocated and of reserved memory since the last `clean`; {} on a CPU."""
        if not self.cuda:
            return {}
        return {
            "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 1),
            "reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 1),
        }

    def seconds(self, action: Callable[[], object], repeats: int = 1) -> float:
        """Return how long an action takes on the device, the mean of some repeats."""
        self.wait()
        start_s = time.perf_counter()
        for _ in range(repeats):
            action()
        self.wait()
        return (time.perf_counter() - start_s) / repeats


def table(results: list[dict[str, Any]]) -> str:
    """Return results as a Markdown table, what was predicted beside what was measured."""
    lines = ["| what | measured | predicted by the plan |", "|---|---|---|"]
    for result in results:
        facts = {key: value for key, value in result.items() if key not in ("what", "predicted")}
        cells = (result["what"], _joined(facts), _joined(result.get("predicted", {})))
        lines.append(f"| {' | '.join(' '.join(cell.replace('|', BAR).split()) for cell in cells)} |")
    return "\n".join(lines) + "\n"


BAR = r"\|"
"""A vertical bar within a cell."""


def _joined(facts: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in facts.items() if value is not None)
