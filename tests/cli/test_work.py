"""`sweep work`: workers started by hand, from the store alone; and what starts them elsewhere."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator import Sweep as ApiSweep
from orchestrator.api.templates import KINDS
from orchestrator.testing import counted, records, wait_for
from tests.cli.launches import Running, running_heartbeats
from tests.conftest import Sweep

MINE = """
config: {seed: 0, size: small}
axes: {size: [small, large], seed: [0, 1]}
stages:
  first: {run: "mine:first", reads: [seed]}
  second: {run: "mine:second", reads: [seed, size], after: [first]}
"""
MODULE = """
import os, time

def first(config, inputs, context):
    time.sleep(0.05)
    (context.output / "x").write_text(str(config.seed))

def second(config, inputs, context):
    x = int((inputs["first"] / "x").read_text())
    return [{"value": 10 * x, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", "none")}]
"""
COUNT = """
config: {seed: 0, count: {num_steps: 20, checkpoint_every: 5, step_s: 0.02, fail: null}}
axes: {seed: "range(0,4)"}
stages: [count]
"""


@pytest.fixture
def mine(sweep: Sweep) -> Sweep:
    """A sweep of two stages, four cells, with code of the user's own."""
    (sweep.folder / "mine.yaml").write_text(MINE)
    (sweep.folder / "mine.py").write_text(MODULE)
    return sweep


@pytest.fixture
def count(sweep: Sweep) -> Sweep:
    """A sweep that counts."""
    (sweep.folder / "jobs.yaml").write_text(COUNT)
    return sweep


@pytest.fixture
def elsewhere(tmp_path: Path, store: Path) -> Callable[..., Running]:
    """Start a worker in the background, in a folder without a checkout."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return lambda *words: Running(folder, store, ("work", *words))


def test_two_workers_by_hand_finish_a_sweep_from_the_store_alone_and_do_each_cell_once(
    mine: Sweep, elsewhere: Callable[..., Running]
) -> None:
    said = mine("launch", "mine.yaml", "launcher=external")
    assert "no worker was started" in said and "sweep work mine" in said
    assert mine.json("status", "mine")["counts"] == {"pending": 4}
    for name in ("mine.py", "mine.yaml"):
        (mine.folder / name).unlink()
    ends = [each.end() for each in (elsewhere("mine"), elsewhere("mine@1", "--workers", "2"))]
    assert [code for code, _ in ends] == [0, 0], ends
    assert "4 done; exit code 0" in ends[0][1] + ends[1][1]
    assert mine.json("status", "mine")["counts"] == {"done": 4}
    assert len(records(mine.store, "claim.json")) == 2 + 4
    assert sorted(row["value"] for row in mine.json("collect", "mine")) == [0, 0, 10, 10]


def test_a_stopped_worker_saves_and_asks_to_be_started_again(
    count: Sweep, elsewhere: Callable[..., Running]
) -> None:
    count("launch", "jobs.yaml", "launcher=external", "count.step_s=0.5")
    worker = elsewhere("jobs")
    wait_for(lambda: list(count.store.glob("payload/*/*/*/metrics.jsonl")))
    assert count.json("status", "jobs")["counts"]["running"] == 1
    worker.process.send_signal(signal.SIGTERM)
    code, said = worker.end()
    assert code == 75, said
    assert [end["outcome"] for end in records(count.store, "end.json")] == ["released"]


@pytest.mark.long
def test_hours_cancels_and_reruns_hold_for_workers_by_hand(
    count: Sweep, elsewhere: Callable[..., Running]
) -> None:
    count("launch", "jobs.yaml", "launcher=external", "count.step_s=0.15")
    # The hours do not suffice for all cells.
    code, said = elsewhere("jobs", "--max-hours", str(6 / 3600)).end()
    assert code == 75, said
    assert "cancelled" in count("cancel", "jobs", "--only", "seed=3")
    # A rerun revokes the cancel; it is recorded only, as the launch was.
    assert "recorded" in count("rerun", "jobs", "--only", "seed=3")
    assert "3 GPUs" not in elsewhere("jobs", "--workers", "4").end()[1]
    assert (
        min(start["parent"]["step"] for start in records(count.store, "start.json") if start["parent"]) >= 5
    )
    assert {int(row["seed"]): row["digest"] for row in count.json("collect", "jobs")} == {
        seed: counted(seed, 20) for seed in range(4)
    }


def test_a_worker_claims_only_what_fits_its_gpus(mine: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    needs = "launcher.resources=[{gpus: 0}, {only: 'size=large', gpus: 2}]"
    mine("launch", "mine.yaml", "launcher=external", needs)
    said = mine("work", "mine", "--gpus", "0")
    assert "left to others: too few GPUs" in said and "exit code 0" in said
    assert mine.json("status", "mine")["counts"] == {"done": 2, "pending": 2}
    assert "--gpus 4, and 3 are visible" in mine("work", "mine", "--gpus", "4", code=2)
    mine("work", "mine", "--gpus", "2", "--workers", "2")
    given = {(row["size"], row["seed"]): row["gpus"] for row in mine.json("collect", "mine")}
    assert given == {("small", 0): "", ("small", 1): "", ("large", 0): "3,5", ("large", 1): "3,5"}


def test_a_worker_runs_the_code_of_the_last_launch_and_leaves_cells_of_other_code(mine: Sweep) -> None:
    said = mine("work", "mine", code=2)
    assert "no sweep 'mine' was launched here" in said and "launcher=external" in said
    mine("launch", "mine.yaml", "--only", "seed=0 size=small")
    assert "kept no snapshot of its code" in mine("work", "mine", code=2)
    mine("launch", "mine.yaml", "launcher=external", "--only", "seed=0")
    (mine.folder / "mine.py").write_text(MODULE.replace("10 * x", "20 * x"))
    mine("launch", "mine.yaml", "launcher=external", "--only", "seed=1 size=large")
    assert "1 cell left out: last launched with other code" in mine("work", "mine")
    assert mine.json("status", "mine")["counts"] == {"done": 2, "pending": 2}
    assert {row["value"] for row in mine.json("collect", "mine")} == {0, 20}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--gpus", "-1"), "--gpus is -1"),
        (("--workers", "0"), "--workers is 0"),
        (("--max-hours", "0"), "--max-hours is 0"),
        (("--max-hours", "1e308"), "--max-hours is 1e+308"),
        (("--as", "command", "--number", "100000000000000"), "--number is 100000000000000"),
        (("--as", "pbs", "--out", "nowhere/x"), "--out nowhere/x: No such file"),
        (("--as", "pbs", "--out", "jobs.yaml"), "there is a file already"),
        (("--out", "x"), "--out goes with --as"),
        (("--as", "pbs", "--image", "x"), "--image means nothing for --as pbs"),
        (("--as", "k8s", "--image", "x"), "would not see the folder"),
        (("--as", "skypilot"), "would not see the folder"),
        (("launcher.workers=2",), "unexpected 'launcher.workers=2'"),
    ],
)
def test_wrong_words_are_refused(launched: Sweep, words: tuple[str, ...], message: str) -> None:
    assert message in launched("work", "jobs", *words, code=2)


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Sweep:
    """A launch without workers, which no test changes."""
    folder = tmp_path_factory.mktemp("launched")
    (folder / "jobs.yaml").write_text(COUNT)
    sweep = Sweep(folder, folder / "store")
    sweep("launch", "jobs.yaml", "launcher=external")
    return sweep


def test_wrong_resources_are_refused_at_the_launch(count: Sweep) -> None:
    words = ("launcher=external", "launcher.resources=[{only: 'sead=0', gpus: 1}]")
    assert "sead" in count("launch", "jobs.yaml", *words, code=2)
    assert "h999" in count("launch", "jobs.yaml", "launcher=external", "launcher.device=h999", code=2)
    assert not count.store.exists()


def test_what_needs_workers_names_the_verb_that_starts_them(launched: Sweep) -> None:
    assert "sweep wait" in launched("launch", "jobs.yaml", "launcher=external", "--wait", code=2)
    assert "sweep work jobs" in launched("reconcile", "jobs", code=2)
    assert "not done" in launched("wait", "jobs", "--timeout", "0", code=4)


@pytest.mark.long
def test_a_run_of_the_api_waits_for_workers_that_others_start(
    count: Sweep, elsewhere: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(count.folder)
    run = ApiSweep.compose("jobs.yaml", "launcher=external", store=count.store).launch()
    with pytest.raises(TimeoutError):
        run.wait(timeout_s=0.1)
    worker = elsewhere("jobs", "--workers", "2")
    assert run.wait(timeout_s=60).counts == {"done": 4}
    assert worker.end()[0] == 0


def test_a_script_for_pbs_and_plain_commands_start_workers(launched: Sweep, tmp_path: Path) -> None:
    out = tmp_path / "workers.sh"
    words = ("--as", "pbs", "--number", "3", "--gpus", "2", "--max-hours", "1.5", "--queue", "gpu")
    assert "3 workers of jobs@1" in launched("work", "jobs", *words, "--out", str(out))
    text = out.read_text()
    subprocess.run(["bash", "-n", str(out)], check=True)
    for line in ("-J 1-3", "-q gpu", "-l select=1:ncpus=8:ngpus=2", "-l walltime=01:32:00"):
        assert f"#PBS {line}\n" in text
    last = shlex.split(text.splitlines()[-1])
    plain = launched("work", "jobs", "--as", "command", "--number", "2", "--only", "seed=0").splitlines()
    assert last[:6] == ["exec", "sweep", "work", "jobs@1", "--store", str(launched.store)]
    assert plain == [f"sweep work jobs@1 --store {launched.store} --only seed=0"] * 2


@pytest.mark.long
def test_the_script_for_pbs_works_as_a_shell_script(count: Sweep, tmp_path: Path) -> None:
    count("launch", "jobs.yaml", "launcher=external")
    out = tmp_path / "workers.sh"
    count("work", "jobs", "--as", "pbs", "--number", "2", "--gpus", "0", "--out", str(out))
    environment = {**os.environ, "PBS_O_WORKDIR": str(tmp_path), "PBS_ARRAY_INDEX": "1"}
    done = subprocess.run(["bash", str(out)], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "4 done" in done.stdout, done.stdout + done.stderr
    assert not running_heartbeats(count.store)
    assert KINDS == ("k8s", "kueue", "skypilot", "pbs", "command")
