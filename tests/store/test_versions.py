"""Two versions in one store: the one before finishes what this one launches, and refuses format 2."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from orchestrator.core.failure import Cause
from orchestrator.core.records import Heartbeat
from orchestrator.core.settings import engine_from
from orchestrator.execution.assignment import Assignment
from orchestrator.formats import encode
from orchestrator.jobs.records import JobEnd, Resources
from orchestrator.jobs.submissions import Submissions
from orchestrator.store import layout
from orchestrator.store.access import new_nonce
from orchestrator.store.ledger import Ledger, open_ledger
from tests.cli.launches import Running, wait_for
from tests.conftest import Sweep
from tests.store.builders import claim, owner, submission_of
from tests.store.test_reading import photograph

BEFORE = "adb2300"
"""The last version whose readers refuse what they do not know."""

ROOT = Path(__file__).parents[2]
FORMAT_1 = Path(__file__).with_name("format1")
COUNT = """
description: counts
expect_cells: 4
config: {seed: 0, count: {num_steps: 8, checkpoint_every: 1, step_s: 0.1, fail: null}}
axes: {seed: [1, 2, 3, 4]}
stages: [count]
"""


@pytest.fixture(scope="session")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The version before, from this project's own history."""
    words = ["git", "-C", str(ROOT), "archive", BEFORE, "orchestrator", "conf", "sweeps"]
    try:
        done = subprocess.run(words, capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("no git here")
    if done.returncode != 0:
        pytest.skip(f"the history of this checkout does not reach {BEFORE}")
    folder = tmp_path_factory.mktemp("before")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def old(before: Path, sweep: Sweep) -> Sweep:
    """The command of the version before, in the same folder and store."""
    return Sweep(sweep.folder, sweep.store, {**os.environ, "PYTHONPATH": str(before)})


@pytest.fixture
def project(tmp_path: Path) -> Sweep:
    """A project whose store is of format 1, made by the version before."""
    shutil.copytree(FORMAT_1, tmp_path / "ours")
    return Sweep(tmp_path / "ours/project", tmp_path / "ours/store")


def make_format_1(store: Path) -> None:
    store.mkdir(parents=True)
    (store / layout.STORE).write_text(json.dumps({"nonce": "n", "format": 1, "created_at": ""}))


def format_of(store: Path) -> int:
    return int(json.loads((store / layout.STORE).read_text())["format"])


def work(before: Path, store: Path, folder: Path, name: str) -> subprocess.CompletedProcess[str]:
    """Starts a worker of the version before, as a scheduler would, and waits for its end."""
    request = json.loads((store / layout.request(name, 1)).read_text())
    order = Assignment(
        store=str(store), sweep=name, revision=1, settings=engine_from(request["settings"]), num_threads=1
    )
    (folder / "order.json").write_bytes(encode(order, store_format=1))
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.worker.main", "order.json"],  # its name in that version
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(before)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def states(status: Any) -> list[str]:
    return [cell["state"] for cell in status["cells"]]


def file_a_job(ledger: Ledger, number: int, cell: str) -> Submissions:
    """Records a task of a scheduler and its loss, as a launch and a reconcile do."""
    submissions = Submissions(ledger, "counts")
    submissions.file(
        submission_of(
            number,
            nonce=new_nonce(),
            cluster="nowhere",
            name=f"counts-{number}",
            tasks=((cell,),),
            resources=Resources(cpus=1),
        )
    )
    submissions.accept(number, "12", at="")
    return submissions


def test_workers_of_the_version_before_finish_what_this_one_launched_reconciled_and_cancelled(
    before: Path, old: Sweep, sweep: Sweep
) -> None:
    make_format_1(sweep.store)
    (sweep.folder / "counts.yaml").write_text(COUNT)
    launch = Running(sweep.folder, sweep.store, ("launch", "counts.yaml", "launcher.workers=1"))
    wait_for(lambda: [*sweep.store.glob("payload/count/*/1/checkpoints/00000002/manifest.json")])
    launch.interrupt()
    assert launch.end()[0] == 1
    cells = sweep.json("status", "counts")["cells"]
    submissions = file_a_job(open_ledger(str(sweep.store)), 1, cells[1]["cell"])
    submissions.close(1, [JobEnd(index=0, word="NODE_FAIL", cause=Cause.NODE_LOST)], at="")
    sweep("cancel", "counts", "--only", "seed=4")

    worked = work(before, sweep.store, sweep.folder, "counts")
    assert worked.returncode == 0, worked.stdout + worked.stderr
    for command in (sweep, old):
        assert states(command.json("status", "counts")) == ["done", "done", "done", "cancelled"]
    parents = [json.loads(p.read_text())["parent"] for p in sweep.store.glob("records/count/*/2/start.json")]
    assert [parent["attempt"] for parent in parents] == [1]  # it went on from our checkpoint
    assert format_of(sweep.store) == 1


def test_the_version_before_refuses_a_store_of_format_2_and_changes_nothing_there(
    before: Path, old: Sweep, sweep: Sweep
) -> None:
    (sweep.folder / "counts.yaml").write_text(COUNT.replace("step_s: 0.1", "step_s: 0"))
    sweep("launch", "counts.yaml", "launcher.workers=1")
    assert format_of(sweep.store) == 2
    photo = photograph(sweep.store)
    assert "format 2" in old("status", "counts", code=2)
    assert "format 2" in old("launch", "counts.yaml", code=2)
    worked = work(before, sweep.store, sweep.folder, "counts")
    assert worked.returncode == 2 and "format 2" in worked.stdout
    assert photograph(sweep.store) == photo


def test_a_store_of_format_1_is_read_continued_and_reported_and_its_records_gain_nothing(
    project: Sweep,
) -> None:
    fields = {p.name: set(json.loads(p.read_text())) for p in project.store.glob("records/*/*/1/*.json")}
    fields["done"] = set(json.loads(next(project.store.glob("done/count/*")).read_text()))
    requests = {frozenset(json.loads(p.read_text())) for p in project.store.glob("sweeps/*/requests/*")}
    assert states(project.json("status", "counts")) == ["done", "pending", "cancelled", "failed"]
    assert "NODE_FAIL" in project("why", "counts", "seed=bad")
    project("launch", "counts.yaml", "launcher.workers=1", code=1)
    project("rerun", "counts", "--yes", "launcher.workers=1")
    assert states(project.json("status", "counts")) == ["done"] * 4
    assert len(project.json("collect", "counts")) == 4
    assert len([*project.store.glob("sweeps/counts/*.json")]) == 1  # what is equal is the same revision
    assert format_of(project.store) == 1
    for path in (*project.store.glob("records/*/*/[12]/*.json"), *project.store.glob("done/count/*.json")):
        known = fields.get(path.name, fields["done"])
        assert set(json.loads(path.read_text())) <= known, path
    assert {
        frozenset(json.loads(p.read_text())) for p in project.store.glob("sweeps/*/requests/*")
    } <= requests


def test_a_setting_that_a_store_of_format_1_cannot_hold_is_refused_before_anything_is_recorded(
    project: Sweep,
) -> None:
    def recorded() -> dict[str, tuple[int, int, bytes]]:
        found = photograph(project.store)
        return {name: seen for name, seen in found.items() if name.startswith(("sweeps/", "records/"))}

    before = recorded()
    stage = "stages: {count: {limit_s: 9, finished: over, command: 'true', reads: [seed]}}"
    other = (project.folder / "counts.yaml").read_text().replace("stages: [count]", stage)
    (project.folder / "other.yaml").write_text(other)
    for words in (
        ("launch", "counts.yaml", "store.outage_s=5"),
        ("launch", "other.yaml"),
        ("rerun", "counts", "--yes", "store.outage_s=5"),
    ):
        said = project(*words, code=2)
        assert "format 1 and cannot hold" in said and "sweep upgrade" in said
        assert "outage_s" in said or "finished" in said
    assert recorded() == before
    project("upgrade")
    project("rerun", "counts", "--yes", "store.outage_s=5", "launcher.workers=1")


def test_a_store_is_upgraded_when_nothing_can_run_in_it_and_then_refused_by_the_version_before(
    project: Sweep, before: Path
) -> None:
    mark = json.loads((project.store / layout.STORE).read_text())
    (project.store / layout.STORE).write_text(json.dumps({**mark, "note": "ours"}))
    assert "format 2 now" in project("upgrade")
    assert json.loads((project.store / layout.STORE).read_text()) == {**mark, "note": "ours", "format": 2}
    assert "already" in project("upgrade")
    assert states(project.json("status", "counts")) == ["done", "pending", "cancelled", "failed"]
    env = {**os.environ, "PYTHONPATH": str(before)}
    assert "format 2" in Sweep(project.folder, project.store, env)("status", "counts", code=2)


def test_an_upgrade_is_refused_while_an_attempt_or_a_job_may_run_and_says_which(sweep: Sweep) -> None:
    make_format_1(sweep.store)
    (sweep.folder / "counts.yaml").write_text(COUNT.replace("step_s: 0.1", "step_s: 1"))
    launch = Running(sweep.folder, sweep.store, ("launch", "counts.yaml", "launcher.workers=1"))
    wait_for(lambda: [*sweep.store.glob("records/count/*/1/heartbeat.json")])
    said = sweep("upgrade", code=2)  # of whichever cell it is at by then
    assert re.search("count [0-9a-f]{12}: attempt 1: process", said), said
    launch.interrupt()
    launch.end()
    submissions = file_a_job(open_ledger(str(sweep.store)), 1, "some-cell")
    assert "submission 1, task 0: job 12_0" in sweep("upgrade", code=2)
    submissions.close(1, [JobEnd(index=0, word="COMPLETED")], at="")
    assert format_of(sweep.store) == 1
    sweep("upgrade")
    assert format_of(sweep.store) == 2


def test_an_upgrade_watches_an_attempt_on_another_machine_until_its_lease_is_over(sweep: Sweep) -> None:
    make_format_1(sweep.store)
    folder = sweep.store / "records/count/abc/1"
    folder.mkdir(parents=True)
    (folder / "claim.json").write_bytes(encode(claim(owner=owner(host="far", boot="other"), lease_s=3.0)))
    (folder / "heartbeat.json").write_bytes(encode(Heartbeat(counter=7, phase="running")))
    assert "watching 1 attempt for up to 3 s" in sweep("upgrade")
    assert format_of(sweep.store) == 2


def test_a_record_with_fields_and_a_cause_of_a_later_version_is_shown_and_its_cell_goes_on(
    project: Sweep,
) -> None:
    project("upgrade")
    end = next(p for p in project.store.glob("records/count/*/1/end.json") if b'"failed"' in p.read_bytes())
    tree = json.loads(end.read_text())
    end.write_text(json.dumps({**tree, "cause": "meteor", "remedy": {"wait_s": 3}}))
    request = json.loads((project.store / layout.request("counts", 1)).read_text())
    later = {**request, "nonce": "later", "number": 6, "verb": "pause", "until": "noon"}
    (project.store / layout.request("counts", 6)).write_text(json.dumps(later))
    status = project.json("status", "counts")
    bad = status["cells"][3]
    assert (bad["state"], bad["cause"]) == ("pending", "unknown")  # one retry is left
    assert "this version does not know" in project("status", "counts")
    project("launch", "counts.yaml", "launcher.workers=1")
    assert states(project.json("status", "counts")) == ["done"] * 4
