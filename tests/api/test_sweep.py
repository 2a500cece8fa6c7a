"""The Python API: what the command does, as values, and nothing printed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hydra.core.global_hydra import GlobalHydra

import orchestrator
from orchestrator import State, Store, Sweep, UserError
from tests.conftest import Sweep as Command

ROOT = Path(__file__).parents[2]
COUNTS = """
description: counts
expect_cells: 4
config: {seed: 0, count: {num_steps: 3, checkpoint_every: 1, step_s: 0, fail: null}}
axes:
  seed: "range(0,3)"
  kind: {good: {count.fail: null, count.num_steps: 3}, bad: {count.fail: data, count.num_steps: 4}}
exclude: ["kind=bad seed=1,2"]
stages: [count]
"""
TWO = """
description: two
expect_cells: 2
config: {fingerprints: {digest: [file]}, file: data, digest: null, factor: 1}
axes: {factor: [1, 2]}
stages: {fit: {run: "stages:fit", reads: [digest, factor], uses: [file]}}
report: ["stages:report"]
"""
STAGES = """
from pathlib import Path
from typing import Any

def fit(config, inputs, context):
    return [{"three": int(Path(context.uses.file).read_text()) * config.factor}]

def report(rows, folder):
    (folder / "mine").touch()
    return [folder / "mine"]
"""


@pytest.fixture
def counts(sweep: Command, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A sweep of three cells that count and one that fails, composed in the user's folder."""
    monkeypatch.chdir(sweep.folder)
    (sweep.folder / "counts.yaml").write_text(COUNTS)
    return Sweep.compose("counts.yaml", store=sweep.store)


