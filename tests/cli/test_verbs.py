"""The verbs on a small sweep with failures: what they print, and the JSON that scripts rely on."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from orchestrator.cli.main import main

MIXED = """
description: four cells, one fails
expect_cells: 4
config: {seed: 0, languages: [en], count: {num_steps: 4, checkpoint_every: 2, step_s: 0.0, fail: null}}
axes:
  seed: [0, 1]
  kind:
    good: {languages: []}
    odd: {languages: [en, es], count.num_steps: 5}
columns: {languages: languages}
stages: [count]
"""
FAIL = "count.fail={how: data, step: 5, attempts: 1}"


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose store holds one launch: the cells with five steps failed."""
    folder = tmp_path_factory.mktemp("verbs")
    (folder / "mixed.yaml").write_text(MIXED)
    environment = {key: value for key, value in os.environ.items() if key != "SWEEP_STORE"}
    command = [sys.executable, "-m", "orchestrator", "launch", "mixed.yaml", FAIL, "api_key=x", "~api_key"]
    done = subprocess.run(
        command[:6], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed by data: 2 stages" in done.stdout
    assert "sweep logs mixed" in done.stdout
    return folder


@pytest.fixture
def run(launched: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.chdir(launched)
    monkeypatch.delenv("SWEEP_STORE", raising=False)

    def call(*words: str, code: int = 0) -> str:
        capfd.readouterr()
        assert main(words) == code, capfd.readouterr()
        out, err = capfd.readouterr()
        return out if "--json" in words or "json" in words else out + err

    return call


def test_status_json_keeps_its_contract(run):
    before_s = time.time()
    status = json.loads(run("status", "mixed", "--json"))
    assert {"sweep", "revision", "counts", "cells"} <= set(status)
    assert before_s <= status["as_of"] <= time.time()
    assert re.search(r"2 done, 2 failed \(at \d\d:\d\d:\d\d\)$", run("status", "mixed"), re.MULTILINE)
    assert status["counts"] == {"done": 2, "failed": 2}
    cell = next(cell for cell in status["cells"] if cell["state"] == "failed")
    assert {"cell", "axes", "state", "cause", "attempts", "stages"} <= set(cell)
    assert cell["cause"] == "data"
    assert cell["attempts"] == 1
    assert {"stage", "digest", "state", "cause", "attempts", "seconds"} <= set(cell["stages"][0])
    assert cell["axes"] == {"seed": cell["axes"]["seed"], "kind": "odd"}


def test_plan_json_keeps_its_contract_and_gives_each_stage_an_action_and_a_reason(run):
    plan = json.loads(run("plan", "mixed.yaml", FAIL, "--json"))
    assert (plan["sweep"], plan["revision"], plan["num_cells"]) == ("mixed", 1, 4)
    actions = {(c["axes"]["kind"], s["action"]) for c in plan["cells"] for s in c["stages"]}
    assert actions == {("good", "reuse"), ("odd", "leave")}
    assert all(s["reason"] and len(s["digest"]) == 64 for c in plan["cells"] for s in c["stages"])
    assert plan["cells"][1]["columns"] == {"languages": ["en", "es"]}


def test_a_setting_that_is_used_but_not_read_keeps_every_digest(run):
    digests = [
        [
            s["digest"]
            for c in json.loads(run("plan", "mixed.yaml", *more, "--json"))["cells"]
            for s in c["stages"]
        ]
        for more in ([], [FAIL], ["count.step_s=1"])
    ]
    assert digests[0] == digests[1] == digests[2]
    changed = json.loads(run("plan", "mixed.yaml", "count.checkpoint_every=1", "--json"))
    assert not set(digests[0]) & {s["digest"] for c in changed["cells"] for s in c["stages"]}


def test_plan_says_which_cells_are_new_and_why(run):
    output = run("plan", "mixed.yaml", "count.checkpoint_every=1")
    assert "4 cells not in mixed@1: count.checkpoint_every (4 cells)" in output


def test_collect_gives_the_same_rows_in_every_format(run, tmp_path):
    rows = json.loads(run("collect", "mixed", "--format", "json"))
    assert len(rows) == 2
    assert {"cell", "seed", "kind", "languages", "revision", "attempts", "seconds", "code"} <= set(rows[0])
    run("collect", "mixed", "--out", str(tmp_path / "rows.parquet"))
    assert pyarrow.parquet.read_table(tmp_path / "rows.parquet").to_pylist() == rows
    run("collect", "mixed", "--out", str(tmp_path / "rows.csv"))
    with (tmp_path / "rows.csv").open() as stream:
        assert [row["digest"] for row in csv.DictReader(stream)] == [row["digest"] for row in rows]


def test_why_shows_the_evidence_and_logs_show_the_traceback(run):
    cell = json.loads(run("status", "mixed", "--only", "state=failed", "--json"))["cells"][0]["cell"]
    why = run("why", "mixed", cell)
    assert "claimed" in why and "failed data" in why and "request 1: launch" in why
    logs = run("logs", "mixed", cell)
    assert "StageFailure: scripted data failure at step 5" in logs


def test_selectors_speak_of_states_axes_and_ids(run):
    def cells(*only: str) -> set[str]:
        words = [word for text in only for word in ("--only", text)]
        return {c["cell"] for c in json.loads(run("status", "mixed", *words, "--json"))["cells"]}

    everything = cells()
    assert len(everything) == 4
    assert (
        cells("state=failed") == cells("kind=odd") == cells("cause=data") == everything - cells("kind=good")
    )
    assert len(cells("seed=0 kind=odd")) == 1
    assert cells("seed=0", "seed=1") == everything
    assert cells("languages=es") == cells("kind!=good")
    one = sorted(everything)[0]
    assert cells(one[:-2]) == {one}


def test_show_and_diff_name_the_config_and_what_differs(run):
    first, second = (
        c["cell"] for c in json.loads(run("status", "mixed", "--only", "seed=0", "--json"))["cells"]
    )
    shown = json.loads(run("show", "mixed", first, "--json"))
    assert shown["config"]["count"]["num_steps"] == 4
    assert Path(shown["stages"][0]["folder"], "output", "count.txt").exists() or shown["stages"][0]["files"]
    diff = json.loads(run("diff", "mixed", first, second, "--json"))
    assert diff["config"]["count.num_steps"] == [4, 5]
    assert "reads count.num_steps" in diff["stages"][0]["reason"]


def test_status_and_why_import_neither_hydra_nor_the_heavy_libraries(launched):
    code = (
        "import sys; from orchestrator.cli.main import main;"
        "main(['status', 'mixed']); main(['why', 'mixed', 'seed=0 kind=odd']);"
        "bad = {'torch', 'transformers', 'hydra', 'ray', 'submitit', 'pyarrow', 'wandb'} & set(sys.modules);"
        "sys.exit(f'imported {bad}' if bad else 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=launched, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    code = "import sys; from orchestrator.cli.main import main; main(['--help']); "
    code += "sys.exit('msgspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_doctor_checks_this_machine(run):
    output = run("doctor")
    assert "store semantics" in output and "FAIL" not in output


def test_list_names_the_shipped_sweeps_and_those_of_the_store(run):
    rows = {row["sweep"]: row for row in json.loads(run("list", "--json"))}
    assert rows["smoke"]["num_cells"] == 16
    assert rows["mixed"]["revision"] == 1


def test_no_secret_of_the_environment_or_the_command_line_is_recorded(sweep):
    (sweep.folder / "mixed.yaml").write_text(MIXED)
    os.environ["WANDB_API_KEY"] = secret = "hunter2-very-secret"
    try:
        sweep("launch", "mixed.yaml", f"+api_token={secret}", code=None)
    finally:
        del os.environ["WANDB_API_KEY"]
    for path in (sweep.store / "records").rglob("*.json"):
        assert secret not in path.read_text()
    for path in (sweep.store / "sweeps").rglob("requests/*.json"):
        assert secret not in path.read_text()


def test_rerun_runs_only_what_failed_and_keeps_the_earlier_attempt(sweep):
    (sweep.folder / "mixed.yaml").write_text(MIXED)
    sweep("launch", "mixed.yaml", FAIL, code=1)
    assert "2 done, 2 failed" in sweep("launch", "mixed.yaml", FAIL, code=1)  # data is left to rerun
    claims = len(list(sweep.store.rglob("claim.json")))
    dry = sweep("rerun", "mixed", "--dry-run")
    assert "rerun 2 cells" in dry
    assert len(list(sweep.store.rglob("claim.json"))) == claims == 4
    assert "2 done" in sweep("rerun", "mixed", "--yes", "launcher.workers=1")
    requests = [json.loads(path.read_text()) for path in sorted(sweep.store.rglob("requests/*.json"))]
    assert [request["verb"] for request in requests] == ["launch", "launch", "rerun"]
    before, after = (requests[n]["settings"] for n in (1, 2))
    assert after == {**before, "launcher": {**before["launcher"], "workers": 1}}  # the rest stays
    assert "2 done" in sweep("launch", "mixed@1", "launcher.workers=1", "--only", "kind=odd")
    status = sweep.json("status", "mixed")
    assert status["counts"] == {"done": 4}
    assert sorted(cell["attempts"] for cell in status["cells"]) == [1, 1, 2, 2]
    assert "nothing to rerun" in sweep("rerun", "mixed")
    cell = next(cell["cell"] for cell in status["cells"] if cell["attempts"] == 2)
    assert "attempt 1: " in sweep("why", "mixed", cell)
    assert "went on from step 4 of attempt 1" in sweep("why", "mixed", cell)


def test_discard_voids_a_product_and_all_that_was_made_from_it(sweep):
    (sweep.folder / "two.yaml").write_text(
        MIXED.replace(
            "stages: [count]",
            "stages: {count: , copy: {command: 'cp {inputs.count}/count.txt {output}', after: [count]}}",
        )
    )
    sweep("launch", "two.yaml")
    output = sweep("discard", "two", "kind=good seed=0", "--stage", "count", "--reason", "a bug")
    assert "2 products: 1 count, 1 copy" in output
    assert sweep.json("status", "two")["counts"] == {"done": 3, "pending": 1}
    sweep("launch", "two.yaml")
    assert sweep.json("status", "two")["counts"] == {"done": 4}
    assert sorted(p.name[-7:] for p in (sweep.store / "done").rglob("*.json")).count(".2.json") == 2
