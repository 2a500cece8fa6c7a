"""`tracker=wandb` with the real library, offline or against a server that is not there."""

from __future__ import annotations

import os
import re
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.sweep import Cell
from orchestrator.errors import UserError
from orchestrator.trackers.following import batches, run_id
from orchestrator.trackers.protocol import summary_of
from orchestrator.trackers.wandb_mirror import WandbMirror, mode_of
from tests.cli.launches import Running, wait_for
from tests.trackers.offline import runs_in


@pytest.fixture(autouse=True)
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DIR", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def test_every_cell_is_one_offline_run_with_its_metrics_config_and_results(two: Any) -> None:
    said = two("launch", "two.yaml", "tracker=wandb")
    assert "2 runs kept here; upload: wandb sync" in said
    runs = runs_in(two.store / "sweeps/two")
    cells = {cell["cell"] for cell in two.json("status", "two")["cells"]}
    assert {run.name for run in runs} == cells and len({run.id for run in runs}) == 2
    rows = {row["cell"]: row for row in two.json("collect", "two")}
    for run in runs:
        assert (run.group, run.project, run.exit_code) == ("two", "polysweep", 0)
        assert run.config["count"]["num_steps"] == 8
        assert run.config["polysweep"]["cell"] == run.name
        assert [row["count/step"] for row in run.history] == list(range(1, 9))
        assert all(0 <= row["count/value"] < 1 and row["count/attempt"] == 1 for row in run.history)
        assert run.step_metrics == {"count/*": "count/step"}
        assert run.summary["count/digest"] == rows[run.name]["digest"]
        assert run.summary["count/num_steps"] == 8
    assert not list(two.store.glob("payload/**/*.wandb"))


def test_a_retry_goes_on_in_the_same_run_and_loses_no_step(two: Any) -> None:
    fail = "count.fail={how: chance, step: 6, attempts: 1}"
    two("launch", "two.yaml", "seed=0", fail, "tracker=wandb", "policy.retries={unknown: 1}")
    (run,) = runs_in(two.store / "sweeps/two")
    steps = [(row["count/attempt"], row["count/step"]) for row in run.history]
    assert steps == [(1, n) for n in range(1, 6)] + [(2, n) for n in range(4, 9)]
    assert run.exit_code == 0


@pytest.mark.long
def test_a_rerun_goes_on_in_the_run_of_the_same_id_with_what_is_new_alone(two: Any) -> None:
    fail = "count.fail={how: data, step: 6, attempts: 1}"
    two("launch", "two.yaml", "seed=0", fail, "tracker=wandb", code=1)
    two("rerun", "two", "--yes")
    two("launch", "two.yaml", "seed=0", fail, "tracker=wandb")  # nothing to run, nothing to mirror
    first, second = runs_in(two.store / "sweeps/two")
    assert first.id == second.id
    assert (first.exit_code, second.exit_code) == (1, 0)
    assert [row["count/step"] for row in first.history] == [1, 2, 3, 4, 5]
    assert [row["count/step"] for row in second.history] == [4, 5, 6, 7, 8]


def test_a_sweep_that_is_done_is_mirrored_by_a_launch_with_nothing_to_run(done: Any, tmp_path: Path) -> None:
    done("launch", "two.yaml", "tracker=wandb", f"tracker.options.dir={tmp_path / 'mine'}")
    assert [len(run.history) for run in runs_in(tmp_path / "mine")] == [8, 8]


@pytest.mark.long
def test_a_folder_that_cannot_be_written_costs_the_mirror_and_no_cell(two: Any) -> None:
    said = two("launch", "two.yaml", "tracker=wandb", "tracker.options.dir=/proc/nowhere")
    assert "2 cells: 2 done" in said
    assert re.search(r"2 not mirrored whole, see the log \(.*/proc/nowhere", said)
    (log,) = two.store.glob("sweeps/two/logs/*-mirror.log")
    assert "/proc/nowhere" in log.read_text()


@pytest.mark.long
def test_a_server_that_is_not_there_leaves_the_runs_here_and_the_cells_quick(
    two: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    two("launch", "two.yaml", "tracker=wandb", "tracker.options.mode=online")
    assert [len(run.history) for run in runs_in(two.store / "sweeps/two")] == [8, 8]
    rows = two.json("collect", "two")
    assert all(row["seconds"] < 10 for row in rows)  # the server is waited for 20 s, by no cell


@pytest.mark.long
def test_a_mirror_that_is_killed_costs_no_cell_and_leaves_no_process(two: Any) -> None:
    running = Running(
        two.folder,
        two.store,
        ("launch", "two.yaml", "count.num_steps=60", "count.step_s=0.1", "tracker=wandb"),
    )
    mirror = wait_for(lambda: _processes("orchestrator.trackers.mirror", str(two.store)))[0]
    wait_for(lambda: list(two.store.glob("sweeps/two/wandb/offline-run-*/*.wandb")))
    service = wait_for(lambda: _processes("wandb-core", f"--pid {mirror}"))
    os.kill(mirror, signal.SIGKILL)
    code, said = running.end()
    assert code == 0 and "no cell is the worse for it" in said
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in service))
    two("launch", "two.yaml", "count.num_steps=60", "count.step_s=0.1", "tracker=wandb")  # catches up
    steps: dict[str, set[int]] = {}
    for run in runs_in(two.store / "sweeps/two"):
        steps.setdefault(run.id, set()).update(row["count/step"] for row in run.history)
    assert list(steps.values()) == [set(range(1, 61))] * 2


