"""Each plugin passes the suite of its kind."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from orchestrator.testing import (
    GeneratorContract,
    MirrorContract,
    ReportContract,
    StageContract,
    SweepCommand,
    TaskContract,
    TrackerContract,
)


class TestCsvTracker(TrackerContract):
    """A tracker: how to read what it wrote."""

    name = "csv"
    words = ("tracker=csv",)

    def read(self, folder: Path) -> dict[int, dict[str, float]]:
        """Return the lines of the file by step."""
        found: dict[int, dict[str, float]] = {}
        with (folder / "metrics.csv").open(newline="", encoding="utf-8") as stream:
            for step, name, value in csv.reader(stream):
                found.setdefault(int(step), {})[name] = float(value)
        return found


class TestJsonlMirror(MirrorContract):
    """A mirror: how to read what it shows."""

    name = "jsonl"
    words = ("tracker=jsonl",)

    def read(self, on: SweepCommand) -> dict[str, list[int]]:
        """Return the steps in the files of all cells."""
        found = {}
        for path in (on.folder / "jsonl/jobs").glob("*.jsonl"):
            lines = [json.loads(line) for line in path.read_text().splitlines()]
            found[path.name.partition("-")[0]] = [line["step"] for line in lines if "step" in line]
        return found


class TestSpelling(TaskContract):
    """A task, with a row of its files."""

    name = "spelling"
    row = {"word": "seventeen"}


class TestSilentEngine(GeneratorContract):
    """A generator that reads no model."""

    name = "silent"
    reads_model = False


class TestRanking(ReportContract):
    """A report, with rows as its sweep has them."""

    name = "ranking"
    rows = [{"cell": f"seed{seed}", "position": seed % 3} for seed in range(5)]


class TestWalk(StageContract):
    """A stage, with the keys that it reads."""

    name = "walk"
    config = {"num_steps": 20}
