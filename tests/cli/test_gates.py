"""Gates: a stage that rehearses for others before they may start, and is part of no cell's identity."""

from __future__ import annotations

import json
import os
import shlex
import signal
from typing import Any

import pytest

from orchestrator.errors import UserError
from tests.cli.launches import running_heartbeats, wait_for

SWEEP = """
description: two models on two mixtures, each rehearsed before it is fitted
config: {model: {name: small, width: 1}, languages: [en], seed: 0}
axes:
  model: {small: {model: {name: small, width: 1}}, large: {model: {name: large, width: 2}}}
  mixture: {en: {languages: [en]}, es: {languages: [es]}}
stages:
  data: {run: "steps:data", each: {language: languages}}
  check: {run: "steps:check", reads: [model], after: [data]}
  fit: {run: "steps:fit", reads: [model, seed], after: [data], gated_by: [check]}
"""
UNGATED = SWEEP.replace(", gated_by: [check]", "").replace(
    '  check: {run: "steps:check", reads: [model], after: [data]}\n', ""
)
STEPS = """
from pathlib import Path


def data(config, inputs, context):
    return []


def check(config, inputs, context):
    print("takes", sorted(inputs.each("data")), "of", config.model.name, config.launch.device)
    return [{"rehearsed": config.model.name}]


def fit(config, inputs, context):
    return [{"fitted": config.model.name}]
"""
WAIT = """

def wait(context):
    import time
    while True:
        context.stop_if_asked()
        time.sleep(0.05)
"""
FAILING = STEPS.replace(
    '    return [{"rehearsed"', '    assert config.model.name != "large"\n    return [{"rehearsed"'
)


@pytest.fixture
def gated(sweep: Any) -> Any:
    """A folder with a sweep whose stage `fit` has the gate `check`."""
    (sweep.folder / "gated.yaml").write_text(SWEEP)
    (sweep.folder / "steps.py").write_text(STEPS)
    return sweep


def digests(sweep: Any, stage: str) -> dict[str, int]:
    """Returns the attempts of each instance of a stage, by digest."""
    folders = (sweep.store / "records" / stage).glob("*")
    return {folder.name: len(list(folder.glob("[0-9]*"))) for folder in folders}


def test_each_class_is_rehearsed_once_before_its_stages_start(gated):
    gated("launch", "gated.yaml")
    assert gated.json("status", "gated")["counts"] == {"done": 4}
    assert sorted(digests(gated, "check").values()) == [1, 1]
    logs = [path.read_text() for path in gated.store.glob("payload/check/*/1/log.txt")]
    assert sorted(logs) == [f"takes ['en', 'es'] of {name} cpu\n" for name in ("large", "small")]
    again = gated("launch", "gated.yaml")
    assert "4 done" in again and sorted(digests(gated, "check").values()) == [1, 1]


def test_a_gate_is_no_part_of_a_result_and_switching_it_on_runs_nothing_again(gated):
    (gated.folder / "gated.yaml").write_text(UNGATED)
    gated("launch", "gated.yaml")
    before, ids = digests(gated, "fit"), [cell["cell"] for cell in gated.json("status", "gated")["cells"]]
    (gated.folder / "gated.yaml").write_text(SWEEP)
    gated("launch", "gated.yaml")
    assert digests(gated, "fit") == before
    assert digests(gated, "check") == {}, "nothing waits for a gate"
    assert [cell["cell"] for cell in gated.json("status", "gated")["cells"]] == ids
    assert "rehearsed" not in gated("collect", "gated", "--format", "json")


def test_a_bug_between_two_launches_is_caught_before_anything_that_is_gated_starts(gated):
    gated("launch", "gated.yaml", "--only", "mixture=en")
    assert sorted(digests(gated, "fit").values()) == [1, 1]
    (gated.folder / "steps.py").write_text(
        STEPS.replace('"rehearsed": config.model', '"rehearsed": config.modle')
    )
    gated("launch", "gated.yaml", code=1)
    assert sorted(digests(gated, "fit").values()) == [1, 1]
    states = gated.json("status", "gated")
    assert states["counts"] == {"done": 2, "blocked": 2}
    blocked = [cell for cell in states["cells"] if cell["state"] == "blocked"]
    assert {cell["cause"] for cell in blocked} == {"config"}
    assert "its gate check[small] is failed" in blocked[0]["reason"] or "check[large]" in blocked[0]["reason"]
    (gated.folder / "steps.py").write_text(STEPS)
    gated("launch", "gated.yaml")
    assert gated.json("status", "gated")["counts"] == {"done": 4}


