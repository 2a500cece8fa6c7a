"""The breaker with real workers: what fails alike stops, all else goes on, and commands let it go on."""

from __future__ import annotations

import pytest

SWEEP = """
description: all cells of one task fail alike
config: {task: math, model: 0}
axes: {task: [math, api], model: [0, 1, 2, 3, 4, 5]}
stages: {train: {run: "box:main", reads: [task, model]}}
"""
CODE = """
def main(config, inputs, context):
    if config.task == "math":
        raise ValueError(f"row {config.model} of /data/{config.model}.jsonl has no answer")
    return [{"model": config.model}]
"""


@pytest.fixture
def box(sweep):
    """A launch of one worker in which three of the six cells of one task failed, and the others are held."""
    (sweep.folder / "box.yaml").write_text(SWEEP)
    (sweep.folder / "box.py").write_text(CODE)
    sweep.launched = sweep("launch", "box.yaml", "launcher.workers=1", code=1)
    return sweep


def states(sweep) -> dict[str, list[str]]:
    """Return the models of each task by state: ``{"math failed": ["0", ...], ...}``."""
    found: dict[str, list[str]] = {}
    for cell in sweep.json("status", "box")["cells"]:
        found.setdefault(f"{cell['axes']['task']} {cell['state']}", []).append(cell["axes"]["model"])
    return found


def test_three_that_fail_alike_hold_back_the_rest_until_the_code_is_mended(box):
    assert states(box) == {
        "math failed": ["0", "1", "2"],
        "math blocked": ["3", "4", "5"],
        "api done": ["0", "1", "2", "3", "4", "5"],
    }
    reason = "3 cells with task=math failed alike: ValueError: row 0 of /data/0.jsonl has no answer"
    assert f"held back: 3 cells. {reason}" in box.launched
    assert reason in box("why", "box", "math.model4")
    (group,) = box.json("failures", "box")["failures"]
    assert [cell.partition("-")[0] for cell in group["held"]] == [f"math.model{n}" for n in (3, 4, 5)]
    assert "held back: 3 cells. 3 cells with task=math" in box("failures", "box")
    assert "leave" in box("plan", "box.yaml")
    # The same code would fail again: not one more cell is tried.
    assert "held back: 3 cells" in box("launch", "box.yaml", code=1)
    (box.folder / "box.py").write_text(CODE.replace("raise ValueError", "print"))
    actions = {
        cell["axes"]["model"]: cell["stages"][0]["action"]
        for cell in box.json("plan", "box.yaml")["cells"]
        if cell["axes"]["task"] == "math"
    }
    assert actions == {"0": "leave", "1": "leave", "2": "leave", "3": "run", "4": "run", "5": "run"}
    box("launch", "box.yaml", code=1)
    assert states(box)["math done"] == ["3", "4", "5"], "failures of code are left to a rerun"
    box("rerun", "box")
    assert box.json("status", "box")["counts"] == {"done": 12}


@pytest.mark.long
def test_a_rerun_lets_exactly_the_named_cells_go_on(box):
    box("rerun", "box", "--only", "task=math model=4", code=1)
    assert states(box)["math failed"] == ["0", "1", "2", "4"]
    assert states(box)["math blocked"] == ["3", "5"]
    # The command that the reason names tries all of them, and the breaker trips again.
    box("rerun", "box", "--only", "task=math", code=1)
    assert sum(cell["attempts"] for cell in box.json("status", "box")["cells"]) == 6 + 4 + 3
    box("rerun", "box", "policy.breaker=0", code=1)
    assert states(box)["math failed"] == ["0", "1", "2", "3", "4", "5"]


def test_a_held_cell_gets_no_job(box):
    words = ("launch", "box.yaml", "launcher=slurm", "--dry-run")
    assert "math.model" not in box(*words)
    assert "math.model5" in box(*words, f"store.url={box.folder / 'another'}")
