"""Searches that really run: rounds follow from results, whoever decides, and whatever is killed."""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path
from typing import Any

import pytest

from orchestrator.compose.main import compose
from orchestrator.core.search import drawn
from orchestrator.testing import SweepCommand

FIND = """
config: {rate: 0.1, size: 1, bad: false}
search:
  metric: loss
  mode: min
  num_cells: NUMBER
  batch: BATCH
  seed: 1
  space: {rate: {low: 1e-4, high: 1.0, log: true}, size: {low: 1, high: 64}}
stages:
  fit: {run: "fit:main", reads: [rate, size]}
"""

FIT = """
import math

def loss(rate, size):
    return (math.log10(rate) + 2) ** 2 + (size / 32 - 1) ** 2

def main(config, inputs, context):
    return [{"loss": loss(config.rate, config.size)}]
"""

KILLING = """
import os, signal
from pathlib import Path
from orchestrator.store import decisions

flag = Path(os.environ["FLAG"])
made = decisions.DecisionLog.KILLED

def killed(self, *args, **kwargs):
    found = made(self, *args, **kwargs)
    if self.unfolded.question is not None and not hasattr(found, "reason"):
        try:
            flag.rename(flag.with_suffix(".used"))
        except FileNotFoundError:
            return found
        os.kill(os.getpid(), signal.SIGKILL)
    return found

decisions.DecisionLog.KILLED = killed
"""


def find(sweep: Any, number: int = 9, batch: int = 3) -> Any:
    text = FIND.replace("NUMBER", str(number)).replace("BATCH", str(batch))
    (sweep.folder / "find.yaml").write_text(text)
    (sweep.folder / "fit.py").write_text(FIT)
    return sweep


def patched(sweep: Any, program: str, store: Path) -> SweepCommand:
    """Return the command with a program that runs first in each of its processes, while `flag` is there."""
    places = sweep.folder / "places"
    places.mkdir()
    (places / "sitecustomize.py").write_text(program)
    flag = sweep.folder / "flag"
    flag.touch()
    env = {**os.environ, "PYTHONPATH": str(places), "FLAG": str(flag)}
    return SweepCommand(sweep.folder, store, env)


def proposals(store: Path) -> list[Any]:
    found = sorted(store.glob("sweeps/find/decisions/1/*.json"))
    return [json.loads(path.read_text())["proposed"] for path in found]


def test_each_round_follows_from_the_results_before_it(sweep: Any) -> None:
    find(sweep)
    assert "a search: 9 cells in 3 rounds, the first of 3" in sweep("plan", "find.yaml")
    sweep("launch", "find.yaml", "launcher.workers=2")
    cells = sweep.json("status", "find")["cells"]
    assert [cell["state"] for cell in cells] == ["done"] * 9
    records = sorted(sweep.store.glob("sweeps/find/decisions/1/*.json"))
    first, second = (json.loads(path.read_text()) for path in records)
    assert [len(each["seen"]) for each in (first, second)] == [3, 3]
    assert first["sampler"].startswith("optuna ")
    rates = [str(point["rate"]) for each in (first, second) for point in each["proposed"]]
    assert [cell["axes"]["rate"] for cell in cells[3:]] == rates
    before = [path.read_bytes() for path in records]
    assert "9 done" in sweep("launch", "find.yaml")
    assert [path.read_bytes() for path in records] == before


@pytest.mark.parametrize("moment", ["_proposed", "refresh"])
def test_a_worker_that_is_killed_around_a_decision_changes_nothing(sweep: Any, moment: str) -> None:
    find(sweep, 6)
    sweep("launch", "find.yaml", "launcher.workers=1")
    whole = proposals(sweep.store)
    assert [len(points) for points in whole] == [3]
    other = patched(sweep, KILLING.replace("KILLED", moment), sweep.store.with_name("other"))
    other("launch", "find.yaml", "launcher.workers=1", code=None)
    assert (sweep.folder / "flag.used").exists()
    assert "6 done" in sweep("launch", "find.yaml", f"store.url={other.store}")
    assert proposals(other.store) == whole


def test_failed_cells_and_results_that_are_no_numbers_count_as_the_worst(sweep: Any) -> None:
    find(sweep)
    (sweep.folder / "fit.py").write_text(FIT.replace("> 60", "> 20").replace("> 0.5", "> 0.02"))
    sweep("launch", "find.yaml", "launcher.workers=2", "policy.breaker=0", code=1)
    seen = [
        each
        for path in sweep.store.glob("sweeps/find/decisions/1/*.json")
        for each in json.loads(path.read_text())["seen"]
    ]
    assert len(seen) == 6
    assert {each["why"].partition(":")[0] for each in seen if each.get("value") is None} >= {"fit failed"}
    assert len(sweep.json("status", "find")["cells"]) == 9


BLOCKED = "import os, sys\nif os.path.exists(os.environ['FLAG']):\n    sys.modules['optuna'] = None\n"


def test_where_optuna_is_missing_nothing_is_launched_and_a_decision_waits(sweep: Any) -> None:
    find(sweep)
    light = patched(sweep, BLOCKED, sweep.store)
    shown = light("launch", "find.yaml", code=2)
    assert "search.sampler=tpe" in shown and "polysweep[search]" in shown
    assert not sweep.store.exists()
    # Launched where it is there, and stopped with the results of the first round alone.
    view = open_view(sweep)


@pytest.mark.long
def test_a_search_of_64_cells_with_two_workers_finds_more_than_chance(sweep: Any) -> None:
    find(sweep, 64, 8)
    sweep("launch", "find.yaml", "launcher.workers=2", timeout_s=300)
    rows = sweep.json("collect", "find")
    values = [row["loss"] for row in rows if row.get("loss") is not None]
    space: dict[str, Any] = {}
    exec(FIT, space)
    chance = []
    for seed in range(9):
        text = (sweep.folder / "find.yaml").read_text().replace("seed: 1", f"seed: {seed}")
        (sweep.folder / "other.yaml").write_text(text)
        search = compose("other.yaml", cwd=sweep.folder).sweep.search
        assert search is not None
        chance.append(min(space["loss"](**point) for point in drawn(search, [], 64)))
    print(min(values), sorted(chance))
    assert min(values) < statistics.median(chance)