def test_a_class_that_failed_blocks_its_cells_alone_and_is_tried_again_by_a_rerun(gated):
    (gated.folder / "steps.py").write_text(FAILING)
    output = gated("launch", "gated.yaml", code=1)
    states = gated.json("status", "gated")
    assert states["counts"] == {"done": 2, "blocked": 2}
    assert {cell["axes"]["model"] for cell in states["cells"] if cell["state"] == "blocked"} == {"large"}
    assert "check[large]" in output and "AssertionError" in output
    assert "AssertionError" in gated("logs", "gated", "model=large mixture=en")
    failures = gated.json("failures", "gated")
    assert "check" in json.dumps(failures)
    (spent,) = gated.json("status", "gated", "--spent")["spent"]
    assert spent["by_stage"]["check"]["lost"] > 0, "a rehearsal that failed is lost time"
    why = gated("why", "gated", "model=large mixture=en")
    assert "check[large]" in why
    (again,) = [line for line in why.splitlines() if line.startswith("when mended: sweep rerun gated")]
    gated(*shlex.split(again.partition("sweep ")[2]), code=1)
    assert sorted(digests(gated, "check").values()) == [1, 2]


def test_a_rehearsal_that_runs_stops_when_two_others_have_failed_alike(gated):
    """It would fail as they did, and its cells start nothing either."""
    third = "third: {model: {name: third, width: 3}}, small:"
    (gated.folder / "gated.yaml").write_text(SWEEP.replace("small:", third, 1))
    (gated.folder / "steps.py").write_text(
        STEPS.replace("    print(", "    fail(config, context)\n    print(")
        + WAIT
        + """

def fail(config, context):
    if config.model.name == "third":
        (context.folder / "runs").touch()
        wait(context)
    while not list(context.folder.parents[1].glob("*/1/runs")):
        pass
    raise ValueError("row 7 is bad")
"""
    )
    gated("launch", "gated.yaml", "launcher.workers=3", "policy.rehearse=true", code=1)
    ends = [json.loads(path.read_text()) for path in gated.store.glob("records/check/*/*/end.json")]
    how = [(end["outcome"], end["why"]) for end in ends]
    assert how.count(("failed", "")) == 2
    assert set(how) == {
        ("failed", ""),
        ("released", "held"),
    }  # a worker that looked before may start it again
    cells = gated.json("status", "gated")["cells"]
    assert {cell["state"] for cell in cells} == {"blocked"} and digests(gated, "fit") == {}
    reasons = {cell["axes"]["model"]: cell["reason"] for cell in cells}
    assert "its gate check[small] is failed" in reasons["small"]
    assert "2 cells failed alike: ValueError: row 7 is bad" in reasons["third"]


@pytest.mark.long
def test_a_plan_and_a_launch_agree_on_which_rehearsal_is_tried_again(gated):
    def planned() -> tuple[str, set[str]]:
        plan = gated.json("plan", "gated.yaml")
        large = [cell for cell in plan["cells"] if cell["axes"]["model"] == "large"]
        (gate,) = plan["gates"]
        return gate["action"], {cell["stages"][-1]["action"] for cell in large}

    by_chance = FAILING.replace("assert config", "if config.model.name == 'large': raise RuntimeError #")
    (gated.folder / "steps.py").write_text(by_chance)
    gated("launch", "gated.yaml", code=1)
    assert planned() == ("run", {"run"})
    assert "1 rehearsal first" in gated("plan", "gated.yaml")
    # A failure of the code itself is left to a rerun. Then other code alone starts no rehearsal.
    failing = STEPS.replace('    return [{"fitted"', '    assert config.seed\n    return [{"fitted"')
    (gated.folder / "steps.py").write_text(failing)
    gated("launch", "gated.yaml", code=1)
    (gated.folder / "steps.py").write_text(failing + "# edited\n")
    assert planned() == ("leave", {"leave"})
    assert "rehearsal" not in gated("plan", "gated.yaml")
    gated("launch", "gated.yaml", code=1)
    assert sorted(digests(gated, "check").values()) == [1, 1, 2]
    events = [json.loads(line) for line in gated("events", "gated", "--json").splitlines()]
    ends = [event["outcome"] for event in events if event["event"] == "end" and "check" in event["stage"]]
    assert sorted(ends) == ["failed", "failed", "succeeded", "succeeded"]


def test_a_gate_is_left_out_where_it_is_switched_off(gated):
    (gated.folder / "steps.py").write_text(FAILING)
    gated("launch", "gated.yaml", "policy.rehearse=false")
    assert gated.json("status", "gated")["counts"] == {"done": 4}
    assert digests(gated, "check") == {}


