"""Searches that really run: rounds follow from results, whoever decides, and whatever is killed."""

from __future__ import annotations

import json
import os
import runpy
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestrator.api.sweep import Sweep
from orchestrator.cli.main import main
from orchestrator.compose.main import compose
from orchestrator.core.search import Trial, drawn
from orchestrator.errors import DamagedRecord
from orchestrator.store.proposals import propose
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
    assert "2 made again, 0 differences\n" in sweep("decisions", "find", "--verify")
    records[0].write_text(records[0].read_text().replace('"optuna ', '"optuna 0.'))
    again = sweep.json("decisions", "find", "--verify")
    assert [each["why"].partition(":")[0] for each in again] == ["not comparable", ""]
    assert again[0]["chosen"][0].startswith(f"rate={rates[0]} size=")
    records[1].write_text(records[1].read_text().replace(f'"rate":{rates[3]}', '"rate":0.123'))
    assert "differs: other points follow" in sweep("decisions", "find", "--verify", code=1)


def test_nothing_is_deleted_or_ranked_while_the_rounds_of_a_search_cannot_be_read(
    sweep: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str]:
        code = main([*words, "--store", str(sweep.store)])
        return code, "".join(capsys.readouterr())

    find(sweep, 4, 2)
    file = sweep.folder / "find.yaml"
    writes = "    (context.output / 'part').write_text('x')\n    return [{"
    (sweep.folder / "fit.py").write_text(FIT.replace("    return [{", writes))
    sweep("launch", "find.yaml", "launcher.workers=1")
    file.write_text(file.read_text() + "description: the same again\n")
    sweep("launch", "find.yaml", "launcher.workers=1")
    parts = sorted(sweep.store.glob("payload/fit/*/*/output/part"))
    assert len(parts) == 4
    record = sweep.store / "sweeps/find/decisions/2/000001.json"
    good = record.read_bytes()
    record.write_text("{}")
    for words in (
        ("clean",),
        ("clean", "--yes"),
        ("collect", "find"),
        ("best", "find", "loss"),
        ("query", "select * from results", "--sweep", "find"),
        ("rerun", "find"),
    ):
        code, shown = run(*words)
        assert code == 3
        assert "a decision of find@2 cannot be trusted" in shown
        assert "move sweeps/find/decisions/2/000001.json out of the store" in shown
    with pytest.raises(DamagedRecord):
        Sweep.open("find", store=str(sweep.store)).rows()
    assert sorted(sweep.store.glob("payload/fit/*/*/output/part")) == parts
    # What shows how things stand goes on.
    code, shown = run("status", "find")
    assert code == 0 and "cannot be trusted" in shown and "find@2: 2 cells: 2 done" in shown
    assert "error: a decision of find@2" in run("list")[1]
    assert run("collect", "find@1")[0] == 0
    # Of a revision that is not in use, it is only named; but its cells may run.
    record.write_bytes(good)
    old = sweep.store / "sweeps/find/decisions/1/000001.json"
    old.write_text("{}")
    code, shown = run("clean")
    assert code == 0 and "decisions/1/000001.json" in shown
    code, shown = run("clean", "--yes")
    assert code == 3 and "out of the store" in shown
    assert sorted(sweep.store.glob("payload/fit/*/*/output/part")) == parts


@pytest.mark.parametrize("moment", ["_proposed", pytest.param("refresh", marks=pytest.mark.long)])
def test_a_worker_that_is_killed_around_a_decision_changes_nothing(sweep: Any, moment: str) -> None:
    find(sweep, 4, 2)
    search = compose("find.yaml", cwd=sweep.folder).sweep.search
    assert search is not None
    loss = runpy.run_path(str(sweep.folder / "fit.py"))["loss"]
    points = propose(search, [Trial(point, loss(**point)) for point in search.start], 2)
    killing = patched(sweep, KILLING.replace("KILLED", moment), sweep.store)
    killing("launch", "find.yaml", "launcher.workers=1", code=None)
    assert (sweep.folder / "flag.used").exists()
    assert "4 done" in sweep("launch", "find.yaml", "launcher.workers=1")
    assert proposals(sweep.store) == [list(points)]


@pytest.mark.long
def test_a_cell_that_failed_counts_as_the_worst_and_the_search_goes_on(sweep: Any) -> None:
    find(sweep)
    bad = "    if config.size > 20:\n        raise ValueError\n    return"
    (sweep.folder / "fit.py").write_text(FIT.replace("    return [{", f"{bad} [{{"))
    sweep("launch", "find.yaml", "launcher.workers=2", "policy.breaker=0", code=1)
    seen = [
        each
        for path in sweep.store.glob("sweeps/find/decisions/1/*.json")
        for each in json.loads(path.read_text())["seen"]
    ]
    assert len(seen) == 6
    assert {each["why"].partition(":")[0] for each in seen if each.get("value") is None} >= {"fit failed"}
    assert len(sweep.json("status", "find")["cells"]) == 9


BLOCKED = "import sys\nif WORD in sys.orig_argv:\n    sys.modules['optuna'] = None\n"


def test_without_optuna_nothing_is_launched(sweep: Any) -> None:
    light = patched(find(sweep), BLOCKED.replace("WORD", "'launch'"), sweep.store)
    shown = light("launch", "find.yaml", code=2)
    assert "search.sampler=tpe" in shown and "polysweep[search]" in shown
    assert not sweep.store.exists()


@pytest.mark.long
def test_where_workers_lack_optuna_the_decision_waits_for_one_that_has_it(
    sweep: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    find(sweep, 4, 2)
    light = patched(sweep, BLOCKED.replace("WORD in", "'launch' not in"), sweep.store)
    assert "round 2 of the search: not decided" in light("launch", "find.yaml", "launcher.workers=1", code=1)
    assert proposals(sweep.store) == []
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "optuna", None)
        found = Sweep.open("find", store=str(sweep.store))._sealed().open_decision
        assert found is not None
        assert "its cells have ended; " in found.reason and "polysweep[search]" in found.reason
    assert "4 done" in sweep("launch", "find.yaml", "launcher.workers=1")


@pytest.mark.long
def test_a_search_of_64_cells_with_two_workers_finds_more_than_chance(sweep: Any) -> None:
    find(sweep, 64, 8)
    sweep("launch", "find.yaml", "launcher.workers=2", timeout_s=300)
    rows = sweep.json("collect", "find")
    values = [row["loss"] for row in rows if row.get("loss") is not None]
    loss = runpy.run_path(str(sweep.folder / "fit.py"))["loss"]
    chance = []
    for seed in range(9):
        text = (sweep.folder / "find.yaml").read_text().replace("seed: 1", f"seed: {seed}")
        (sweep.folder / "other.yaml").write_text(text)
        search = compose("other.yaml", cwd=sweep.folder).sweep.search
        assert search is not None
        chance.append(min(loss(**point) for point in drawn(search, [], 64)))
    print(min(values), sorted(chance))
    assert min(values) < statistics.median(chance)
