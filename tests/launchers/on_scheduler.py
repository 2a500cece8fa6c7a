"""Sweeps that tests give to a scheduler, and what they read of them in the store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.testing import checkpoints, counted, records, wait_for
from tests.conftest import Sweep

COUNT = """
description: counting as jobs
config: {{seed: 0, count: {{num_steps: {steps}, checkpoint_every: 5, step_s: {step_s}, fail: null}}}}
axes: {{seed: "range(0,{cells})"}}
stages: {stages}
"""


class OnScheduler(Sweep):
    """The command where a scheduler can be reached."""

    def write(
        self, name: str = "jobs", *, cells: int = 4, steps: int = 10, step_s: float = 0.0, stage: str = ""
    ) -> str:
        """Writes a sweep that counts, or has another stage of one in `mine.py`, and returns its file."""
        path = self.folder / f"{name}.yaml"
        stages = (
            f'{{{stage}: {{run: "mine:{stage}", reads: [seed], preload: [mine]}}}}' if stage else "[count]"
        )
        path.write_text(COUNT.format(cells=cells, steps=steps, step_s=step_s, stages=stages))
        return path.name

    def write_stages(self, text: str) -> None:
        """Writes the module of the user's own stages."""
        (self.folder / "mine.py").write_text(text)

    def counts(self, name: str = "jobs") -> dict[str, int]:
        """Number of cells by state, as `sweep status` says."""
        counts: dict[str, int] = self.json("status", name)["counts"]
        return counts

    def states(self, name: str = "jobs") -> dict[str, str]:
        """State by cell, in the order of the grid."""
        return {cell["cell"]: cell["state"] for cell in self.json("status", name)["cells"]}

    def reasons(self, name: str = "jobs") -> dict[str, str]:
        """Reason by cell."""
        return {cell["cell"]: cell["reason"] for cell in self.json("status", name)["cells"]}

    def until(self, condition: Callable[[], Any], timeout_s: float = 120) -> Any:
        """Waits for a condition that asks by commands, which take a while themselves."""
        deadline_s = time.monotonic() + timeout_s
        while not (value := condition()):
            assert time.monotonic() < deadline_s, "waited in vain"
            time.sleep(0.3)
        return value

    def until_done(self, cells: int, name: str = "jobs", timeout_s: float = 90) -> None:
        """Waits until every cell is done, by the store alone."""
        wait_for(lambda: len(list((self.store / "done").rglob("*.json"))) >= cells, timeout_s)
        assert self.counts(name) == {"done": cells}

    def assert_each_done_once(self, cells: int) -> None:
        """Every product exists once; no attempt was repeated after it succeeded."""
        assert len(list((self.store / "done").rglob("*.json"))) == cells
        assert not list((self.store / "void").rglob("*.json"))
        ends = records(self.store, "end.json")
        assert sum(end["outcome"] == "succeeded" for end in ends) == cells

    def submissions(self, name: str = "jobs") -> list[dict[str, Any]]:
        """The intents, oldest first."""
        paths = sorted((self.store / f"sweeps/{name}/submissions").glob("*.json"))
        return [json.loads(path.read_text()) for path in paths]

    def closings(self, name: str = "jobs") -> list[dict[str, Any]]:
        """The ends of jobs that were recorded."""
        paths = sorted((self.store / f"sweeps/{name}/submissions").glob("*/closings/*.json"))
        return [over for path in paths for over in json.loads(path.read_text())["over"]]

    def until_checkpoints(self, number: int = 1, timeout_s: float = 40) -> None:
        """Waits until so many checkpoints are there."""
        wait_for(lambda: len(checkpoints(self.store)) >= number, timeout_s)

    def ends(self) -> list[dict[str, Any]]:
        """How attempts ended, in the order of their ends."""
        return sorted(records(self.store, "end.json"), key=lambda end: str(end["at"]))

    def starts(self) -> list[dict[str, Any]]:
        """The starts of attempts, in their order."""
        return sorted(records(self.store, "start.json"), key=lambda start: int(start["folder"].name))

    def beats(self) -> list[dict[str, Any]]:
        """The heartbeats of stages that run."""
        beats = records(self.store, "heartbeat.json")
        return [b for b in beats if b["phase"] == "running" and not (b["folder"] / "end.json").exists()]

    def products(self) -> list[dict[str, Any]]:
        """The records of products."""
        return records_of(self.store / "done")

    def why(self, cell: str | None = None, name: str = "jobs") -> str:
        """What `sweep why` says, of the only cell unless one is named."""
        return self("why", name, cell or next(iter(self.states(name))))

    def steps(self) -> list[int]:
        """The steps that were counted in all attempts of a sweep of one cell, in their order."""
        paths = sorted(self.store.glob("payload/count/*/*/metrics.jsonl"), key=lambda p: int(p.parent.name))
        return [json.loads(line)["step"] for path in paths for line in path.read_text().splitlines()]

    def assert_counted(self, steps: int) -> None:
        """Every product is what counting without a break would have made."""
        for done in records_of(self.store / "done/count"):
            path = self.store / f"payload/count/{done['digest']}/{done['attempt']}/output/count.txt"
            assert path.read_text() in {f"{steps} {counted(seed, steps)}\n" for seed in range(64)}


def records_of(folder: Path) -> list[dict[str, Any]]:
    """All records below a folder."""
    return [json.loads(path.read_text()) for path in folder.rglob("*.json")]