def _processes(*words: str) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_text().replace("\0", " ")
        except OSError:
            continue
        if all(word in line for word in words):
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["tracker.options.mode=sometimes"], "tracker.options.mode"),
        (["+tracker.options.projct=x"], "tracker.options.projct"),
        (["tracker.options.project=a/b"], "tracker.options.project"),
    ],
)
def test_a_wrong_option_is_an_error_before_anything_is_recorded(
    two: Any, words: list[str], named: str
) -> None:
    said = two("launch", "two.yaml", "tracker=wandb", *words, code=2)
    assert said.startswith("error:") and named in said
    assert not list(two.store.glob("sweeps/*/requests/*"))


def test_without_a_key_it_is_offline_and_what_is_said_outranks_what_is_found(tmp_path: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine api.wandb.ai\n  login user\n  password 0123456789\n")
    netrc.chmod(stat.S_IRUSR | stat.S_IWUSR)
    none = {"NETRC": str(tmp_path / "no-netrc")}
    assert mode_of(none) == "offline"
    assert mode_of({**none, "WANDB_API_KEY": "x"}) == "online"
    assert mode_of({"NETRC": str(netrc)}) == "online"
    assert mode_of({"NETRC": str(netrc), "WANDB_BASE_URL": "https://wandb.example.org"}) == "offline"
    assert mode_of({"NETRC": str(netrc), "WANDB_MODE": "offline"}) == "offline"
    assert mode_of({**none, "WANDB_MODE": "online"}) == "online"
    netrc.write_text("machine\n\x00 nonsense")
    assert mode_of({"NETRC": str(netrc)}) == "offline"
    assert WandbMirror({"mode": "online"}, tmp_path).mode == "online"
    with pytest.raises(UserError):
        WandbMirror({"project": 3}, tmp_path)


def test_rows_become_one_number_a_language() -> None:
    rows = [
        {"model": "m", "eval_language": "en", "accuracy": 0.5, "num_items": 250},
        {"model": "m", "eval_language": "te", "accuracy": 0.25, "num_items": 250},
    ]
    assert summary_of("evaluate", rows) == {
        "evaluate/model": "m",
        "evaluate/num_items": 250,
        "evaluate/accuracy/en": 0.5,
        "evaluate/accuracy/te": 0.25,
    }
    assert summary_of("s", [{"x": 1}, {"x": 2}]) == {"s/x/1": 1, "s/x/2": 2}
    assert summary_of("s", []) == {}
    assert summary_of("s", [{"loss": 1.5, "why": None}]) == {"s/loss": 1.5}


def test_the_id_is_that_of_the_cell_and_its_stages_in_its_store() -> None:
    def cell(name: str, *chain: str) -> Cell:
        return Cell(id=name, axes={}, columns={}, config={}, stage_digests=chain)

    same = run_id("store", "smoke", cell("a.en+sw/x", "1", "2"))
    assert same == run_id("store", "smoke", cell("a.en+sw/x", "1", "2"))
    others = {
        run_id("other", "smoke", cell("a.en+sw/x", "1", "2")),
        run_id("store", "smoke2", cell("a.en+sw/x", "1", "2")),
        run_id("store", "smoke", cell("a.en-sw/x", "1", "2")),
        run_id("store", "smoke", cell("a.en+sw/x", "1", "3")),
    }
    assert same not in others and len(others) == 4
    assert not set(same) & set("/\\#?%: +")
    assert len(run_id("store", "s" * 200, cell("c" * 200))) <= 128


def test_a_line_that_is_still_being_written_waits_for_its_end() -> None:
    assert list(batches(b"", 0)) == []
    assert list(batches(b'{"step": 1}\n{"ste', 0)) == [('{"step": 1}\n', 12)]
    assert list(batches(b'{"step": 2}\n', 12)) == [('{"step": 2}\n', 24)]
    many = b"x\n" * 1001
    assert [end for _, end in batches(many, 7)] == [407, 807, 1207, 1607, 2007, 2009]


def test_a_mirror_that_cannot_be_started_costs_no_cell(two: Any) -> None:
    (two.store / "sweeps/two/logs/request-1-mirror.log").mkdir(parents=True)  # where its log should be
    said = two("launch", "two.yaml", "tracker=wandb")
    assert "the mirror cannot be started" in said and "2 cells: 2 done" in said