def test_a_rehearsal_for_more_cells_stands_for_one_for_fewer(gated):
    (gated.folder / "steps.py").write_text(
        STEPS + "\n\ndef fit(config, inputs, context):\n    raise OSError\n"
    )
    gated("launch", "gated.yaml", "policy.retries.storage=0", code=1)
    assert sorted(digests(gated, "check").values()) == [1, 1]
    gated("rerun", "gated", "--only", "mixture=en", "policy.retries.storage=0", code=1)
    assert sorted(digests(gated, "check").values()) == [1, 1]


@pytest.mark.long
def test_a_rehearsal_that_runs_stops_when_all_that_wait_for_it_are_cancelled(gated, background):
    """A cell of the class that is done needs it no more."""
    gated("launch", "gated.yaml", "policy.rehearse=false", "--only", "model=small mixture=en")
    (gated.folder / "steps.py").write_text(
        STEPS.replace("    print(", "    wait(context)\n    print(") + WAIT
    )
    only = ("--only", "model=small")
    launch = background("launch", "gated.yaml", "policy.rehearse=true", *only)
    wait_for(lambda: running_heartbeats(gated.store))
    gated("cancel", "gated", "--only", "model=small mixture=es")
    code, output = launch.end()
    assert "1 cancelled, 1 done" in output or "1 done, 1 cancelled" in output, (code, output)
    ends = [json.loads(path.read_text()) for path in gated.store.glob("records/check/*/*/end.json")]
    assert [(end["outcome"], end["why"]) for end in ends] == [("released", "cancelled")]


def test_a_killed_rehearsal_is_tried_again(gated, background):
    slow = STEPS.replace(
        '    return [{"rehearsed"',
        '    import time\n    time.sleep(60 if context.attempt == 1 else 0)\n    return [{"rehearsed"',
    )
    (gated.folder / "steps.py").write_text(slow)
    launch = background("launch", "gated.yaml", "--only", "model=small")
    beats = wait_for(lambda: [b for b in running_heartbeats(gated.store) if b["folder"].parts[-3] == "check"])
    os.kill(beats[0]["child"]["pid"], signal.SIGKILL)
    code, output = launch.end()
    assert code == 0, output
    assert gated.json("status", "gated")["counts"]["done"] == 2
    assert list(digests(gated, "check").values()) == [2]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gated_by: [check]", "gated_by: [chekc]", "gated by the unknown stage 'chekc'"),
        ("reads: [model], after: [data]", "reads: [model], after: [fit]", "would wait for 'fit'"),
        ("each: {language: languages}}", "after: [check]}", "'data' comes after it"),
        ("reads: [model], after: [data]", "reads: [modle], after: [data]", "unknown key 'modle'"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(gated, old, new, message):
    (gated.folder / "gated.yaml").write_text(SWEEP.replace(old, new))
    assert message in gated("plan", "gated.yaml", code=UserError.exit_code)


SMOKE = """
description: the smoke sweep's shape, rehearsed
like: smoke
expect_cells: 6
overrides: {data.num_train: 40, data.num_validation: 4, data.num_test: 4, trainer.num_epochs: 2}
axes:
  task: [math]
  mixture:
    none: {languages: []}
    en: {languages: [en]}
    en+es: {languages: [en, es]}
stages: [tokenizer, base, prepare, rehearse, train, evaluate]
"""


@pytest.mark.long
def test_a_tiny_study_is_rehearsed_for_real_and_calibrated_by_it(sweep):
    (sweep.folder / "rehearsed.yaml").write_text(SMOKE)
    plan = sweep.json("plan", "rehearsed.yaml")
    assert [gate["left_out"] for gate in plan["gates"]] == [True, True], "too dear for trainings of seconds"
    only = ("--only", "model=tiny-qwen3")
    sweep("launch", "rehearsed.yaml", "policy.rehearse=true", *only, timeout_s=600)
    assert list(digests(sweep, "rehearse").values()) == [1]
    (done,) = (json.loads(path.read_text()) for path in (sweep.store / "done/rehearse").glob("*.json"))
    assert done["rows"][0]["tokens_per_second"] > 0
    assert done["rows"][0]["num_languages"] == 2
    cells = [cell for cell in sweep.json("status", "rehearsed")["cells"] if cell["state"] == "done"]
    assert len(cells) == 3
    rows = json.loads(sweep("collect", "rehearsed", "--format", "json"))
    assert {row["stage"] for row in rows} == {"evaluate"}, "a rehearsal is no result"
    before = digests(sweep, "train")
    sweep("launch", "rehearsed.yaml", "policy.rehearse=true", *only, timeout_s=600)
    assert digests(sweep, "train") == before