def test_a_sweep_is_composed_planned_launched_and_read_as_values(
    counts: Sweep,
    sweep: Command,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = counts.plan()
    assert [str(row) for row in plan.to_frame()["count"]] == ["run"] * 4
    assert len(plan.cells) == 4 and plan.totals is None
    before_s = time.time()
    assert counts.status().counts == {"pending": 4} and not sweep.store.exists()
    assert before_s <= counts.status().as_of <= time.time()
    run = counts.launch(launcher="local", workers=2)
    assert run.wait(60).counts == {"done": 3, "failed": 1} == counts.status().counts
    assert "3 done, 1 failed" in run.log.read_text()
    rows = counts.rows()
    collected = sweep.json("collect", "counts")
    assert rows.to_pylist() == [{name: row.get(name) for name in rows.column_names} for row in collected]
    assert rows.to_pandas()["num_steps"].tolist() == [3, 3, 3]
    bad = counts.cells["seed=0 kind=bad"]
    assert bad.state is State.FAILED and bad.cause == "code" and bad.axes == {"seed": "0", "kind": "bad"}
    monkeypatch.setenv("SWEEP_STORE", str(sweep.store))  # commands in texts then need no store.url
    assert sweep("why", "counts", bad.id).endswith(bad.why() + "\n")
    assert "failed" in counts.status("kind=bad").to_frame()["state"].tolist()
    assert counts.report(out=sweep.folder / "out")[0].is_file()
    assert capsys.readouterr() == ("", "")
    (sweep.folder / "mine").touch()  # the store is its maker's alone, the rest as the user's umask has it
    assert oct((sweep.folder / "mine").stat().st_mode & 0o777) == "0o644"
    assert oct((sweep.folder / "out/report.md").stat().st_mode & 0o777) == "0o644"
    assert not any(path.stat().st_mode & 0o077 for path in sweep.store.rglob("*.json"))


def test_what_is_no_text_is_refused_by_name_and_a_list_is_not_taken_apart(counts: Sweep) -> None:
    wrong: Any = ["seed=0"]
    for use in (
        lambda: Sweep.compose("counts.yaml", wrong),
        lambda: Sweep.compose("counts.yaml", store=wrong),
        lambda: Sweep.compose(wrong),
        lambda: Store(wrong),
        lambda: Sweep.open(wrong),
        lambda: counts.plan(wrong),
        lambda: counts.launch(wrong),
        lambda: counts.launch(only=[wrong]),
        lambda: counts.status(wrong),
        lambda: counts.rows(wrong),
        lambda: counts.cells[wrong],
    ):
        with pytest.raises(UserError) as caught:
            use()
        assert repr(wrong) in caught.value.what and caught.value.allowed


def test_values_of_the_api_name_what_they_are_of_and_a_plan_is_plain_json(
    counts: Sweep, sweep: Command
) -> None:
    plan = counts.plan("seed=0")
    assert json.loads(json.dumps(plan.as_json())) == plan.as_json()
    assert repr(plan).startswith("<plan of counts@1 (not launched yet in ") and "2 cells>" in repr(plan)
    assert repr(counts) == f"<sweep counts in {sweep.store}>"
    assert repr(counts.cells) == "<4 cells>" and "cells=<4 cells>" in repr(counts.status())


def test_failed_cells_run_again_and_a_store_gives_the_sweep_back(counts: Sweep, sweep: Command) -> None:
    run = counts.launch(workers=2)
    run.wait(60)
    # A composed sweep keeps its text: what it would be at the next look is not known.
    assert (repr(run), repr(counts)) == ("<launch 1 of counts@1>", f"<sweep counts in {sweep.store}>")
    assert Store(sweep.store).sweeps() == ["counts"]
    opened = Store(sweep.store).open("counts@1")
    assert repr(opened) == "<sweep counts@1>"
    assert (opened.name, opened.revision) == ("counts", 1)
    again = opened.rerun("state=failed", overrides="policy.grace_s=7", workers=1)  # one text is one override
    assert again is not None and again.wait(60).counts == {"failed": 1}
    assert opened.cells["kind=bad"].num_retries == 1
    assert opened.rerun("kind=good") is None
    assert opened.cancel() == [opened.cells["kind=bad"].id]
    sealed = sweep.json("status", "counts@1")
    assert sealed["counts"] == opened.status().counts


@pytest.mark.long
def test_a_launch_that_is_stopped_goes_on_where_it_was(sweep: Command, counts: Sweep) -> None:
    (sweep.folder / "slow.yaml").write_text(
        COUNTS.split("axes:")[0]
        .replace("num_steps: 3", "num_steps: 20")
        .replace("step_s: 0,", "step_s: 0.2,")
        + "axes: {seed: [0]}\nstages: [count]\n"
    )
    slow = Sweep.compose("slow.yaml", "expect_cells=1", store=sweep.store)
    run = slow.launch(workers=1)
    while not list(sweep.store.glob("**/checkpoints/*/manifest.json")):
        assert run.log is not None and run.status().counts.keys() <= {"pending", "running"}
    with pytest.raises(TimeoutError):
        run.wait(0)
    run.stop()
    assert run.status().counts == {"released": 1}
    ended = slow.launch(workers=1).wait(60)
    assert ended.counts == {"done": 1} and "went on from step" in slow.cells["seed=0"].why()


@pytest.mark.long
def test_a_notebook_uses_two_sweeps_in_turn_and_stays_as_it_was(
    sweep: Command, counts: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sweep.folder / "other"
    other.mkdir()
    (other / "two.yaml").write_text(TWO)
    (other / "data").write_text("3")
    (other / "stages.py").write_text(STAGES)
    monkeypatch.chdir(other)
    two = Sweep.compose("two.yaml", store="runs")  # beside it, while `counts` is of another folder and store
    monkeypatch.chdir("/")
    before = process_state()
    assert [len(each.plan().cells) for each in (counts, two, counts)] == [4, 2, 4]
    assert process_state() == before
    assert two.launch(workers=1).wait(60).counts == {"done": 2}
    assert sorted(two.rows()["three"].to_pylist()) == [3, 6]
    monkeypatch.chdir(sweep.folder)
    assert two.report(out="out") == [sweep.folder / "out/mine"] and (sweep.folder / "out/mine").is_file()
    monkeypatch.chdir("/")
    assert process_state() == before and counts.revision == 1 and not sweep.store.exists()


@pytest.mark.long
def test_threads_of_a_notebook_do_not_disturb_each_other(sweep: Command, counts: Sweep) -> None:
    (sweep.folder / "two.yaml").write_text(
        TWO.replace('run: "stages:fit"', 'command: "true"').partition("report:")[0]
    )
    (sweep.folder / "data").write_text("3")
    before = process_state()
    with ThreadPoolExecutor(4) as threads:
        made = threads.map(
            lambda number: len(
                Sweep.compose(f"{('counts', 'two')[number % 2]}.yaml", store=sweep.store).cells
            ),
            range(8),
        )
        assert [*made] == [4, 2] * 4
    assert process_state() == before


def process_state() -> tuple[object, ...]:
    """What calls may change for a while only."""
    umask = os.umask(0o022)
    os.umask(umask)
    return [*sys.path], Path.cwd(), umask, GlobalHydra.instance().hydra, dict(os.environ)


def test_mistakes_are_errors_of_the_package_and_record_nothing(counts: Sweep, sweep: Command) -> None:
    for mistake, said in (
        (lambda: Sweep.compose("nowhere.yaml", store=sweep.store), "nowhere"),
        (lambda: Sweep.open("counts", store=sweep.store), "neither a sweep file nor in the store"),
        (lambda: counts.launch(workers="two"), "launcher.workers is of the wrong type"),
        (lambda: counts.launch(only="seed=7"), "seed"),
        (lambda: counts.plan(device="abacus"), "unknown device"),
        (lambda: counts.cells["nobody"], "no cell"),
        (lambda: counts.rerun(), "never launched"),
        (lambda: counts.cancel(), "never launched"),
    ):
        with pytest.raises(UserError, match=said):
            mistake()
    assert not sweep.store.exists()


def test_the_package_names_few_things_and_imports_fast_and_alone() -> None:
    assert orchestrator.__all__ == sorted(orchestrator.__all__) and 1 <= len(orchestrator.__all__) <= 12
    assert all(
        getattr(orchestrator, name).__module__.startswith("orchestrator.") for name in orchestrator.__all__
    )
    with pytest.raises(AttributeError):
        _ = orchestrator.Sweeep
    code = (
        "import sys; before = {*sys.modules}; import orchestrator; "
        "print(*{name.partition('.')[0] for name in {*sys.modules} - before} - sys.stdlib_module_names); "
        "from orchestrator import Store, Sweep; "
        "print(*sys.modules.keys() & {'torch', 'ray', 'transformers', 'pandas', 'matplotlib'})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported, heavy = done.stdout.split("\n")[:2]
    assert imported == "orchestrator" and not heavy


def test_the_script_of_the_docs_runs_as_it_is_printed(sweep: Command) -> None:
    text = (ROOT / "docs/python.md").read_text()
    script = next(
        block for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "savefig" in block
    )
    assert len(script.strip().splitlines()) <= 15
    (sweep.folder / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=sweep.folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert (sweep.folder / "steps.png").stat().st_size > 5_000 and "{'done': 3}" in done.stdout
